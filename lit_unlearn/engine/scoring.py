"""The scoring engine: one forward of the body over all roles, then head, losses and their gradients slice by slice."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from transformers import PreTrainedModel

from lit_unlearn.engine.body import run_body
from lit_unlearn.engine.head import Head
from lit_unlearn.engine.losses import Sums, add_up, groups_of, logits_copies, losses_of, means_of, weights_of
from lit_unlearn.engine.packing import packed, padded
from lit_unlearn.engine.states import (
    States,
    StatesByRole,
    cut_rows,
    kept_positions,
    no_positions,
    row_weights,
    scores_of,
)
from lit_unlearn.engine.trial import can_pack
from lit_unlearn.parallel import all_reduce_sum, world_size
from lit_unlearn.types import IGNORE_INDEX, Ask, Batch, Role, Scores, ScoresByRole, Terms, union_of_needs


class Step(NamedTuple):
    """The loss of one batch over the rows of all ranks; a tuple, whose tensors ZeRO-3 finds to put its hooks on."""

    loss: Tensor
    """Differentiable; gradients averaged over ranks (DDP, ZeRO, FSDP) are those of one process with all rows. Its
    value is this rank's share."""
    apart: Tensor | None
    """The same of the terms that were asked for apart; ``loss`` holds them too."""
    losses: dict[str, float]
    """Mean of each term, unweighted."""
    stats: dict[str, float]
    """``<term>_<name>`` -> mean, with the weights of the term's loss."""
    each: dict[str, Tensor]
    """The weighted terms one by one, differentiable like ``loss``, which is formed as if nobody had asked."""


class ScoringEngine(nn.Module):
    """Owns a causal LM; its forward does body, head and losses, so that sharding can wrap it as the root module."""

    def __init__(self, model: PreTrainedModel, logits_mib: int = 256, round_to: int = 1) -> None:
        """``logits_mib``: float32 logits alive at once, in MiB; a slice holds at least one row.

        ``round_to``: fill packed rows up to multiples of it, so that compiled blocks meet few shapes.

        Raises:
            UserError: what the model says of its tokens cannot be followed.
        """
        super().__init__()
        self.model = model
        self.logits_mib, self.round_to = logits_mib, round_to
        self.packs = can_pack(model)

    def forward(
        self,
        batch: Batch,
        terms: Terms,
        reference: StatesByRole,
        weights: Mapping[str, float] | None = None,
        apart: Collection[str] = (),
        each: bool = False,
        overall: Tensor | None = None,
    ) -> Step:
        """Weighted sum of the terms' means over the rows of all ranks; every rank must call it.

        ``weights``: of the terms, in place of their own. ``apart``: terms whose part of the loss is wanted by itself.
        ``each``: every term is wanted by itself too, at the price of the head's work a second time. ``overall``: where
        this is one micro-batch of a step, ``weigh`` of them all, over all ranks: then its losses, statistics and
        gradients are its share of the step's, which they add up to.
        The gradient of a slice is formed while its logits are there, up to the hidden states and into the head's own
        buffer; the backward takes over from the hidden states.
        """
        policy = self.states(batch, union_of_needs(terms).policy)
        local = self.weigh(batch, terms)
        overall = all_reduce_sum(local) if overall is None else overall
        scale = world_size() / torch.where(overall > 0, overall, 1.0)
        weights = weights or {name: term.weight for name, term in terms.items()}
        factors = {name: weights[name] * factor for name, factor in zip(terms, scale, strict=True)}
        sums: Sums = {}
        rest, chosen = ({n: term for n, term in terms.items() if (n in apart) == wanted} for wanted in (False, True))
        loss, loss_apart = self._part(rest, policy, reference, factors, sums, keep=bool(chosen)), None
        if chosen:  # somebody will ask for the gradient of these, then for that of all
            loss_apart = self._part(chosen, policy, reference, factors, sums, keep=True)
            loss = loss + loss_apart
        means = means_of({name: sums[name] for name in terms}, overall, local)
        losses = {name: means[f"{name}/loss"] for name in terms}
        stats = {key.replace("/", "_"): value for key, value in means.items() if not key.endswith("/loss")}
        alone = (
            {n: self._part({n: term}, policy, reference, factors, {}, keep=False) for n, term in terms.items()}
            if each
            else {}
        )
        return Step(loss, loss_apart, losses, stats, alone)

    def weigh(self, batch: Batch, terms: Terms) -> Tensor:
        """[terms] what the weights of each term's losses add up to on this rank's rows; no forward is needed."""
        config = self.model.config.get_text_config()
        return weights_of(terms, batch, config.hidden_size, config.vocab_size, self._plan)

    def states(self, batch: Batch, asks: Mapping[Role, Ask]) -> dict[Role, States]:
        """One forward of the body over all asked roles, packed; only kept positions survive."""
        blocks = [batch[role] for role in asks]
        if not blocks:
            return {}
        length = max(rows.input_ids.shape[1] for rows in blocks)
        stack = lambda name: torch.cat([_pad_right(getattr(rows, name), length) for rows in blocks])  # noqa: E731
        input_ids, attention_mask = stack("input_ids"), stack("attention_mask")
        rows_in = packed(input_ids, attention_mask, self.round_to) if self.packs else padded(input_ids, attention_mask)
        layers = {layer for ask in asks.values() for layer in ask.hidden_layers}
        final = any(ask.logps for ask in asks.values())
        hidden, outputs = run_body(self.model, rows_in.inputs, layers, final)
        head = Head.of(self.model, torch.is_grad_enabled()) if final else None
        states, offset = {}, 0
        for rows, (role, ask) in zip(blocks, asks.items(), strict=True):
            index = rows_in.index[offset : offset + len(rows.input_ids)]  # [B, T]
            row, position, labels = kept_positions(rows, ask.attended) if ask.logps else no_positions(rows)
            kept = None if hidden is None else hidden.index_select(0, index[row, position])  # [N, D]
            at_row, at = (rows.labels != IGNORE_INDEX).nonzero(as_tuple=True)  # [M] the labels' own positions
            wanted = {layer: outputs[layer].index_select(0, index[at_row, at]) for layer in ask.hidden_layers}
            own_head = head if ask.logps else None
            states[role] = States(labels, row, row_weights(rows), kept, None, own_head, wanted, at_row)
            offset += len(rows.input_ids)
        return states

    def score(self, batch: Batch, asks: Mapping[Role, Ask]) -> ScoresByRole:
        """Scores of whole blocks, for probes and the reference; full logits are not kept, so they cannot be asked."""
        if any(ask.logits for ask in asks.values()):
            raise ValueError("score() keeps no logits; read them inside an objective")
        scores = {}
        for role, states in self.states(batch, asks).items():
            pieces = [scores_of(states.slice(*rows), asks[role]) for rows in self._plan([states])]
            join = lambda parts: torch.cat(list(parts))  # noqa: E731
            scores[role] = Scores(
                join(piece.logps for piece in pieces),
                states.labels != IGNORE_INDEX,
                states.labels.clamp(min=0),
                states.row,
                states.row_weight,
                {name: join(piece.extras[name] for piece in pieces) for name in pieces[0].extras},
            )
        return scores

    def _part(
        self,
        terms: Terms,
        policy: StatesByRole,
        reference: StatesByRole,
        factors: Mapping[str, Tensor],
        sums: Sums,
        keep: bool,
    ) -> Tensor:
        """Sum of the terms times their factors, with its gradient; what each term adds up to goes into ``sums``."""
        learn = torch.is_grad_enabled()
        total = torch.zeros((), device=self.model.device)
        head = next((states.head.again() for states in policy.values() if states.head is not None), None)
        leaves = {role: states.leaf(head) for role, states in policy.items()}
        for names in groups_of(terms):
            group = {name: terms[name] for name in names}
            roles = {role for name in names for role in terms[name].objective.needs.policy}
            for cut in self._plan([leaves[role] for role in roles], logits_copies(group)):
                parts = [{r: states[r].slice(*cut) for r in roles if r in states} for states in (leaves, reference)]
                with torch.autocast(total.device.type, enabled=False):
                    losses = losses_of(group, *parts)
                    value = torch.stack([factors[n] * (x.weights * x.values).sum() for n, x in losses.items()]).sum()
                    if learn and value.requires_grad:
                        value.backward()
                total += value.detach()
                add_up(sums, losses)
        pairs = [pair for role, leaf in leaves.items() for pair in leaf.gradients(policy[role])]
        if head is not None:
            weights = dict(head.shell.named_parameters())
            pairs += [(weights[name], gradient) for name, gradient in head.gradients().items()]
        return _Handed.apply(total, keep, [g for _, g in pairs], *(tensor for tensor, _ in pairs)) if pairs else total  # type: ignore[return-value]

    def _plan(self, roles: Sequence[States], copies: int = 1) -> list[tuple[int, int]]:
        """Row ranges, the same for all roles, whose float32 logits fit the budget."""
        num_rows = {len(states.row_weight) for states in roles}
        if len(num_rows) != 1:
            raise ValueError(f"a term pairs roles row by row, but they hold {sorted(num_rows)} rows")
        total = num_rows.pop()
        counts = sum(torch.bincount(states.row, minlength=total) for states in roles)
        assert isinstance(counts, Tensor)
        budget = self.logits_mib * 2**20 // (4 * copies * self.model.config.get_text_config().vocab_size)
        return cut_rows(counts.tolist(), budget)


class _Handed(Function):
    """A value whose gradients are known already."""

    @staticmethod
    def forward(ctx, value: Tensor, keep: bool, gradients: list[Tensor], *inputs: Tensor):
        ctx.keep, ctx.gradients = keep, gradients
        return value.clone()

    @staticmethod
    def backward(ctx, factor: Tensor):
        gradients = ctx.gradients
        if not ctx.keep:
            ctx.gradients = None  # the buffers are handed on, not copied
            if gradients is None:
                raise RuntimeError("the gradient of a step's loss can be taken once; ask for terms apart")
        return None, None, None, *(g * factor if ctx.keep else g.mul_(factor) for g in gradients)


def _pad_right(block: Tensor, length: int) -> Tensor:
    return nn.functional.pad(block, (0, length - block.shape[1]))
