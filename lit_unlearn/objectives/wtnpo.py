"""WTNPO: TNPO's weight times WGA's (Wang et al., ICLR 2025, https://arxiv.org/abs/2502.19301)."""

from dataclasses import dataclass

from torch import Tensor

from lit_unlearn.objectives.tnpo import TNPO


@dataclass(frozen=True)
class WTNPO(TNPO):
    r"""``sg[w_i] log p_i`` with ``w_i = 2 p_i^(beta + alpha) / (p_i^beta + o_i^beta + epsilon)``."""

    alpha: float = 1.5
    """WGA's exponent, on top of TNPO's weight."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha < 0:
            raise ValueError(f"alpha={self.alpha} must not be negative: rare tokens would be weighted up")

    def weight(self, logps: Tensor, reference_logps: Tensor) -> Tensor:
        return super().weight(logps, reference_logps) * (self.alpha * logps).exp()
