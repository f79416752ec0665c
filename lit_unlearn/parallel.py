"""Exact sums over ranks, and results that meet by key whichever rank made them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Key = TypeVar("Key")
Value = TypeVar("Value")
_before: list[Callable[[], None]] = []


_alone = False


@contextmanager
def alone() -> Iterator[None]:
    """For the body, this rank takes itself for the only one, and nothing in this module waits for another."""
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


def world_size() -> int:
    if _alone:
        return 1
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


@contextmanager
def before_meetings(wait: Callable[[], None]) -> Iterator[None]:
    """For the body, a rank calls ``wait`` before every exchange of this module, and at the body's end."""
    _before.append(wait)
    try:
        yield
        _meet()
    finally:
        _before.remove(wait)


def _meet() -> None:
    for wait in _before:
        wait()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum of a detached tensor over ranks; the tensor itself on one process."""
    if world_size() == 1:
        return tensor
    _meet()
    tensor = tensor.detach().clone()
    dist.all_reduce(tensor)
    return tensor


def all_reduce_max(number: int, meets: bool = True) -> int:
    """The largest number that any rank gives. ``meets``: whether ``before_meetings`` holds of it."""
    if world_size() == 1:
        return number
    if meets:
        _meet()
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
    largest = torch.tensor(number, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def gather_by_key(local: Mapping[Key, Value]) -> dict[Key, Value]:
    """Union of every rank's mapping, on every rank, in sorted key order; keys must be disjoint over ranks."""
    if world_size() == 1:
        merged = dict(local)
    else:
        _meet()
        parts: list[Mapping[Key, Value] | None] = [None] * world_size()
        dist.all_gather_object(parts, dict(local))
        merged = {key: value for part in parts if part is not None for key, value in part.items()}
        assert len(merged) == sum(len(part or ()) for part in parts), "two ranks answered for the same key"
    return {key: merged[key] for key in sorted(merged)}  # type: ignore[type-var]


def broadcast_object(value: Value) -> Value:
    """Rank 0's value, on every rank."""
    if world_size() == 1:
        return value
    _meet()
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
