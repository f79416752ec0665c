"""The table of contents of the objectives: name in YAML -> class, with the paper beside each.

BS-S (arXiv 2510.19422, eq. 7) is no class of its own: it is a base objective on ``role: forget`` with weight
1 - lambda and the same objective on ``role: belief`` with weight lambda.
"""

from lit_unlearn.objectives.bst import BST
from lit_unlearn.objectives.grad_ascent import GradAscent
from lit_unlearn.objectives.kl import KL
from lit_unlearn.objectives.nll import NLL
from lit_unlearn.objectives.npo import NPO

OBJECTIVES: dict[str, type] = {
    "grad_ascent": GradAscent,  # Maini et al., 2024, arXiv 2401.06121
    "npo": NPO,  # Zhang et al., 2024, arXiv 2404.05868
    "bst": BST,  # Li et al., 2026, arXiv 2510.19422
    "nll": NLL,  # retain term and finetuning
    "kl": KL,  # retain term, Maini et al., 2024, arXiv 2401.06121
}
