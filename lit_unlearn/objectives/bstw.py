"""BS-T under NPO's weight: BSTW of the BS authors' code (https://arxiv.org/abs/2510.19422)."""

from dataclasses import dataclass

import torch

from lit_unlearn.objectives.bst import BST
from lit_unlearn.types import LOGPS, Loss, Needs, Reduction, ScoresByRole


@dataclass(frozen=True)
class BSTW(BST):
    r"""``sg[w] <t, log pi>`` with ``w = 2 sigmoid(beta log(pi(y|x) / pi_ref(y|x)))`` of the whole answer.

    Answers that have become unlikely are let go, as in NPO.
    """

    beta: float = 0.1
    """Inverse temperature of the weight."""
    reduction: Reduction = "seq_sum"
    """The authors' code sums over tokens here."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta <= 0:
            raise ValueError(f"beta={self.beta} must be above 0; for its limit beta -> 0 use bst")

    @property
    def needs(self) -> Needs:
        return Needs(policy=super().needs.policy, reference={self.role: LOGPS})

    def __call__(self, policy: ScoresByRole, reference: ScoresByRole) -> Loss:
        scores = policy[self.role]
        log_ratio = scores.sequence_logps.detach() - reference[self.role].sequence_logps  # [B]
        weight = 2 * torch.sigmoid(self.beta * log_ratio)  # [B]
        values, stats = self.token_values(scores)
        values = values * weight[scores.row]
        return Loss.per_token(values, scores, self.reduction, logp=scores.logps, weight=weight[scores.row], **stats)
