"""The retain constraint of PDU: negative log-likelihood less what it may be (https://arxiv.org/abs/2506.05314)."""

from dataclasses import dataclass

from lit_unlearn.types import LOGPS, Loss, Needs, Reduction, Role, ScoresByRole


@dataclass(frozen=True)
class ConstraintNLL:
    r"""``-log pi(y | x) - eps``: above 0 the constraint is violated and its dual weight grows."""

    eps: float
    """Allowed retain loss, in nats per token; 0.3 for TOFU in OpenUnlearning's README."""
    role: Role = Role.retain
    reduction: Reduction = "token_mean"

    def __post_init__(self) -> None:
        if self.eps < 0:
            raise ValueError(f"eps={self.eps} must not be negative: no negative log-likelihood meets it")

    @property
    def needs(self) -> Needs:
        return Needs(policy={self.role: LOGPS})

    def __call__(self, policy: ScoresByRole, reference: ScoresByRole) -> Loss:
        scores = policy[self.role]
        return Loss.per_token(-scores.logps - self.eps, scores, self.reduction, logp=scores.logps)
