"""The positions of a block that count, before and after the vocabulary head: the one place that shifts and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.autograd import Function

from lit_unlearn.engine.head import Head
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
    head: Head | None = None
    """hidden [n, D] -> logits [n, V]; None where no log-probs are formed."""
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

    def leaf(self, head: Head | None) -> States:
        """The same numbers cut off from the body, gathering their own gradients, behind another head."""
        cut = lambda tensor: tensor.detach().requires_grad_(tensor.requires_grad)  # noqa: E731
        return replace(
            self,
            hidden=None if self.hidden is None else cut(self.hidden),
            head=None if self.head is None else head,
            layers={layer: cut(output) for layer, output in self.layers.items()},
        )

    def gradients(self, whole: States) -> list[tuple[Tensor, Tensor]]:
        """(tensor of ``whole``, the gradient its leaf here has gathered)."""
        pairs = [(whole.layers[layer], leaf.grad) for layer, leaf in self.layers.items()]
        if whole.hidden is not None and self.hidden is not None:
            pairs.append((whole.hidden, self.hidden.grad))
        return [(tensor, gradient) for tensor, gradient in pairs if gradient is not None]


def _between(row: Tensor, first: int, last: int) -> slice:
    """Positions whose row lies in [first, last), of ascending rows."""
    return slice(*torch.searchsorted(row, torch.tensor([first, last], device=row.device)).tolist())


StatesByRole = Mapping[Role, States]


def kept_positions(rows: Rows, attended: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(row [N], position [N], label that follows [N]) of the attended positions that predict a label, or of all."""
    following = torch.full_like(rows.labels, IGNORE_INDEX)
    following[:, :-1] = rows.labels[:, 1:]
    there = rows.attention_mask.bool()  # not so before a row that is padded on the left, where nothing is predicted
    kept = there if attended else there & (following != IGNORE_INDEX)
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
    logits = states.head(states.hidden)  # [n, V]
    if ask.logits:  # they outlive this function, so their buffer cannot serve twice
        log_z = logits.logsumexp(-1)  # [n]
        logps = logits.gather(-1, labels[:, None]).squeeze(-1) - log_z
        top_logits, top_ids = logits.topk(min(ask.top_k, logits.shape[-1]), dim=-1)
        top_logps = top_logits - log_z[:, None]
        log_pi = logits - log_z[:, None] if ask.entropy else logits  # [n, V]
        entropy = -(log_pi.exp() * log_pi).sum(-1) if ask.entropy else log_z  # log_z - <pi, logits> would cancel
        extras["logits"] = logits
    else:
        logps, top_logps, top_ids, entropy = Statistics.apply(logits, labels, ask.top_k, ask.entropy)  # type: ignore[misc]
    if ask.top_k:
        extras |= {"topk_logps": top_logps, "topk_ids": top_ids}
    if ask.entropy:
        extras["entropy"] = entropy
    return Scores(torch.where(mask, logps, 0.0), *common, extras)


class Statistics(Function):
    """What objectives read off the logits, in one buffer: they become probabilities, then their own gradient.

    The logits must belong to nobody else. With z the logits of a position, s(z) their log-sum-exp and pi the softmax:
    ``dl/dz = onehot(y) - pi`` of a log-prob, ``-pi (log pi + H)`` of the entropy H.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, top_k: int, entropy: bool):
        """[n, V], [n] -> [n] log-probs of the labels, [n, K] largest log-probs, [n, K] their ids, [n] entropy or 0."""
        label_logits = logits.gather(-1, labels[:, None]).squeeze(-1)
        top_logits, top_ids = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
        peak = logits.amax(-1)  # [n]
        mass = logits.sub_(peak[:, None]).exp_()  # [n, V] exp(z - max)
        total = mass.sum(-1)
        log_total = total.log()
        spread = log_total - torch.xlogy(mass, mass).sum(-1) / total if entropy else torch.zeros_like(total)
        ctx.mass, ctx.total, ctx.spread = mass, total, spread if entropy else None
        ctx.save_for_backward(labels, top_ids)
        ctx.mark_non_differentiable(top_ids)
        logps = label_logits - peak - log_total  # in this order: peak + log_total would round at the size of the peak
        return logps, top_logits - peak[:, None] - log_total[:, None], top_ids, spread

    @staticmethod
    def backward(ctx, of_labels: Tensor, of_top: Tensor, _, of_entropy: Tensor):
        labels, top_ids = ctx.saved_tensors
        mass, total = ctx.mass, ctx.total
        ctx.mass = None  # the buffer serves once
        share = of_labels + of_top.sum(-1)  # [n] everything that is less log_z
        if ctx.spread is None:
            gradient = mass.mul_((-share / total)[:, None])
        else:
            log_pi = mass.log().sub_(total.log()[:, None]).clamp_(min=-200.0)  # a pi of 0 takes part in nothing
            factor = log_pi.add_(ctx.spread[:, None]).mul_(of_entropy[:, None]).add_(share[:, None])
            gradient = mass.mul_(factor).div_(-total[:, None])
        gradient.scatter_add_(-1, labels[:, None], of_labels[:, None])
        return gradient.scatter_add_(-1, top_ids, of_top), None, None, None


def label_states(rows: Rows, ask: Ask, width: int) -> States:
    """What is known of a block before any forward; ``width``: of the outputs of blocks, which are 0 here."""
    row, _, labels = kept_positions(rows, ask.attended) if ask.logps else no_positions(rows)
    at_row, _ = (rows.labels != IGNORE_INDEX).nonzero(as_tuple=True)
    nothing = torch.zeros((), device=labels.device).expand(len(at_row), width)
    return States(labels, row, row_weights(rows), layers=dict.fromkeys(ask.hidden_layers, nothing), layer_row=at_row)


def blank_scores(states: States, ask: Ask, vocabulary: int) -> Scores:
    """Scores of which only the labels are real, every number 0: enough for the weights of a loss."""
    scores = scores_of(states, ask)
    shape, zeros = states.labels.shape, scores.logps
    extras = dict(scores.extras)
    if ask.top_k or ask.logits:
        top = zeros.new_zeros(*shape, min(ask.top_k, vocabulary))
        extras |= {"topk_logps": top, "topk_ids": top.long()}
        if ask.logits:
            extras["logits"] = zeros.new_zeros(()).expand(*shape, vocabulary)  # of one element
    return replace(scores, extras=extras | {"entropy": zeros}, blank=True)


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
