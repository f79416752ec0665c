"""Tokens a second and peak memory, beside the losses."""

from __future__ import annotations

import resource
import sys
import time

import lightning as L
import torch


class Throughput(L.Callback):
    """Logs ``train/tokens_per_second`` (attended tokens of all ranks), ``train/step_seconds`` and ``train/memory_gib``.

    The memory is the device's peak allocation on a GPU, the process's peak resident size on a CPU.
    """

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch, batch_idx) -> None:
        self.started = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs, batch, batch_idx) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)  # the step has only been queued
        seconds = time.monotonic() - self.started
        tokens = sum(int(rows.attention_mask.sum()) for rows in batch.values())
        pl_module.log("train/tokens_per_second", tokens / seconds, sync_dist=True, reduce_fx="sum", batch_size=1)
        pl_module.log("train/step_seconds", seconds, batch_size=1)
        pl_module.log("train/memory_gib", peak_memory_gib(pl_module.device), batch_size=1)


def peak_memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
