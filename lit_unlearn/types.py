"""The nouns every floor speaks: roles, rows, needs, scores, losses, terms.

Legend: B rows of a block, T tokens of a padded row, N kept positions of a block, flat over its rows,
K top tokens, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Literal, Protocol

import torch
from torch import Tensor

IGNORE_INDEX = -100


class Role(StrEnum):
    """What a block of rows is for."""

    forget = "forget"
    retain = "retain"
    belief = "belief"
    """Responses sampled from the policy for the forget prompts."""
    alternate = "alternate"
    """Replacement answers for the forget prompts."""


@dataclass(frozen=True, slots=True)
class Rows:
    """One padded block of sequences."""

    input_ids: Tensor
    """[B, T] int64."""
    attention_mask: Tensor
    """[B, T] int64, 0 on padding."""
    labels: Tensor
    """[B, T] int64, not shifted, IGNORE_INDEX on prompt and padding."""
    example_id: Tensor
    """[B] int64, the row's position in its source split; survives shards and shuffles."""
    weight: Tensor | None = None
    """[B] float32, the row's share in every mean; None is one each."""
    reference_logps: Tensor | None = None
    """[B, T] float32, log-prob of each label under the reference, aligned with ``labels``; None: not known."""

    def to(self, *args, **kwargs) -> Rows:
        return self._map(lambda tensor: tensor.to(*args, **kwargs))

    def pin_memory(self) -> Rows:
        return self._map(Tensor.pin_memory)

    def _map(self, function) -> Rows:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: function(t) for name, t in tensors.items() if t is not None})


Batch = Mapping[Role, Rows]


@dataclass(frozen=True, slots=True)
class Ask:
    """What a term wants to know of a role beyond the label log-probs, which are always there."""

    top_k: int = 0
    """Largest log-probs of each position, with their token ids; 0: none."""
    logits: bool = False
    """The full float32 logits [N, V], alive only while one slice of rows is scored."""
    entropy: bool = False
    """Entropy of the next-token distribution, in nats."""
    attended: bool = False
    """Score every attended position, the prompt's included, instead of the answer's only."""
    hidden_layers: tuple[int, ...] = ()
    """Decoder blocks (0-based) whose outputs are wanted at the labelled positions."""
    logps: bool = True
    """False: no log-probs; where no term wants any, the forward stops at the last hidden layer asked for."""

    def __or__(self, other: Ask) -> Ask:
        return Ask(
            max(self.top_k, other.top_k),
            self.logits or other.logits,
            self.entropy or other.entropy,
            self.attended or other.attended,
            tuple(sorted({*self.hidden_layers, *other.hidden_layers})),
            self.logps or other.logps,
        )


LOGPS = Ask()
_NOTHING = Ask(logps=False)


@dataclass(frozen=True, slots=True)
class Needs:
    """The roles a term reads, of the policy and of the frozen reference."""

    policy: Mapping[Role, Ask]
    reference: Mapping[Role, Ask] = field(default_factory=dict)
    """Empty: no reference is kept."""

    def __or__(self, other: Needs) -> Needs:
        return Needs(_union(self.policy, other.policy), _union(self.reference, other.reference))


def _union(left: Mapping[Role, Ask], right: Mapping[Role, Ask]) -> dict[Role, Ask]:
    return {role: left.get(role, _NOTHING) | right.get(role, _NOTHING) for role in {**left, **right}}


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model says about the kept positions of one block, flat: padding and ignored rows are not there."""

    logps: Tensor
    """[N] float32, log-prob of the label that follows the position; 0 where ``mask`` is False."""
    mask: Tensor
    """[N] bool, the position predicts a labelled token; all True unless ``Ask.attended`` was asked for."""
    labels: Tensor
    """[N] int64, the token that follows; 0 where ``mask`` is False."""
    row: Tensor
    """[N] int64 in [0, B), the row a position belongs to."""
    row_weight: Tensor
    """[B] float32, share of each row in a mean."""
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def answer_index(self) -> Tensor:
        """[N] int64, 0 for the first labelled token of each answer, 1 for the next; meaningless off ``mask``."""
        seen = self.mask.long().cumsum(0) - self.mask.long()  # labelled positions before this one, in all rows
        first = seen.new_full((len(self.row_weight),), len(seen)).scatter_reduce(0, self.row, seen, "amin")
        return seen - first[self.row]

    @property
    def sequence_logps(self) -> Tensor:
        """[B] log-prob of each whole answer."""
        return self.sequence_sum(self.logps)

    @property
    def num_tokens(self) -> Tensor:
        """[B] labelled tokens of each row, float32."""
        return self.sequence_sum(self.mask.float())

    def sequence_sum(self, values: Tensor, row: Tensor | None = None) -> Tensor:
        """Sum [N] values over the positions of each row -> [B]; ``row`` names the rows of other positions."""
        return values.new_zeros(len(self.row_weight)).index_add(0, self.row if row is None else row, values)

    def topk(self, k: int) -> tuple[Tensor, Tensor]:
        """([N, k] log-probs, [N, k] token ids), most likely first; k above the vocabulary gives all of it."""
        return self._extra("topk_logps", "top_k=...")[:, :k], self._extra("topk_ids", "top_k=...")[:, :k]

    @property
    def logits(self) -> Tensor:
        return self._extra("logits", "logits=True")

    @property
    def entropy(self) -> Tensor:
        return self._extra("entropy", "entropy=True")

    def hidden(self, layer: int) -> Tensor:
        """[M, D] outputs of a decoder block at the M labelled positions themselves (not those that predict them)."""
        return self._extra(f"hidden_{layer}", f"hidden_layers=({layer},)")

    @property
    def hidden_row(self) -> Tensor:
        """[M] row of each hidden state."""
        return self._extra("hidden_row", "hidden_layers=...")

    def _extra(self, name: str, ask: str) -> Tensor:
        if name not in self.extras:
            raise ValueError(f"{name} was not computed for this role; declare Ask({ask}) in the objective's needs")
        return self.extras[name]


ScoresByRole = Mapping[Role, Scores]

Reduction = Literal["seq_mean", "seq_sum", "token_mean"]


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
        values: Tensor,
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
