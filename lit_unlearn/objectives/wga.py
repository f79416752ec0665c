"""Weighted gradient ascent (Wang et al., ICLR 2025, https://arxiv.org/abs/2502.19301)."""

from dataclasses import dataclass

from lit_unlearn.types import LOGPS, Loss, Needs, Reduction, Role, ScoresByRole


@dataclass(frozen=True)
class WGA:
    r"""``sg[p_i^beta] log p_i`` on each token: tokens that are unlikely already are left alone."""

    role: Role = Role.forget
    beta: float = 1.0
    """Exponent; 0 is gradient ascent. The paper recommends 1."""
    reduction: Reduction = "token_mean"

    def __post_init__(self) -> None:
        if self.beta < 0:
            raise ValueError(f"beta={self.beta} must not be negative: rare tokens would be weighted up without a bound")

    @property
    def needs(self) -> Needs:
        return Needs(policy={self.role: LOGPS})

    def __call__(self, policy: ScoresByRole, reference: ScoresByRole) -> Loss:
        scores = policy[self.role]
        weight = (self.beta * scores.logps.detach()).exp()  # [N]
        return Loss.per_token(weight * scores.logps, scores, self.reduction, logp=scores.logps, weight=weight)
