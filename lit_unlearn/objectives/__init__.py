"""The table of contents of the objectives: name in YAML -> class, with the paper beside each.

BS-S (arXiv 2510.19422, eq. 7) is no class of its own: it is a base objective on ``role: forget`` with weight
1 - lambda and the same objective on ``role: belief`` with weight lambda. GradDiff and its KL form are ``grad_ascent``
and a retain term.
"""

from lit_unlearn.objectives.bst import BST
from lit_unlearn.objectives.bstw import BSTW
from lit_unlearn.objectives.ceu import CEU
from lit_unlearn.objectives.constraint_nll import ConstraintNLL
from lit_unlearn.objectives.controlled_ascent import ControlledAscent
from lit_unlearn.objectives.dpo import DPO
from lit_unlearn.objectives.flat import FLAT
from lit_unlearn.objectives.grad_ascent import GradAscent
from lit_unlearn.objectives.hidden_match import HiddenMatch
from lit_unlearn.objectives.idk_nll import IdkNLL
from lit_unlearn.objectives.jensun import JensUn
from lit_unlearn.objectives.js import JS
from lit_unlearn.objectives.kl import KL
from lit_unlearn.objectives.nll import NLL
from lit_unlearn.objectives.npo import NPO
from lit_unlearn.objectives.pdu import PDU
from lit_unlearn.objectives.rmu import RMU
from lit_unlearn.objectives.satimp import SatImp
from lit_unlearn.objectives.simnpo import SimNPO
from lit_unlearn.objectives.tnpo import TNPO
from lit_unlearn.objectives.undial import UNDIAL
from lit_unlearn.objectives.wga import WGA
from lit_unlearn.objectives.wtnpo import WTNPO

OBJECTIVES: dict[str, type] = {
    # ascent on the forget answers
    "grad_ascent": GradAscent,  # Maini et al., 2024, arXiv 2401.06121
    "controlled_ascent": ControlledAscent,  # Wang et al., 2025, arXiv 2406.09179 (UWC: TS, LS, likelihood capping)
    "wga": WGA,  # Wang et al., 2025, arXiv 2502.19301
    "tnpo": TNPO,  # the same
    "wtnpo": WTNPO,  # the same
    "satimp": SatImp,  # Yang et al., 2025, arXiv 2505.11953
    # preference
    "npo": NPO,  # Zhang et al., 2024, arXiv 2404.05868
    "simnpo": SimNPO,  # Fan et al., 2024, arXiv 2410.07163
    "dpo": DPO,  # IdkDPO: arXiv 2401.06121; AltPO: Mekala et al., 2024, arXiv 2409.13474
    "idk_nll": IdkNLL,  # PO, arXiv 2401.06121
    # beliefs
    "bst": BST,  # Li et al., 2026, arXiv 2510.19422
    "bstw": BSTW,  # the authors' code
    # distribution
    "undial": UNDIAL,  # Dong et al., 2024, arXiv 2402.10052
    "ceu": CEU,  # Yang, 2025, arXiv 2503.01224
    "pdu": PDU,  # Entesari et al., 2025, arXiv 2506.05314
    "flat": FLAT,  # Wang et al., 2025, arXiv 2410.11143
    "jensun": JensUn,  # Singh et al., 2025, arXiv 2509.02820
    # representation
    "rmu": RMU,  # Li et al., 2024, arXiv 2403.03218
    # retain
    "nll": NLL,  # and the loss of finetuning
    "kl": KL,  # Maini et al., 2024, arXiv 2401.06121
    "js": JS,  # arXiv 2509.02820
    "hidden_match": HiddenMatch,  # arXiv 2403.03218
    "constraint_nll": ConstraintNLL,  # arXiv 2506.05314
}
