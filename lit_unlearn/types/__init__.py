"""The nouns every floor speaks: roles, rows, needs, scores, losses, terms; the one import line of an objective."""

from lit_unlearn.types.loss import Loss, Objective, Reduction, Term, Terms, union_of_needs
from lit_unlearn.types.needs import LOGPS, Ask, Needs
from lit_unlearn.types.rows import IGNORE_INDEX, Batch, Role, Rows
from lit_unlearn.types.scores import Scores, ScoresByRole

__all__ = [
    "IGNORE_INDEX",
    "LOGPS",
    "Ask",
    "Batch",
    "Loss",
    "Needs",
    "Objective",
    "Reduction",
    "Role",
    "Rows",
    "Scores",
    "ScoresByRole",
    "Term",
    "Terms",
    "union_of_needs",
]
