"""A step's rows cut into the parts that are scored one after another."""

from __future__ import annotations

from lit_unlearn.parallel import all_reduce_max
from lit_unlearn.types import Batch, Role, Rows


def micro_batches(batch: Batch, size: int | None) -> list[dict[Role, Rows]]:
    """Parts of at most ``size`` rows of each role, the same number on every rank; roles that pair stay in step.

    A rank, or a role, that has fewer rows ends with parts that hold none of it.
    """
    if size is None:
        return [dict(batch)]
    most = max(len(rows.labels) for rows in batch.values())
    count = all_reduce_max(max(1, -(-most // size)))
    return [{role: rows.slice(i * size, (i + 1) * size) for role, rows in batch.items()} for i in range(count)]
