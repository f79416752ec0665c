"""Rows laid out for the body: every distinct prefix once, no padding; attention still sees whole rows.

The tokens of all rows form a trie. A causal model gives a token the same hidden state in every row that begins alike,
so the header of the chat template, a prompt with several answers, or a row that comes twice costs its tokens once, and
the gradients of its copies add up by themselves. (Under dropout the copies share one mask.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from lit_unlearn.engine.attention import inputs_of

MAX_WASTE = 1.25
"""Slots of attention per real token, before another block of rows is begun."""
MIN_SHARED = 16
"""Tokens a row must share before its attention gets a mask: the kernel without one is worth more than a few tokens."""


@dataclass(frozen=True, slots=True)
class Trie:
    """Token sequences with their common beginnings merged."""

    tokens: list[int]
    """[U]"""
    depths: list[int]
    """[U] position of each token in its rows."""
    nodes: list[Sequence[int]]
    """Of each row, in the order given: the place of its tokens among ``tokens``."""
    leaves: list[int]
    """Rows that no other row goes on; together they hold every token."""
    shared: list[int]
    """Of each row: how many of its first tokens the rows before it hold already, in the order of the trie."""


@dataclass(frozen=True, slots=True)
class Block:
    """Rows whose attention is one call: R rows, L_q own tokens, L_k tokens with those they share."""

    queries: tuple[int, int]
    """(R, L_q)"""
    keys: tuple[int, int]
    """(R, L_k)"""
    mask: Tensor | None
    """[R, 1, L_q, L_k] who is looked at; None: nothing is shared, so it is the plain causal one."""


@dataclass(frozen=True, slots=True)
class Packing:
    """Which packed token stands where in the rows; U packed tokens. What pads a row is looked at by padding only."""

    queries: Tensor
    """[S_q] packed token of each slot that asks, block by block; a token of a long shared beginning asks in one row."""
    keys: Tensor
    """[S_k] packed token of each slot that is looked at."""
    blocks: tuple[Block, ...]
    place: Tensor
    """[U] the slot in which each packed token asks."""

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None
    ) -> Tensor:
        """Causal attention within each row."""
        flat = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]  # [U, H, d]
        parts = [x.index_select(0, slots) for x, slots in zip(flat, (self.queries, self.keys, self.keys), strict=True)]
        outputs, asked, looked = [], 0, 0
        for block in self.blocks:
            (rows, own), (_, length) = block.queries, block.keys
            ends = (asked + rows * own, looked + rows * length)
            slices = (slice(asked, ends[0]), slice(looked, ends[1]), slice(looked, ends[1]))
            q, k, v = (
                part[cut].unflatten(0, (rows, -1)).transpose(1, 2) for part, cut in zip(parts, slices, strict=True)
            )  # [R, H, L, d]
            groups = q.shape[1] // k.shape[1]
            if groups > 1 and block.mask is not None and q.is_cuda:  # no fused kernel there takes both
                k, v, groups = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1), 1
            output = scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=block.mask,
                dropout_p=dropout,
                is_causal=block.mask is None,
                scale=scaling,
                enable_gqa=groups > 1,
            )
            outputs.append(output.transpose(1, 2).flatten(0, 1))  # [R L_q, H, d]
            asked, looked = ends
        return torch.cat(outputs).index_select(0, self.place)[None]  # [1, U, H, d]


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch of rows for one forward of the body."""

    inputs: Mapping[str, object]
    """Keyword arguments of the body's forward."""
    index: Tensor
    """[R, T] place of each token among the body's outputs, flattened; 0 where the row has none."""


def padded(input_ids: Tensor, attention_mask: Tensor) -> Packed:
    """[R, T] rows, where packing cannot be; what is not attended goes to the right, for positions may be learned."""
    order = attention_mask.argsort(dim=1, descending=True, stable=True)  # [R, T]
    index = torch.arange(input_ids.numel(), device=input_ids.device).view_as(input_ids).gather(1, order.argsort(1))
    inputs = {"input_ids": input_ids.gather(1, order), "attention_mask": attention_mask.gather(1, order)}
    return Packed(inputs, index)


def packed(input_ids: Tensor, attention_mask: Tensor, round_to: int = 1) -> Packed:
    """[R, T] rows -> their trie; tokens that are not attended are left out.

    ``round_to``: fill up the packed tokens and the rows' length to multiples of it, so that few shapes occur.
    """
    device, mask = input_ids.device, attention_mask.bool().cpu()
    rows = [row[kept].tolist() for row, kept in zip(input_ids.cpu(), mask, strict=True)]
    trie = prefix_trie(rows if any(rows) else [[0]])  # a body needs one token
    index = torch.zeros(mask.shape, dtype=torch.int64)
    nodes = [node for row in trie.nodes[: len(rows)] for node in row][: int(mask.sum())]
    index[mask] = torch.tensor(nodes, dtype=torch.int64)
    packing = pack(trie, round_to, device)
    fill = [0] * (len(packing.place) - len(trie.tokens))
    inputs = inputs_of(
        torch.tensor([trie.tokens + fill], device=device), torch.tensor([trie.depths + fill], device=device), packing
    )
    return Packed(inputs, index.to(device))


def prefix_trie(rows: Sequence[tuple[int, ...]] | Sequence[list[int]]) -> Trie:
    """Rows that begin alike share those tokens, however many rows and however long."""
    tokens: list[int] = []
    depths: list[int] = []
    nodes: list[Sequence[int]] = [()] * len(rows)
    begins, leaves = [0] * len(rows), []
    previous: int | None = None
    for current in sorted(range(len(rows)), key=lambda row: rows[row]):  # a prefix right before what goes on from it
        row, shared = rows[current], 0
        if previous is not None:
            shared = begins[current] = _common(rows[previous], row)
            if shared == len(rows[previous]):
                leaves.pop()
                begins[current] = min(shared, begins[previous])  # its tokens ask in the row that goes on
        own = range(len(tokens), len(tokens) + len(row) - shared)
        nodes[current] = [*(nodes[previous][:shared] if previous is not None else ()), *own]
        tokens += row[shared:]
        depths += range(shared, len(row))
        leaves.append(current)
        previous = current
    return Trie(tokens, depths, nodes, leaves, begins)


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def pack(trie: Trie, round_to: int, device: torch.device) -> Packing:
    """Rectangles of whole rows for the attention, few and with little padding; every token asks."""
    shared = [count if count >= MIN_SHARED else 0 for count in trie.shared]
    size = lambda leaf: (len(trie.nodes[leaf]) - shared[leaf], len(trie.nodes[leaf]))  # noqa: E731
    order = sorted(trie.leaves, key=lambda leaf: (shared[leaf] > 0, *size(leaf)), reverse=True)
    place = [0] * _round_up(len(trie.tokens), round_to)
    queries: list[int] = []
    keys: list[int] = []
    blocks: list[Block] = []
    for rows in _rectangles(order, shared, size):
        own, length = (_round_up(max(lengths), round_to) for lengths in zip(*map(size, rows), strict=True))
        for row in rows:
            nodes, begin = list(trie.nodes[row]), shared[row]
            for slot, node in enumerate(nodes[begin:], start=len(queries)):
                place[node] = slot
            queries += nodes[begin:] + [0] * (own - len(nodes) + begin)
            keys += nodes + [0] * (length - len(nodes))
        begins = torch.tensor([shared[row] for row in rows])
        last_seen = begins[:, None] + torch.arange(own)  # [R, L_q]
        mask = (torch.arange(length) <= last_seen[:, :, None])[:, None].to(device) if begins.any() else None
        blocks.append(Block((len(rows), own), (len(rows), length), mask))
    slots = [torch.tensor(values, device=device) for values in (queries, keys, place)]
    return Packing(slots[0], slots[1], tuple(blocks), slots[2])


def _rectangles(order: Sequence[int], shared: Sequence[int], size: Callable[[int], tuple[int, int]]) -> list[list[int]]:
    """Rows in blocks that waste little when each is padded to its block's longest; shared beginnings or none."""
    blocks: list[list[int]] = []
    widest, real = (0, 0), 0
    for row in order:
        grown = (max(widest[0], size(row)[0]), max(widest[1], size(row)[1]))
        fits = bool(blocks) and (len(blocks[-1]) + 1) * sum(grown) <= MAX_WASTE * (real + sum(size(row)))
        if fits and (shared[blocks[-1][0]] > 0) == (shared[row] > 0):
            blocks[-1].append(row)
            widest, real = grown, real + sum(size(row))
        else:
            blocks.append([row])
            widest, real = size(row), sum(size(row))
    return blocks


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
