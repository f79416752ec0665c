"""When a checkpoint is written, which are kept, and the random states that make the steps after it the same."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint

from lit_unlearn.parallel import gather_by_key, rank
from lit_unlearn.recording.checkpoints import checkpoint_path, keep_newest


class Checkpoints(Checkpoint):
    """Saves at the end of every n-th epoch and of the last; Lightning calls it after every other callback.

    So the random states, which dropout and stochastic rounding draw from, are put back when nothing else will move
    them before the next step. Each rank has its own.
    """

    def __init__(self, directory: Path, every_n_epochs: int, keep: int) -> None:
        self.directory, self.every_n_epochs, self.keep = directory, every_n_epochs, keep
        self.states: dict[int, dict[str, Any]] = {}  # of each rank, from a checkpoint that was loaded

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if rank() in self.states:
            restore(self.states[rank()], pl_module.device)
        self.states = {}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        last = epoch == trainer.max_epochs or trainer.global_step >= trainer.estimated_stepping_batches
        if epoch % self.every_n_epochs and not last:
            return
        path = checkpoint_path(self.directory, trainer.global_step)
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            keep_newest(self.directory, path, self.keep)

    def state_dict(self) -> dict[str, Any]:
        return {"random": gather_by_key({rank(): random_states()})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.states = state_dict["random"]


def random_states() -> dict[str, Any]:
    """Of torch, of this process's GPU, of numpy and of Python, in types that load without running code."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],  # type: ignore[union-attr]
        "python": random.getstate(),
    }


def restore(states: dict[str, Any], device: torch.device) -> None:
    """Put back what ``random_states`` found."""
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"], device)
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, inner, gauss = states["python"]
    random.setstate((version, tuple(inner), gauss))
