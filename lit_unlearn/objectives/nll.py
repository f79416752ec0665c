"""Negative log-likelihood: the plain retain term, and the loss of finetuning."""

from dataclasses import dataclass

from lit_unlearn.types import LOGPS, Loss, Needs, Reduction, Role, ScoresByRole


@dataclass(frozen=True)
class NLL:
    r"""``-log pi(y | x)`` on each answer token."""

    role: Role = Role.retain
    reduction: Reduction = "token_mean"
    """How tokens are averaged; the mean over all answer tokens of the batch is Hugging Face's loss."""

    @property
    def needs(self) -> Needs:
        return Needs(policy={self.role: LOGPS})

    def __call__(self, policy: ScoresByRole, reference: ScoresByRole) -> Loss:
        scores = policy[self.role]
        return Loss.per_token(-scores.logps, scores, self.reduction, logp=scores.logps)
