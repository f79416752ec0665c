"""PDU: logit flattening under a retain constraint (Entesari et al., 2025, https://arxiv.org/abs/2506.05314)."""

from dataclasses import dataclass

from lit_unlearn.types import Ask, Loss, Needs, Reduction, Role, ScoresByRole


@dataclass(frozen=True)
class PDU:
    r"""``(max_v z_v - mean_v z_v)^2`` at each position that predicts an answer token.

    OpenUnlearning's mask is off by one position; this is the corrected one. The constraint is a second term,
    ``constraint_nll``, whose weight the DualWeight callback moves.
    """

    role: Role = Role.forget
    reduction: Reduction = "token_mean"

    @property
    def needs(self) -> Needs:
        return Needs(policy={self.role: Ask(logits=True)})

    def __call__(self, policy: ScoresByRole, reference: ScoresByRole) -> Loss:
        scores = policy[self.role]
        values = lambda: (scores.logits.amax(-1) - scores.logits.mean(-1)) ** 2  # noqa: E731  # [N]
        return Loss.per_token(values, scores, self.reduction, logp=scores.logps)
