"""UNDIAL: self-distillation to adjusted logits (Dong et al., 2024, https://arxiv.org/abs/2402.10052)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_unlearn.types import Ask, Loss, Needs, Reduction, Role, ScoresByRole


@dataclass(frozen=True)
class UNDIAL:
    r"""``CE(softmax(z_ref - beta onehot(y)), softmax(z))`` at each answer position.

    OpenUnlearning's code averages over prompt and padding too, and there lowers the logit of token V - 100, because
    the label -100 is used as an index; neither is done here.
    """

    role: Role = Role.forget
    beta: float = 10.0
    """How far the target's logit is lowered in the teacher."""
    reduction: Reduction = "token_mean"

    def __post_init__(self) -> None:
        if self.beta < 0:
            raise ValueError(f"beta={self.beta} must not be negative: the answer would be taught instead")

    @property
    def needs(self) -> Needs:
        ask = {self.role: Ask(logits=True)}
        return Needs(policy=ask, reference=ask)

    def __call__(self, policy: ScoresByRole, reference: ScoresByRole) -> Loss:
        scores = policy[self.role]

        def values() -> Tensor:  # [N]
            lowered = torch.full_like(scores.logps, -self.beta)[:, None]
            teacher = reference[self.role].logits.scatter_add(-1, scores.labels[:, None], lowered).softmax(-1)  # [N, V]
            return -(teacher * scores.logits.log_softmax(-1)).sum(-1)

        return Loss.per_token(values, scores, self.reduction, logp=scores.logps)
