"""What an objective is and what it returns: a loss and a weight a row; terms are objectives with weights.

Legend: B rows of a block, T tokens of a padded row, N kept positions of a block, flat over its rows,
K top tokens, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from lit_unlearn.types.needs import Needs
from lit_unlearn.types.scores import Scores, ScoresByRole

Reduction = Literal["seq_mean", "seq_sum", "token_mean"]
Values = Tensor | Callable[[], Tensor]
"""Of a loss; a function is called only where values are wanted, which pays where they read whole distributions."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Per-example losses and the weight each carries in the mean over rows, slices and ranks."""

    values: Tensor
    """[B] float32."""
    weights: Tensor
    """[B] float32, a function of the labels and the row weights only."""
    stats: Mapping[str, Tensor] = field(default_factory=dict)
    """[B] detached observations, averaged with the same weights and logged as ``train/<term>_<name>``."""

    @classmethod
    def per_sequence(cls, values: Tensor, scores: Scores, paired: Scores | None = None, **stats: Tensor) -> Loss:
        """[B] values, one weight each; a row without labels, here or in the role it is paired with, carries none."""
        weights = scores.row_weight * (scores.num_tokens > 0)
        if paired is not None:
            weights = weights * (paired.num_tokens > 0)
        return cls(values, weights, {name: stat.detach() for name, stat in stats.items()})

    @classmethod
    def per_token(
        cls,
        values: Values,
        scores: Scores,
        reduction: Reduction,
        over: Tensor | None = None,
        row: Tensor | None = None,
        **stats: Tensor,
    ) -> Loss:
        """Reduce [N] token values over the positions where ``over`` (default: the labelled ones) is True.

        ``row`` [M] names the rows of values at other positions than the scores' own, e.g. ``scores.hidden_row``;
        all of them count unless ``over`` says otherwise.
        ``seq_mean``: mean over a row's positions, then over rows. ``seq_sum``: sum over the positions, mean over
        rows. ``token_mean``: mean over all positions of all rows, so longer answers weigh more.
        ``stats`` are [N] too and are averaged over each row's labelled positions, whatever ``over`` is (of values at
        other positions: over those that count).
        """
        if over is None:
            over = scores.mask if row is None else torch.ones_like(row, dtype=torch.bool)
        counts = scores.sequence_sum(over.float(), row)  # [B]
        safe = counts.clamp(min=1.0)
        if callable(values):
            values = scores.logps.new_zeros(()) if scores.blank else values()
        sums = scores.sequence_sum(torch.where(over, values, 0.0), row)  # [B]
        row_values = sums if reduction == "seq_sum" else sums / safe
        weights = scores.row_weight * (counts if reduction == "token_mean" else (counts > 0).float())
        seen = scores.mask if row is None else over
        observed = scores.sequence_sum(seen.float(), row).clamp(min=1.0)  # [B]
        row_stats = {
            name: scores.sequence_sum(torch.where(seen, stat.detach(), 0.0), row) / observed
            for name, stat in stats.items()
        }
        return cls(row_values, weights, row_stats)


class Objective(Protocol):
    """A forget or retain term: scores in, per-example losses out. No model, no I/O, no state.

    Examples do not see each other and weights depend on the labels only, so a batch may be cut into any slices of
    rows (ranks, chunks of the vocabulary head) without changing a number. Before a step it is called on scores whose
    numbers are all 0, for the weights of all slices are needed before the gradient of the first.
    """

    @property
    def needs(self) -> Needs: ...

    def __call__(self, policy: ScoresByRole, reference: ScoresByRole) -> Loss: ...


@dataclass(frozen=True, slots=True)
class Term:
    """One named part of the training loss."""

    weight: float
    objective: Objective


Terms = Mapping[str, Term]


def union_of_needs(terms: Terms) -> Needs:
    """Everything the terms ask for, so that one forward serves all of them."""
    needs = Needs({})
    for term in terms.values():
        needs = needs | term.objective.needs
    return needs
