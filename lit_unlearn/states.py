"""The positions of a block that count, before and after the vocabulary head: the one place that shifts and masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_unlearn.types import IGNORE_INDEX, LOGPS, Ask, Role, Rows, Scores


@dataclass(frozen=True, slots=True)
class States:
    """The kept positions of one role before the vocabulary head, or with log-probs known already."""

    labels: Tensor
    """[N] the token that follows, IGNORE_INDEX where none is labelled."""
    row: Tensor
    """[N] ascending."""
    row_weight: Tensor
    """[B]"""
    hidden: Tensor | None = None
    """[N, D] after the final norm; None where ``logps`` are known."""
    logps: Tensor | None = None
    """[N] float32."""
    head: Callable[[Tensor], Tensor] | None = None
    """hidden [n, D] -> logits [n, V]."""

    def slice(self, first: int, last: int) -> States:
        """Rows first..last-1."""
        begin, end = torch.searchsorted(self.row, torch.tensor([first, last], device=self.row.device)).tolist()
        cut = lambda tensor: None if tensor is None else tensor[begin:end]  # noqa: E731
        return States(
            self.labels[begin:end],
            self.row[begin:end] - first,
            self.row_weight[first:last],
            cut(self.hidden),
            cut(self.logps),
            self.head,
        )


StatesByRole = Mapping[Role, States]


def kept_positions(rows: Rows, attended: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(row [N], position [N], label that follows [N]) of the positions that predict a label, or of all attended."""
    following = torch.full_like(rows.labels, IGNORE_INDEX)
    following[:, :-1] = rows.labels[:, 1:]
    kept = (rows.attention_mask.bool() | (following != IGNORE_INDEX)) if attended else following != IGNORE_INDEX
    row, position = kept.nonzero(as_tuple=True)
    return row, position, following[row, position]


def known_states(rows: Rows) -> States:
    """The reference's answer log-probs that travel with the rows, in the engine's order of positions."""
    assert rows.reference_logps is not None
    row, position, labels = kept_positions(rows, attended=False)
    return States(labels, row, row_weights(rows), logps=rows.reference_logps[row, position + 1])


def scores_of(states: States, ask: Ask) -> Scores:
    """Head and log-softmax statistics of one slice, in float32."""
    mask, labels = states.labels != IGNORE_INDEX, states.labels.clamp(min=0)
    common = (mask, labels, states.row, states.row_weight)
    if states.hidden is None or states.head is None:
        assert states.logps is not None
        assert ask == LOGPS
        return Scores(states.logps, *common)
    logits = states.head(states.hidden).float()  # [n, V]
    log_z = logits.logsumexp(-1)  # [n]
    logps = torch.where(mask, logits.gather(-1, labels[:, None]).squeeze(-1) - log_z, 0.0)
    extras = {}
    if ask.top_k:
        values, ids = logits.topk(min(ask.top_k, logits.shape[-1]), dim=-1)
        extras |= {"topk_logps": values - log_z[:, None], "topk_ids": ids}
    if ask.entropy:
        extras["entropy"] = log_z - ((logits - log_z[:, None]).exp() * logits).sum(-1)
    if ask.logits:
        extras["logits"] = logits
    return Scores(logps, *common, extras)


def cut_rows(counts: Sequence[int], budget: int) -> list[tuple[int, int]]:
    """Ranges of consecutive rows with at most ``budget`` positions each, one row at least."""
    cuts, first, held = [], 0, 0
    for index, count in enumerate(counts):
        if index > first and held + count > budget:
            cuts.append((first, index))
            first, held = index, 0
        held += count
    return [*cuts, (first, len(counts))]


def row_weights(rows: Rows) -> Tensor:
    if rows.weight is not None:
        return rows.weight
    return torch.ones(len(rows.input_ids), dtype=torch.float32, device=rows.input_ids.device)
