"""CE-U: cross-entropy unlearning (Yang, 2025, https://arxiv.org/abs/2503.01224)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_unlearn.types import Ask, Loss, Needs, Reduction, Role, ScoresByRole


@dataclass(frozen=True)
class CEU:
    r"""``CE(sg softmax(z with z_y = -inf), softmax(z))``: towards the policy's own distribution without the label."""

    role: Role = Role.forget
    ignore_first_n_answer_tokens: int = 1
    """Leave the first n tokens of each answer alone, so that the model still starts to answer; 1 in the source."""
    reduction: Reduction = "token_mean"

    def __post_init__(self) -> None:
        if self.ignore_first_n_answer_tokens < 0:
            raise ValueError(f"ignore_first_n_answer_tokens={self.ignore_first_n_answer_tokens} must not be negative")

    @property
    def needs(self) -> Needs:
        return Needs(policy={self.role: Ask(logits=True)})

    def __call__(self, policy: ScoresByRole, reference: ScoresByRole) -> Loss:
        scores = policy[self.role]

        def values() -> Tensor:  # [N]
            log_pi = scores.logits.log_softmax(-1)  # [N, V]
            without = scores.logits.detach().scatter(-1, scores.labels[:, None], -torch.inf).softmax(-1)  # [N, V]
            return -(without * log_pi).sum(-1)

        over = scores.mask & (scores.answer_index >= self.ignore_first_n_answer_tokens)
        return Loss.per_token(values, scores, self.reduction, over=over, logp=scores.logps)
