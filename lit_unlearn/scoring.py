"""The scoring engine: one forward of the body over all roles, then head, losses and their gradients slice by slice."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import Function
from transformers import PreTrainedModel

from lit_unlearn.attention import take_part
from lit_unlearn.body import run_body
from lit_unlearn.head import Head
from lit_unlearn.packing import packed, padded
from lit_unlearn.parallel import all_reduce_sum, world_size
from lit_unlearn.states import (
    States,
    StatesByRole,
    blank_scores,
    cut_rows,
    kept_positions,
    no_positions,
    row_weights,
    scores_of,
)
from lit_unlearn.types import IGNORE_INDEX, Ask, Batch, Loss, Role, Scores, ScoresByRole, Terms, union_of_needs

LOGITS_COPIES = 6
"""Buffers of a slice's logits that an objective over full distributions may hold at once, of policy and reference."""


@dataclass(frozen=True, slots=True)
class Step:
    """The loss of one batch over the rows of all ranks."""

    loss: Tensor
    """Differentiable; gradients averaged over ranks (DDP, ZeRO, FSDP) are those of one process with all rows. Its
    value is this rank's share."""
    apart: Tensor | None
    """The same of the terms that were asked for apart; ``loss`` holds them too."""
    losses: dict[str, float]
    """Mean of each term, unweighted."""
    stats: dict[str, float]
    """``<term>_<name>`` -> mean, with the weights of the term's loss."""


class ScoringEngine(nn.Module):
    """Owns a causal LM; its forward does body, head and losses, so that sharding can wrap it as the root module."""

    def __init__(self, model: PreTrainedModel, logits_mib: int = 256, round_to: int = 1) -> None:
        """``logits_mib``: float32 logits alive at once, in MiB; a slice holds at least one row.

        ``round_to``: fill packed rows up to multiples of it, so that compiled blocks meet few shapes.
        """
        super().__init__()
        self.model = model
        self.logits_mib, self.round_to = logits_mib, round_to
        self.packs = take_part(model)

    def forward(
        self,
        batch: Batch,
        terms: Terms,
        reference: StatesByRole,
        weights: Mapping[str, float] | None = None,
        apart: Collection[str] = (),
    ) -> Step:
        """Weighted sum of the terms' means over the rows of all ranks; every rank must call it.

        ``weights``: of the terms, in place of their own. ``apart``: terms whose part of the loss is wanted by itself.
        The gradient of a slice is formed while its logits are there, up to the hidden states and into the head's own
        buffer; the backward takes over from the hidden states.
        """
        policy = self.states(batch, union_of_needs(terms).policy)
        local = _weights(terms, policy, reference, self._plan)  # [terms]
        overall = all_reduce_sum(local)
        scale = world_size() / torch.where(overall > 0, overall, 1.0)
        weights = weights or {name: term.weight for name, term in terms.items()}
        factors = {name: weights[name] * factor for name, factor in zip(terms, scale, strict=True)}
        parts, sums = [], {}
        for chosen in ([name for name in terms if name not in apart], [name for name in terms if name in apart]):
            keep = bool(apart)  # somebody will ask for the gradient of one part, then for all of it
            parts.append(self._part({name: terms[name] for name in chosen}, policy, reference, factors, sums, keep))
        loss = parts[0] + parts[1] if apart else parts[0]
        means, drift = _means({name: sums[name] for name in terms}, overall, local)
        for name, difference in zip(terms, drift, strict=True):
            if abs(difference) > 1e-3:  # also caught with NaN losses: NaN compares False
                raise ValueError(f"term {name}: the weights of its losses depend on more than labels and row weights")
        losses = {name: means[f"{name}/loss"] for name in terms}
        stats = {key.replace("/", "_"): value for key, value in means.items() if not key.endswith("/loss")}
        return Step(loss, parts[1] if apart else None, losses, stats)

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
        head = Head.of(self.model) if final else None
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
        sums: dict[str, dict[str, Tensor]],
        keep: bool,
    ) -> Tensor:
        """Sum of the terms times their factors, with its gradient; what each term adds up to goes into ``sums``."""
        learn = torch.is_grad_enabled()
        head, total = Head.of(self.model, learn), torch.zeros((), device=self.model.device)
        leaves = {role: states.leaf(head) for role, states in policy.items()}
        for names in _groups(terms):
            group = {name: terms[name] for name in names}
            roles = {role for name in names for role in terms[name].objective.needs.policy}
            for cut in self._plan([leaves[role] for role in roles], _logits_copies(group)):
                parts = [{r: states[r].slice(*cut) for r in roles if r in states} for states in (leaves, reference)]
                with torch.autocast(total.device.type, enabled=False):
                    losses = _losses(group, *parts)
                    value = torch.stack([factors[n] * (x.weights * x.values).sum() for n, x in losses.items()]).sum()
                    if learn and value.requires_grad:
                        value.backward()
                total += value.detach()
                _add(sums, losses)
        pairs = [pair for role, leaf in leaves.items() for pair in leaf.gradients(policy[role])]
        trained, gradients = dict(self.model.get_output_embeddings().named_parameters()), head.gradients()  # type: ignore[union-attr]
        pairs += [(trained[name], gradient) for name, gradient in gradients.items()]
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


def _losses(terms: Terms, policy: StatesByRole, reference: StatesByRole) -> dict[str, Loss]:
    needs = union_of_needs(terms)
    with torch.no_grad():  # first: the policy's logits stay for the backward, these go
        reference_scores = {role: scores_of(reference[role], ask) for role, ask in needs.reference.items()}
    policy_scores = {role: scores_of(policy[role], ask) for role, ask in needs.policy.items()}
    return {name: term.objective(policy_scores, reference_scores) for name, term in terms.items()}


@torch.no_grad()
def _weights(terms: Terms, policy: StatesByRole, reference: StatesByRole, plan) -> Tensor:
    """[terms] what the weights of each term's losses add up to here, read off scores that know the labels only."""
    totals = []
    for name, term in terms.items():
        needs, total = term.objective.needs, torch.zeros((), device=next(iter(policy.values())).row.device)
        states = [policy[role] for role in needs.policy]
        for cut in plan(states, _logits_copies({name: term})):
            scores = [
                {role: blank_scores(known[role].slice(*cut), ask) for role, ask in asks.items()}
                for known, asks in ((policy, needs.policy), (reference, needs.reference))
            ]
            total = total + term.objective(*scores).weights.sum()
        totals.append(total)
    return torch.stack(totals)


def _add(sums: dict[str, dict[str, Tensor]], losses: Mapping[str, Loss]) -> None:
    for name, loss in losses.items():
        new = {key: (loss.weights * stat).sum() for key, stat in loss.stats.items()}
        new |= {"loss": (loss.weights * loss.values.detach()).sum(), "weight": loss.weights.sum()}
        known = sums.setdefault(name, {})
        sums[name] = {key: known[key] + value if key in known else value for key, value in new.items()}


def _means(
    sums: Mapping[str, Mapping[str, Tensor]], overall: Tensor, local: Tensor
) -> tuple[dict[str, float], list[float]]:
    """(``<term>/<name>`` -> mean over all ranks, how far each term's weights were from ``local``): one exchange."""
    safe = torch.where(overall > 0, overall, 1.0)
    numbers = {
        f"{name}/{key}": (value, safe[index])
        for index, (name, own) in enumerate(sums.items())
        for key, value in own.items()
        if key != "weight"
    }
    totals = all_reduce_sum(torch.stack([value for value, _ in numbers.values()]))
    means = totals / torch.stack([weight for _, weight in numbers.values()])
    drift = (torch.stack([own["weight"] for own in sums.values()]) - local) / local.clamp(min=1.0)
    values = torch.cat([means, drift]).tolist()
    return dict(zip(numbers, values[: len(numbers)], strict=True)), values[len(numbers) :]


def _groups(terms: Terms) -> list[list[str]]:
    """Names of terms that share a role, directly or through another term: they are scored slice by slice together."""
    groups: list[tuple[set[Role], list[str]]] = []
    for name, term in terms.items():
        roles, names = set(term.objective.needs.policy), [name]
        for group in [group for group in groups if group[0] & roles]:
            groups.remove(group)
            roles, names = roles | group[0], group[1] + names
        groups.append((roles, names))
    return [names for _, names in groups]


def _logits_copies(terms: Terms) -> int:
    return LOGITS_COPIES if any(ask.logits for ask in union_of_needs(terms).policy.values()) else 1


def _pad_right(block: Tensor, length: int) -> Tensor:
    return nn.functional.pad(block, (0, length - block.shape[1]))
