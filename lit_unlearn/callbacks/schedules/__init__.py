"""What happens around the training step; the table of contents of the schedules, with the paper beside each."""

from lit_unlearn.callbacks.schedules.anneal import Anneal
from lit_unlearn.callbacks.schedules.dual_weight import DualWeight
from lit_unlearn.callbacks.schedules.gradient_rectification import GradientRectification
from lit_unlearn.callbacks.schedules.retain_selection import RetainSelection
from lit_unlearn.callbacks.schedules.schedule import Schedule

SCHEDULES: dict[str, type[Schedule]] = {
    # weights of terms
    "anneal": Anneal,  # TARF, 2024, arXiv 2406.08288
    "dual_weight": DualWeight,  # PDU: Entesari et al., 2025, arXiv 2506.05314
    # weights of rows
    "retain_selection": RetainSelection,  # TARF, 2024, arXiv 2406.08288
    # gradients
    "gradient_rectification": GradientRectification,  # GRU, 2025, arXiv 2503.09117
}
