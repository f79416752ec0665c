"""The scoring engine: one forward over all roles, vocabulary logits that live only while a slice of rows is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from lit_unlearn.body import run_body
from lit_unlearn.states import (
    States,
    StatesByRole,
    cut_rows,
    kept_positions,
    no_positions,
    row_weights,
    scores_of,
)
from lit_unlearn.types import IGNORE_INDEX, Ask, Batch, Role, Scores, ScoresByRole, Terms, union_of_needs


@dataclass(slots=True)
class LossSum:
    """A term's weighted sum over the rows seen so far; the mean is ``value / weight`` once every rank has added up."""

    value: Tensor
    weight: Tensor
    stats: dict[str, Tensor] = field(default_factory=dict)

    def __add__(self, other: LossSum) -> LossSum:
        stats = {name: self.stats[name] + other.stats[name] for name in self.stats}
        return LossSum(self.value + other.value, self.weight + other.weight, stats)


class ScoringEngine(nn.Module):
    """Owns a causal LM; its forward does body, head and losses, so that sharding can wrap it as the root module."""

    def __init__(self, model: PreTrainedModel, logits_mib: int = 256) -> None:
        """``logits_mib``: float32 logits alive at once, in MiB; a slice holds at least one row."""
        super().__init__()
        self.model = model
        self.logits_mib = logits_mib

    def forward(self, batch: Batch, terms: Terms, reference: StatesByRole) -> dict[str, LossSum]:
        """Sums of every term over this rank's rows. Logits of a slice are freed and formed again in the backward."""
        policy = self.states(batch, union_of_needs(terms).policy)
        sums: dict[str, LossSum] = {}
        for group in _groups(terms):
            roles = {role for name in group for role in (*terms[name].objective.needs.policy,)}
            chosen = {name: terms[name] for name in group}
            for first, last in self._plan([policy[role] for role in roles]):
                parts = [
                    {role: states[role].slice(first, last) for role in roles if role in states}
                    for states in (policy, reference)
                ]
                piece = checkpoint(_slice_sums, chosen, *parts, use_reentrant=False)
                assert isinstance(piece, dict)
                sums |= {name: sums[name] + total if name in sums else total for name, total in piece.items()}
        return {name: sums[name] for name in terms}

    def states(self, batch: Batch, asks: Mapping[Role, Ask]) -> dict[Role, States]:
        """One forward of the body over all asked roles, stacked and padded right; only kept positions survive."""
        blocks = [batch[role] for role in asks]
        if not blocks:
            return {}
        length = max(rows.input_ids.shape[1] for rows in blocks)
        stack = lambda name: torch.cat([_pad_right(getattr(rows, name), length) for rows in blocks])  # noqa: E731
        layers = {layer for ask in asks.values() for layer in ask.hidden_layers}
        final = any(ask.logps for ask in asks.values())
        hidden, outputs = run_body(self.model, stack("input_ids"), stack("attention_mask"), layers, final)
        states, offset = {}, 0
        for rows, (role, ask) in zip(blocks, asks.items(), strict=True):
            row, position, labels = kept_positions(rows, ask.attended) if ask.logps else no_positions(rows)
            kept = None if hidden is None else hidden[row + offset, position]  # [N, D]
            at_row, at = (rows.labels != IGNORE_INDEX).nonzero(as_tuple=True)  # [M] the labels' own positions
            wanted = {layer: outputs[layer][at_row + offset, at] for layer in ask.hidden_layers}  # [M, D]
            head = self.head if ask.logps else None
            states[role] = States(labels, row, row_weights(rows), kept, None, head, wanted, at_row)
            offset += len(rows.input_ids)
        return states

    def head(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits [n, V] of hidden states [n, D], in float32 under autocast too.

        Logits rounded to bf16 would put about 0.1 nats of noise on the log-prob of a 40-token answer.
        """
        head = self.model.get_output_embeddings()
        assert head is not None
        with torch.autocast(hidden.device.type, enabled=False):
            logits = head(hidden.to(head.weight.dtype))
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

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

    def _plan(self, roles: Sequence[States]) -> list[tuple[int, int]]:
        """Row ranges, the same for all roles, whose float32 logits fit the budget."""
        num_rows = {len(states.row_weight) for states in roles}
        if len(num_rows) != 1:
            raise ValueError(f"a term pairs roles row by row, but they hold {sorted(num_rows)} rows")
        total = num_rows.pop()
        counts = sum(torch.bincount(states.row, minlength=total) for states in roles)
        assert isinstance(counts, Tensor)
        budget = self.logits_mib * 2**20 // (4 * self.model.config.get_text_config().vocab_size)
        return cut_rows(counts.tolist(), budget)


def _slice_sums(terms: Terms, policy: StatesByRole, reference: StatesByRole) -> dict[str, LossSum]:
    needs = union_of_needs(terms)
    policy_scores = {role: scores_of(policy[role], ask) for role, ask in needs.policy.items()}
    with torch.no_grad():
        reference_scores = {role: scores_of(reference[role], ask) for role, ask in needs.reference.items()}
    sums = {}
    for name, term in terms.items():
        loss = term.objective(policy_scores, reference_scores)
        stats = {key: (loss.weights * stat).sum() for key, stat in loss.stats.items()}
        sums[name] = LossSum((loss.weights * loss.values).sum(), loss.weights.sum(), stats)
    return sums


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


def _pad_right(block: Tensor, length: int) -> Tensor:
    return nn.functional.pad(block, (0, length - block.shape[1]))
