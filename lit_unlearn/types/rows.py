"""Roles, and rows as padded blocks: B rows of T tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum

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

    def slice(self, first: int, last: int) -> Rows:
        """Rows first..last-1."""
        return self._map(lambda tensor: tensor[first:last])

    def _map(self, function) -> Rows:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: function(t) for name, t in tensors.items() if t is not None})


Batch = Mapping[Role, Rows]
