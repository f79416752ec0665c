"""``python -m lit_unlearn.speed``: the plain recipe of the field against ours, and what fits on which card."""
