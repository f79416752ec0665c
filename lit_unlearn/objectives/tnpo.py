"""Token-wise NPO and its weighted form (Wang et al., ICLR 2025, https://arxiv.org/abs/2502.19301)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_unlearn.types import LOGPS, Loss, Needs, Reduction, Role, ScoresByRole


@dataclass(frozen=True)
class TNPO:
    r"""``sg[w_i] log p_i``, ``w_i = 2 p_i^beta / (p_i^beta + o_i^beta + epsilon)``, o the reference's.

    NPO's weight, token by token (p and o are token probabilities). Where policy and reference agree it is 1 for
    epsilon = 0; the default epsilon leaves tokens alone whose p^beta is far below it (p below 0.05 at beta 4), whether
    or not they have been unlearned.
    """

    role: Role = Role.forget
    beta: float = 4.0
    """Inverse temperature; 4 in the authors' repository, 5 in the BS authors' fork."""
    epsilon: float = 1e-5
    """Added to the denominator, as in the authors' repository; 0 gives ``2 sigmoid(beta log(p / o))``."""
    reduction: Reduction = "token_mean"

    def __post_init__(self) -> None:
        if self.beta <= 0 or self.epsilon < 0:
            raise ValueError(f"beta={self.beta} must be above 0, epsilon={self.epsilon} not negative")

    @property
    def needs(self) -> Needs:
        return Needs(policy={self.role: LOGPS}, reference={self.role: LOGPS})

    def __call__(self, policy: ScoresByRole, reference: ScoresByRole) -> Loss:
        scores = policy[self.role]
        weight = self.weight(scores.logps.detach(), reference[self.role].logps)  # [N]
        return Loss.per_token(weight * scores.logps, scores, self.reduction, logp=scores.logps, weight=weight)

    def weight(self, logps: Tensor, reference_logps: Tensor) -> Tensor:
        """w_i [N] from label log-probs; written as a sigmoid, so that probabilities of 0 are no division by 0."""
        policy, start = self.beta * logps, self.beta * reference_logps
        if self.epsilon == 0:
            return 2 * torch.sigmoid(policy - start)
        floor = torch.full_like(start, self.epsilon).log()
        return 2 * torch.sigmoid(policy - torch.logaddexp(start, floor))
