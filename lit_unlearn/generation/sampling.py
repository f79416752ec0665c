"""How the next token is chosen: the most likely one, or drawn from the random stream of its row."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 256
"""Columns whose mass is summed before the running sum."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn."""

    temperature: float = 1.0
    top_p: float = 1.0
    """Smallest set of tokens with at least this mass; 1 keeps all."""
    rank_band: tuple[float, float] | None = None
    """Draw only among tokens whose rank, as a fraction of the vocabulary, lies in [low, high)."""


class Draw:
    """Chooses the next tokens of a batch, by inverse transform from each row's own uniforms; greedy without sampling.

    A row's n-th token takes the n-th uniform of its stream, whichever rows are with it.
    """

    def __init__(self, sampling: Sampling | None, streams: Sequence[str]) -> None:
        self.sampling = sampling
        self.streams = [] if sampling is None else [random.Random(stream) for stream in streams]

    def __call__(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        """Next token [R] of the rows, named by their place in the batch, from their logits [R, V]."""
        if self.sampling is None:
            return logits.argmax(-1)
        uniforms = [self.streams[row].random() for row in rows]
        uniform = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None]  # [R, 1]
        logits = logits.float() / self.sampling.temperature
        if self.sampling.top_p == 1 and self.sampling.rank_band is None:  # any order of the vocabulary will do
            return _invert_in_blocks(logits, uniform).squeeze(-1)
        logits, ids = logits.sort(descending=True)
        if self.sampling.rank_band is not None:
            low, high = (round(edge * logits.shape[-1]) for edge in self.sampling.rank_band)
            logits, ids = logits[:, low:high], ids[:, low:high]
        return ids.gather(-1, _invert(logits, uniform, self.sampling.top_p)).squeeze(-1)


def _invert_in_blocks(logits: Tensor, uniform: Tensor) -> Tensor:
    """Places [R, 1] in [R, V]: first the block of columns, then the column; a running sum over all of V is dear."""
    vocabulary = logits.shape[-1]
    mass = (logits - logits.amax(-1, keepdim=True)).exp_()  # times a constant
    blocks = pad(mass, (0, -vocabulary % BLOCK)).unflatten(-1, (-1, BLOCK))  # [R, V / BLOCK, BLOCK]
    until = blocks.sum(-1).double().cumsum(-1)  # [R, V / BLOCK]
    goal = uniform * until[:, -1:]
    block = torch.searchsorted(until, goal, right=True).clamp(max=until.shape[-1] - 1)  # [R, 1]
    before = torch.where(block > 0, until.gather(-1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, BLOCK)).squeeze(1).double().cumsum(-1)  # [R, BLOCK]
    place = torch.searchsorted(inside, goal - before, right=True).clamp(max=BLOCK - 1)
    return (block * BLOCK + place).clamp(max=vocabulary - 1)


def _invert(logits: Tensor, uniform: Tensor, top_p: float) -> Tensor:
    """Places [R, 1] drawn from the first columns of [R, V] that hold ``top_p`` of the mass."""
    mass = (logits - logits.amax(-1, keepdim=True)).exp().cumsum(-1, dtype=torch.float64)  # [R, V] times a constant
    last = torch.full_like(uniform, mass.shape[-1] - 1, dtype=torch.int64)  # [R, 1]
    if top_p < 1:
        last = torch.searchsorted(mass, top_p * mass[:, -1:]).minimum(last)
    return torch.searchsorted(mass, uniform * mass.gather(-1, last), right=True).minimum(last)
