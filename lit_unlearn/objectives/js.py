"""Jensen-Shannon divergence to the reference: JensUn's retain term (https://arxiv.org/abs/2509.02820)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_unlearn.types import Ask, Loss, Needs, Reduction, Role, ScoresByRole


@dataclass(frozen=True)
class JS:
    r"""``KL(p, m) / 2 + KL(q, m) / 2`` with ``m = (p + q) / 2``, p the reference and q the policy; at most log 2."""

    role: Role = Role.retain
    reduction: Reduction = "token_mean"

    @property
    def needs(self) -> Needs:
        ask = {self.role: Ask(logits=True)}
        return Needs(policy=ask, reference=ask)

    def __call__(self, policy: ScoresByRole, reference: ScoresByRole) -> Loss:
        scores = policy[self.role]

        def values() -> Tensor:  # [N]
            log_q = scores.logits.log_softmax(-1)  # [N, V]
            log_p = reference[self.role].logits.log_softmax(-1)  # [N, V]
            log_m = torch.logaddexp(log_p, log_q) - math.log(2)
            return (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(-1) / 2

        return Loss.per_token(values, scores, self.reduction, logp=scores.logps)
