"""Which rows make which optimizer step: the same plan for any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

import torch
from torch.utils.data import Sampler

from lit_unlearn.types import Role

RowIds = dict[Role, list[int]]


class StepSampler(Sampler[RowIds]):
    """Yields this rank's row indices of each optimizer step.

    The anchor role is visited once an epoch in a new order; other roles stream through permutations of their own
    rows, so every row is seen equally often; a row can come twice in a step only where such a permutation ends within
    it. A global batch is dealt out to ranks row by row, so each rank sees different rows. The last batch of an epoch
    may be smaller; it is dropped only where it cannot feed every rank.
    """

    def __init__(
        self, num_rows: Mapping[Role, int], anchor: Role, batch_size: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        self.num_rows, self.anchor, self.batch_size = dict(num_rows), anchor, batch_size
        self.seed, self.rank, self.world, self.epoch = seed, rank, world, 0
        self.first, self.next = 0, 0
        """Step of the epoch with which the next pass over it begins, and which follows the last one yielded."""
        self._permutation = cache(self._permute)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        full, rest = divmod(self.num_rows[self.anchor], self.batch_size)
        return full + (rest >= self.world)

    def __iter__(self) -> Iterator[RowIds]:
        first, self.first = self.first, 0
        for step in range(first, len(self)):
            self.next = step + 1
            yield {role: ids[self.rank :: self.world] for role, ids in self.global_step(self.epoch, step).items()}

    def global_step(self, epoch: int, step: int) -> RowIds:
        """Row indices of all ranks together; ``step`` counts within the epoch."""
        first = step * self.batch_size
        count = min(self.batch_size, self.num_rows[self.anchor] - first)
        offset = epoch * self.num_rows[self.anchor] + first
        return {role: [self._row(role, offset + i) for i in range(count)] for role in self.num_rows}

    def window(self, epoch: int, step: int, num_steps: int) -> list[int]:
        """Anchor rows of the coming steps, each once, running on into the next epoch."""
        ids: dict[int, None] = {}
        for index in range(step, step + num_steps):
            ids |= dict.fromkeys(self.global_step(epoch + index // len(self), index % len(self))[self.anchor])
        return list(ids)

    def _row(self, role: Role, position: int) -> int:
        cycle, index = divmod(position, self.num_rows[role])
        return self._permutation(role, cycle)[index]

    def _permute(self, role: Role, cycle: int) -> list[int]:
        key = [*map(ord, role), self.seed, cycle]
        generator = torch.Generator().manual_seed(sum(value * 1_000_003**i for i, value in enumerate(key)) % 2**63)
        return torch.randperm(self.num_rows[role], generator=generator).tolist()
