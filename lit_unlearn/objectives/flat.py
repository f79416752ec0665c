"""FLAT: f-divergence between template and forget answers (Wang et al., ICLR 2025, https://arxiv.org/abs/2410.11143)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from lit_unlearn.types import LOGPS, Loss, Needs, Role, Scores, ScoresByRole

Divergence = Literal["total_variation", "kl", "jensen_shannon", "pearson"]


@dataclass(frozen=True)
class FLAT:
    r"""``-g(P_alternate) + f*(g(P_forget))``, P the mean probability of an answer's tokens.

    g and f* are the output activation and the conjugate of the divergence (f-GAN, https://arxiv.org/abs/1606.00709,
    table 2). For total variation this is ``-tanh(P_alternate) / 2 + tanh(P_forget) / 2``. The authors' mean counts
    masked positions as 0, so it depends on the padding; this one is over the answer's tokens.
    """

    divergence: Divergence = "total_variation"

    @property
    def needs(self) -> Needs:
        return Needs(policy={Role.forget: LOGPS, Role.alternate: LOGPS})

    def __call__(self, policy: ScoresByRole, reference: ScoresByRole) -> Loss:
        template, forget = _mean_probability(policy[Role.alternate]), _mean_probability(policy[Role.forget])  # [B]
        values = _conjugate(self.divergence, forget) - _activation(self.divergence, template)
        scores = policy[Role.forget]
        logp = scores.sequence_logps / scores.num_tokens.clamp(min=1)
        return Loss.per_sequence(values, scores, policy[Role.alternate], logp=logp, template=template, forget=forget)


def _mean_probability(scores: Scores) -> Tensor:
    return scores.sequence_sum(scores.logps.exp() * scores.mask) / scores.num_tokens.clamp(min=1)


def _activation(divergence: Divergence, value: Tensor) -> Tensor:
    """g(v): onto the domain of the conjugate."""
    if divergence == "total_variation":
        return value.tanh() / 2
    if divergence == "jensen_shannon":
        return math.log(2) - F.softplus(-value)
    return value


def _conjugate(divergence: Divergence, value: Tensor) -> Tensor:
    """f*(g(v))."""
    activation = _activation(divergence, value)
    if divergence == "kl":
        return (activation - 1).exp()
    if divergence == "pearson":
        return activation**2 / 4 + activation
    if divergence == "jensen_shannon":
        return F.softplus(value) - math.log(2)  # -log(2 - exp(g(v)))
    return activation
