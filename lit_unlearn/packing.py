"""Rows laid out for the body: every distinct prefix once, no padding; attention still sees whole rows.

The tokens of all rows form a trie. A causal model gives a token the same hidden state in every row that begins alike,
so the header of the chat template, a prompt with several answers, or a row that comes twice costs its tokens once, and
the gradients of its copies add up by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lit_unlearn.attention import inputs_of

MAX_WASTE = 1.25
"""Slots of attention per real token, before another block of rows is begun."""


@dataclass(frozen=True, slots=True)
class Packing:
    """Which packed token stands where in the rows; S slots of padded rows, U packed tokens."""

    slots: Tensor
    """[S] packed token of each slot; of padding: 0, which nothing reads."""
    blocks: tuple[tuple[int, int], ...]
    """(rows, length) of each rectangle of slots, in order."""
    first_slot: Tensor
    """[U] one slot of each packed token."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None
    ) -> Tensor:
        """Causal attention within each row; padding is on the right, where no real token looks."""
        parts = [tensor[0].transpose(0, 1).index_select(0, self.slots) for tensor in (query, key, value)]  # [S, H, d]
        outputs, begin = [], 0
        for rows, length in self.blocks:
            end = begin + rows * length
            q, k, v = (part[begin:end].unflatten(0, (rows, length)).transpose(1, 2) for part in parts)  # [R, H, L, d]
            grouped = k.shape[1] != q.shape[1]
            output = scaled_dot_product_attention(
                q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped
            )
            outputs.append(output.transpose(1, 2).flatten(0, 1))  # [R * L, H, d]
            begin = end
        return torch.cat(outputs).index_select(0, self.first_slot)[None]  # [1, U, H, d]


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch of rows for one forward of the body."""

    inputs: Mapping[str, object]
    """Keyword arguments of the body's forward."""
    index: Tensor
    """[R, T] place of each token among the body's outputs, flattened; 0 where the row has none."""
    packing: Packing | None
    """None: the rows are padded instead."""


def padded(input_ids: Tensor, attention_mask: Tensor) -> Packed:
    """[R, T] rows as they are, for models that cannot be packed."""
    index = torch.arange(input_ids.numel(), device=input_ids.device).view_as(input_ids)
    return Packed({"input_ids": input_ids, "attention_mask": attention_mask}, index, None)


def packed(input_ids: Tensor, attention_mask: Tensor, round_to: int = 1) -> Packed:
    """[R, T] rows -> their trie; tokens that are not attended are left out.

    ``round_to``: fill up the packed tokens and the rows' length to multiples of it, so that few shapes occur.
    """
    device, mask = input_ids.device, attention_mask.bool().cpu()
    rows = [row[kept].tolist() for row, kept in zip(input_ids.cpu(), mask, strict=True)]
    trie = prefix_trie(rows)
    index = torch.zeros(mask.shape, dtype=torch.int64)
    index[mask] = torch.tensor([node for row in trie.nodes for node in row], dtype=torch.int64)
    packing = pack(trie, round_to, device)
    fill = [0] * (len(packing.first_slot) - len(trie.tokens))
    inputs = inputs_of(
        torch.tensor([trie.tokens + fill], device=device), torch.tensor([trie.depths + fill], device=device), packing
    )
    return Packed(inputs, index.to(device), packing)


@dataclass(frozen=True, slots=True)
class Trie:
    """Token sequences with their common beginnings merged."""

    tokens: list[int]
    """[U] one at least."""
    depths: list[int]
    """[U] position of each token in its rows."""
    nodes: list[Sequence[int]]
    """Of each row, in the order given: the place of its tokens among ``tokens``."""
    leaves: list[int]
    """Rows that no other row goes on; together they hold every token. Longest first."""


def prefix_trie(rows: Sequence[Sequence[int]]) -> Trie:
    """Rows that begin alike share those tokens, however many rows and however long."""
    tokens: list[int] = []
    depths: list[int] = []
    nodes: list[Sequence[int]] = [()] * len(rows)
    leaves: list[int] = []
    previous: int | None = None
    for current in sorted(range(len(rows)), key=rows.__getitem__):  # a prefix comes right before what goes on from it
        row, shared = rows[current], 0
        if previous is not None:
            shared = _common(rows[previous], row)
            if shared == len(rows[previous]):
                leaves.pop()
        own = range(len(tokens), len(tokens) + len(row) - shared)
        nodes[current] = [*(nodes[previous][:shared] if previous is not None else ()), *own]
        tokens += row[shared:]
        depths += range(shared, len(row))
        leaves.append(current)
        previous = current
    if not tokens:
        return Trie([0], [0], nodes, [])
    return Trie(tokens, depths, nodes, sorted(leaves, key=lambda row: -len(rows[row])))


def pack(trie: Trie, round_to: int, device: torch.device) -> Packing:
    """Rectangles of whole rows for the attention, few and with little padding; every token has a slot."""
    rows = [list(trie.nodes[leaf]) for leaf in trie.leaves] or [[0]]
    size = _round_up(len(trie.tokens), round_to)
    blocks: list[tuple[int, int]] = []
    slots: list[int] = []
    first_slot = [0] * size
    for begin, end in _rectangles([len(row) for row in rows]):
        length = _round_up(len(rows[begin]), round_to)
        for row in rows[begin:end]:
            for place, node in enumerate(row, start=len(slots)):
                first_slot[node] = place
            slots += row + [0] * (length - len(row))
        blocks.append((end - begin, length))
    return Packing(torch.tensor(slots, device=device), tuple(blocks), torch.tensor(first_slot, device=device))


def _rectangles(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Ranges of rows, longest first, that waste little when each is padded to its first row."""
    cuts, begin, real = [], 0, 0
    for index, length in enumerate(lengths):
        if (index - begin + 1) * lengths[begin] > MAX_WASTE * (real + length):
            cuts.append((begin, index))
            begin, real = index, 0
        real += length
    return [*cuts, (begin, len(lengths))]


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
