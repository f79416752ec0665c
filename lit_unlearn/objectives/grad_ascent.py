"""Gradient ascent on the forget rows, the oldest unlearning loss (https://arxiv.org/abs/2401.06121, section 4)."""

from dataclasses import dataclass

from lit_unlearn.types import LOGPS, Loss, Needs, Reduction, Role, ScoresByRole


@dataclass(frozen=True)
class GradAscent:
    r"""``log pi(y | x)``, minimised: the answer's log-prob goes down without a bound."""

    role: Role = Role.forget
    reduction: Reduction = "token_mean"
    """How tokens are averaged; OpenUnlearning takes the mean over all answer tokens of the batch."""

    @property
    def needs(self) -> Needs:
        return Needs(policy={self.role: LOGPS})

    def __call__(self, policy: ScoresByRole, reference: ScoresByRole) -> Loss:
        scores = policy[self.role]
        return Loss.per_token(scores.logps, scores, self.reduction, logp=scores.logps)
