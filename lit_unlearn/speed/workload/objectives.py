"""The sets of terms that are timed, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_RETAIN = {"objective": {"name": "nll"}}
CELLS: dict[str, Mapping[str, Any]] = {
    "grad_ascent": {"forget": {"objective": {"name": "grad_ascent"}}},
    "npo_alone": {"forget": {"objective": {"name": "npo"}}},
    "bst_alone": {"forget": {"objective": {"name": "bst"}}},
    "grad_diff": {"forget": {"objective": {"name": "grad_ascent"}}, "retain": _RETAIN},
    "npo": {"forget": {"objective": {"name": "npo"}}, "retain": _RETAIN},
    "simnpo": {"forget": {"objective": {"name": "simnpo"}}, "retain": _RETAIN},
    "wga": {"forget": {"objective": {"name": "wga"}}, "retain": _RETAIN},
    "tnpo": {"forget": {"objective": {"name": "tnpo", "epsilon": 0.0}}, "retain": _RETAIN},
    "bst": {"forget": {"objective": {"name": "bst"}}, "retain": _RETAIN},
    "kl": {"forget": {"objective": {"name": "grad_ascent"}}, "retain": {"objective": {"name": "kl"}}},
    "rmu": {"forget": {"objective": {"name": "rmu"}}, "retain": {"objective": {"name": "hidden_match"}}},
    "bss": {
        "forget": {"weight": 0.5, "objective": {"name": "npo"}},
        "belief": {"weight": 0.5, "objective": {"name": "npo", "role": "belief"}},
        "retain": _RETAIN,
    },
}
"""``objectives=[...]`` takes these names. ``grad_ascent`` and those ``alone`` have no retain term; ``kl`` is gradient
ascent with a KL retain term on the answers; ``bss`` is NPO on the forget rows and on one belief a prompt; the others
are the named loss on the forget rows and NLL on the retain rows (RMU: its own retain term). TNPO's epsilon is 0, or a
random model, to which every token is unlikely, would have no forget loss at all."""
