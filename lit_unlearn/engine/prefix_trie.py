"""Token sequences with their common beginnings merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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


def prefix_trie(rows: Sequence[tuple[int, ...]] | Sequence[list[int]]) -> Trie:
    """Rows that begin alike share those tokens, however many rows and however long."""
    tokens: list[int] = []
    depths: list[int] = []
    nodes: list[Sequence[int]] = [()] * len(rows)
    begins, leaves = [0] * len(rows), []
    previous: int | None = None
    for current in sorted(
        range(len(rows)), key=lambda row: rows[row]
    ):  # a prefix comes right before what goes on from it
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
