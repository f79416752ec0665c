"""SatImp: saturation and importance weights (Yang et al., ICML 2025, https://arxiv.org/abs/2505.11953)."""

from dataclasses import dataclass

import torch

from lit_unlearn.types import LOGPS, Loss, Needs, Reduction, Role, ScoresByRole


@dataclass(frozen=True)
class SatImp:
    r"""``sg[p_i^beta1 (1 - p_i)^beta2] log p_i`` on each token."""

    role: Role = Role.forget
    beta1: float = 5.0
    """Saturation: large values leave unlikely tokens alone."""
    beta2: float = 1.0
    """Importance: large values leave certain tokens alone. The sources differ: 1.0 in OpenUnlearning, 0.1 in the
    authors' README."""
    reduction: Reduction = "token_mean"

    def __post_init__(self) -> None:
        if self.beta1 < 0 or self.beta2 < 0:
            raise ValueError(f"beta1={self.beta1} and beta2={self.beta2} must not be negative")

    @property
    def needs(self) -> Needs:
        return Needs(policy={self.role: LOGPS})

    def __call__(self, policy: ScoresByRole, reference: ScoresByRole) -> Loss:
        scores = policy[self.role]
        logps = scores.logps.detach()
        saturation = (self.beta1 * logps).exp()  # [N]
        importance = torch.ones_like(logps) if self.beta2 == 0 else (-logps.expm1()).clamp(min=0.0) ** self.beta2
        weight = saturation * importance
        return Loss.per_token(weight * scores.logps, scores, self.reduction, logp=scores.logps, weight=weight)
