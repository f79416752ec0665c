"""Retain rows that are kept out of training, to see on them what was not to change."""

from __future__ import annotations

import random

from lit_unlearn.benchmarks.base import Benchmark
from lit_unlearn.data.tokenize import Encoded, Encoder
from lit_unlearn.errors import UserError
from lit_unlearn.evaluation.choice.settings import DisruptionConfig
from lit_unlearn.types import Role


def hold_out(
    config: DisruptionConfig | None,
    rows: dict[Role, list[Encoded]],
    benchmark: Benchmark,
    encoder: Encoder,
    seed: int,
    world: int,
    batch_size: int,
) -> list[Encoded]:
    """A seeded choice of the retain split, which is taken out of ``rows``, the rows to train on.

    Raises:
        UserError: too few would be left, or there is not one for each of ``world`` processes.
    """
    if config is None:
        return []
    split = benchmark.train_split(Role.retain)
    if not world <= config.num_rows <= len(split) - batch_size:
        raise UserError(
            f"evaluation.disruption.num_rows={config.num_rows} of the retain split's {len(split)} rows must leave a "
            f"batch of {batch_size} to train on, and be at least {world}, one for each process"
        )
    ids = set(random.Random(f"held out {seed}").sample([example.id for example in split], config.num_rows))
    if Role.retain in rows:
        rows[Role.retain] = [row for row in rows[Role.retain] if row.id not in ids]
    return encoder.encode([example for example in split if example.id in ids], "retain split")
