"""How many tokens each way of running the rows of a step has to compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lit_unlearn.data.tokenize import Encoded
from lit_unlearn.types import Role


@dataclass(frozen=True, slots=True)
class Tokens:
    """Of the rows of one step."""

    padded: int
    """Every role padded right to its longest row."""
    real: int
    unique: int
    """Nodes of the prefix trie over all rows: what is left when no shared beginning is computed twice."""
    answer: int
    """Labelled tokens: the positions whose logits a loss reads."""
    context: int
    """Sum over the unique tokens of the positions each one attends to, itself included."""


def count_tokens(blocks: Mapping[Role, Sequence[Encoded]]) -> Tokens:
    nodes: dict[tuple[int, int], int] = {}
    context = padded = real = answer = 0
    for rows in blocks.values():
        lengths = [len(row.prompt) + len(row.answer) for row in rows]
        padded, real = padded + len(rows) * max(lengths), real + sum(lengths)
        answer += sum(len(row.answer) for row in rows)
        for row in rows:
            node = 0
            for depth, token in enumerate(row.prompt + row.answer, start=1):
                if (node, token) not in nodes:
                    nodes[node, token] = len(nodes) + 1
                    context += depth
                node = nodes[node, token]
    return Tokens(padded, real, len(nodes), answer, context)
