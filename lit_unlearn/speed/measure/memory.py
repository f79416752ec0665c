"""Peak memory of a path above its weights: on a CPU in a process of its own, on a GPU from the allocator."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path as File

import torch

from lit_unlearn.speed.workload.cells import Cell, Path, Spec, build
from lit_unlearn.speed.workload.models import Models, random_models
from lit_unlearn.speed.workload.shapes import SHAPES

NUM_STEPS = 2
"""The second meets memory that the first has freed, as every later one does."""
_CLEAR, _STATUS = File("/proc/self/clear_refs"), File("/proc/self/status")


def peak_bytes(spec: Spec, path: Path, models: Models | None = None) -> int:
    """Largest resident (CPU) or allocated (GPU) size during two steps, less the size right before them.

    Gradients, activations, logits count; the weights and a resident reference, which stand before, do not.
    A GPU takes ``models`` that stand there already.
    """
    if spec.device.type == "cuda":
        return _cuda_peak(spec, path, models or random_models(spec.shape, spec.seed, spec.device))
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_cpu_peak, spec, path, torch.get_num_threads()).result()


def _cuda_peak(spec: Spec, path: Path, models: Models) -> int:
    cell = build(spec, models)
    _steps(cell, path, 1)  # workspaces of the libraries
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(spec.device)
    torch.cuda.reset_peak_memory_stats(spec.device)
    _steps(cell, path, NUM_STEPS)
    return torch.cuda.max_memory_allocated(spec.device) - before


def _cpu_peak(spec: Spec, path: Path, num_threads: int) -> int:
    """Runs in a new process."""
    torch.set_num_threads(num_threads)
    warm = replace(spec, shape=SHAPES["tiny"], num_rows=2, lengths=(2, 2, 4))
    _steps(build(warm, random_models(warm.shape, 0, warm.device)), path, 1)  # code that is loaded at first use
    cell = build(spec, random_models(spec.shape, spec.seed, spec.device))
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # what building has freed would be taken again unseen
    return resident_peak(lambda: _steps(cell, path, NUM_STEPS))


def resident_peak(run: Callable[[], object]) -> int:
    """Bytes by which this process grows at most; without Linux's /proc only growth beyond its past peak is seen."""
    if not _CLEAR.exists():
        before = _maxrss()
        run()
        return _maxrss() - before
    _CLEAR.write_text("5", encoding="ascii")  # VmHWM starts again from VmRSS
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _maxrss() -> int:
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def _status(field: str) -> int:
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    line = next(line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def _steps(cell: Cell, path: Path, count: int) -> None:
    for _ in range(count):
        cell.models.policy.zero_grad(set_to_none=True)
        cell.step(path)
    cell.models.policy.zero_grad(set_to_none=True)
