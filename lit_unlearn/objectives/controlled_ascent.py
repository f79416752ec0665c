"""Gradient ascent under control: the tricks of UWC (Wang et al., ICLR 2025, https://arxiv.org/abs/2406.09179)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_unlearn.types import Ask, Loss, Needs, Reduction, Role, Scores, ScoresByRole


@dataclass(frozen=True)
class ControlledAscent:
    r"""``log softmax(z / temperature)_y`` on the tokens that are chosen; all switches off is gradient ascent."""

    role: Role = Role.forget
    temperature: float = 1.0
    """Temperature scaling (TS): divides the logits; the authors name 2.0. 1: off."""
    keep_fraction: float = 1.0
    """Loss selection (LS): of each answer, keep this share of its tokens, those with the smallest cross-entropy,
    i.e. the most likely; the authors name 0.8. 1: off. At least one token is kept."""
    min_probability: float = 0.0
    """Likelihood capping: tokens at or below this probability are left alone. 0: off."""
    reduction: Reduction = "token_mean"

    def __post_init__(self) -> None:
        if self.temperature <= 0 or not 0 < self.keep_fraction <= 1 or not 0 <= self.min_probability < 1:
            raise ValueError(
                f"temperature={self.temperature} must be above 0, keep_fraction={self.keep_fraction} in (0, 1], "
                f"min_probability={self.min_probability} in [0, 1)"
            )

    @property
    def needs(self) -> Needs:
        return Needs(policy={self.role: Ask(logits=self.temperature != 1)})

    def __call__(self, policy: ScoresByRole, reference: ScoresByRole) -> Loss:
        scores = policy[self.role]

        def values() -> Tensor:  # [N]
            chosen = scores.logps
            if self.temperature != 1:
                tempered = (scores.logits / self.temperature).log_softmax(-1)  # [N, V]
                chosen = tempered.gather(-1, scores.labels[:, None]).squeeze(-1)
            if self.min_probability > 0:  # a capped token still counts in the mean: weights know the labels only
                chosen = torch.where(scores.logps.detach() > math.log(self.min_probability), chosen, 0.0)
            return chosen

        return Loss.per_token(values, scores, self.reduction, over=self._most_likely(scores), logp=scores.logps)

    def _most_likely(self, scores: Scores) -> Tensor:
        """[N] bool, the ``keep_fraction`` of each answer's tokens with the largest log-prob."""
        if self.keep_fraction == 1:
            return scores.mask
        logps = torch.where(scores.mask, scores.logps.detach(), -torch.inf)
        order = logps.argsort(descending=True, stable=True)
        order = order[scores.row[order].argsort(stable=True)]  # by row, within a row by falling log-prob
        sizes = torch.bincount(scores.row, minlength=len(scores.row_weight))
        begins = sizes.cumsum(0) - sizes
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device) - begins[scores.row[order]]
        quota = (self.keep_fraction * scores.num_tokens).floor().clamp(min=1)  # [B]
        return scores.mask & (rank < quota[scores.row])
