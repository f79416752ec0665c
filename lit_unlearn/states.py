"""The positions of a block that count, before and after the vocabulary head: the one place that shifts and masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_unlearn.types import IGNORE_INDEX, Ask, Role, Rows, Scores


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
    layers: Mapping[int, Tensor] = field(default_factory=dict)
    """[M, D] outputs of decoder blocks at the labelled positions."""
    layer_row: Tensor | None = None
    """[M] ascending."""

    def slice(self, first: int, last: int) -> States:
        """Rows first..last-1."""
        kept = _between(self.row, first, last)
        layered = slice(0, 0) if self.layer_row is None else _between(self.layer_row, first, last)
        return States(
            self.labels[kept],
            self.row[kept] - first,
            self.row_weight[first:last],
            None if self.hidden is None else self.hidden[kept],
            None if self.logps is None else self.logps[kept],
            self.head,
            {layer: hidden[layered] for layer, hidden in self.layers.items()},
            None if self.layer_row is None else self.layer_row[layered] - first,
        )


def _between(row: Tensor, first: int, last: int) -> slice:
    """Positions whose row lies in [first, last), of ascending rows."""
    return slice(*torch.searchsorted(row, torch.tensor([first, last], device=row.device)).tolist())


StatesByRole = Mapping[Role, States]


def kept_positions(rows: Rows, attended: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(row [N], position [N], label that follows [N]) of the positions that predict a label, or of all attended."""
    following = torch.full_like(rows.labels, IGNORE_INDEX)
    following[:, :-1] = rows.labels[:, 1:]
    kept = (rows.attention_mask.bool() | (following != IGNORE_INDEX)) if attended else following != IGNORE_INDEX
    row, position = kept.nonzero(as_tuple=True)
    return row, position, following[row, position]


def no_positions(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Of a role whose log-probs nobody wants."""
    nothing = rows.labels.new_zeros(0)
    return nothing, nothing, nothing


def known_states(rows: Rows) -> States:
    """The reference's answer log-probs that travel with the rows, in the engine's order of positions."""
    assert rows.reference_logps is not None
    row, position, labels = kept_positions(rows, attended=False)
    return States(labels, row, row_weights(rows), logps=rows.reference_logps[row, position + 1])


def scores_of(states: States, ask: Ask) -> Scores:
    """Head and log-softmax statistics of one slice, in float32."""
    mask, labels = states.labels != IGNORE_INDEX, states.labels.clamp(min=0)
    common = (mask, labels, states.row, states.row_weight)
    extras = {f"hidden_{layer}": states.layers[layer] for layer in ask.hidden_layers}
    if states.layer_row is not None:
        extras["hidden_row"] = states.layer_row
    if states.head is None:  # log-probs known already, or not wanted
        logps = torch.zeros_like(labels, dtype=torch.float32) if states.logps is None else states.logps
        return Scores(logps, *common, extras)
    assert states.hidden is not None
    logits = states.head(states.hidden).float()  # [n, V]
    log_z = logits.logsumexp(-1)  # [n]
    logps = torch.where(mask, logits.gather(-1, labels[:, None]).squeeze(-1) - log_z, 0.0)
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
