"""KL divergence to the reference, the distribution-level retain term (https://arxiv.org/abs/2401.06121, section 4)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_unlearn.types import Ask, Loss, Needs, Reduction, Role, ScoresByRole


@dataclass(frozen=True)
class KL:
    r"""``sum_v p(v) (log p(v) - log q(v))`` at each position, with p and q the reference and the policy."""

    role: Role = Role.retain
    direction: Literal["forward", "reverse"] = "forward"
    """``forward``: KL(reference || policy), as TOFU and OpenUnlearning; ``reverse``: KL(policy || reference)."""
    positions: Literal["answer", "attended"] = "answer"
    """Where: positions that predict an answer token, or every attended one, the prompt's included. OpenUnlearning
    averages over padding too, which makes the value depend on the batch; that is not offered."""
    reduction: Reduction = "token_mean"

    @property
    def needs(self) -> Needs:
        ask = Ask(logits=True, attended=self.positions == "attended")
        return Needs(policy={self.role: ask}, reference={self.role: ask})

    def __call__(self, policy: ScoresByRole, reference: ScoresByRole) -> Loss:
        scores = policy[self.role]

        def divergence() -> Tensor:  # [N]
            log_q = scores.logits.log_softmax(-1)  # [N, V]
            log_p = reference[self.role].logits.log_softmax(-1)  # [N, V]
            p, q = (log_q, log_p) if self.direction == "reverse" else (log_p, log_q)
            return (p.exp() * (p - q)).sum(-1)

        over = torch.ones_like(scores.mask) if self.positions == "attended" else scores.mask
        return Loss.per_token(divergence, scores, self.reduction, over=over, logp=scores.logps)
