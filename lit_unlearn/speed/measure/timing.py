"""Clocks, and comparisons that share the machine's moods: competitors take turns, ratios are taken turn by turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds of one run."""

    wall: float
    cpu: float
    """Of the process, all threads together; on a GPU the host's share, of no interest."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Of two competitors' seconds, over the turns."""

    median: float
    low: float
    high: float


def measure(run: Callable[[], object], device: torch.device) -> Sample:
    """One run, to its end on the device."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        cpu = time.process_time()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize(device)
        return Sample(start.elapsed_time(end) / 1000, time.process_time() - cpu)
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return Sample(time.perf_counter() - wall, time.process_time() - cpu)


def interleave(
    runs: Mapping[str, Callable[[], object]],
    repeats: int,
    warmups: int,
    device: torch.device,
    before: Callable[[], object] = lambda: None,
) -> dict[str, list[Sample]]:
    """a, b, a, b, ...; ``before`` each run is not timed, and the first ``warmups`` turns are not kept."""
    samples: dict[str, list[Sample]] = {name: [] for name in runs}
    for turn in range(warmups + repeats):
        for name, run in runs.items():
            before()
            sample = measure(run, device)
            if turn >= warmups:
                samples[name].append(sample)
    return samples


def seconds(samples: Sequence[Sample]) -> dict[str, float]:
    return {"wall": median(s.wall for s in samples), "cpu": median(s.cpu for s in samples)}


def ratio(over: Sequence[Sample], under: Sequence[Sample], clock: str) -> Ratio:
    """Median of the turns' ratios, with the least and the largest."""
    ratios = [getattr(a, clock) / getattr(b, clock) for a, b in zip(over, under, strict=True)]
    return Ratio(median(ratios), min(ratios), max(ratios))
