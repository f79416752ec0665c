"""When a checkpoint is written, which are kept, and the random states that make the steps after it the same."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint

from lit_unlearn.parallel import all_reduce_sum, gather_by_key, rank, world_size
from lit_unlearn.recording.checkpoints import checkpoint_path, keep_newest
from lit_unlearn.training.settings import TrainerConfig
from lit_unlearn.training.signals import end, is_asked_to_end, patience


class Checkpoints(Checkpoint):
    """Saves at the end of every n-th epoch and of the last, and of steps; Lightning calls it after all other callbacks.

    So the random states, which dropout and stochastic rounding draw from, are put back when nothing else will move
    them before the next step. Each rank has its own.
    """

    def __init__(self, directory: Path, config: TrainerConfig) -> None:
        self.directory, self.config = directory, config
        self.states: dict[int, dict[str, Any]] = {}  # of each rank, from a checkpoint that was loaded
        self.last_time = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if rank() in self.states:
            restore(self.states[rank()], pl_module.device)
        elif self.states:  # there were fewer ranks
            seed_anew(f"{trainer.datamodule.seed}/{trainer.global_step}/{rank()}")  # type: ignore[attr-defined]
        self.states = {}
        self.last_time = time.monotonic()

    def step_is_whole(self, trainer: L.Trainer, ends_epoch: bool) -> None:
        """Called when nothing of a step is left to do, its log included, on every rank.

        Raises:
            Preempted: a rank has heard a signal; the step is saved.
        """
        steps, minutes = self.config.checkpoint_every_n_steps, self.config.checkpoint_every_n_minutes
        is_old = bool(minutes) and rank() == 0 and time.monotonic() - self.last_time >= 60 * (minutes or 0)
        device = trainer.strategy.root_device if world_size() > 1 else "cpu"  # a GPU is not waited for alone
        words = torch.tensor([is_asked_to_end(), is_old], dtype=torch.int32, device=device)
        asked, is_old = all_reduce_sum(words).tolist()
        if asked:
            end(f"{self._save(trainer)} is whole")
        due = is_old or (steps and trainer.global_step % steps == 0)
        if due and not (ends_epoch and self._ends_with_one(trainer)):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._ends_with_one(trainer):
            with patience():
                self._save(trainer)

    def _ends_with_one(self, trainer: L.Trainer) -> bool:
        """The epoch, once it is evaluated."""
        epoch, period = trainer.current_epoch + 1, self.config.checkpoint_every_n_epochs
        last = epoch == trainer.max_epochs or trainer.global_step >= trainer.estimated_stepping_batches
        return period > 0 and (last or epoch % period == 0)

    def _save(self, trainer: L.Trainer) -> Path:
        path = checkpoint_path(self.directory, trainer.global_step)
        if trainer.ckpt_path is None or path != Path(trainer.ckpt_path):  # else it is there, from before an epoch's end
            trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            keep_newest(self.directory, path, self.config.keep_checkpoints)
        self.last_time = time.monotonic()
        return path

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


def seed_anew(key: str) -> None:
    """Random states of a rank that has none to go on from."""
    draw = random.Random(key)
    torch.manual_seed(draw.getrandbits(63))  # of all devices
    np.random.seed(draw.getrandbits(32))
    random.seed(draw.getrandbits(64))


def restore(states: dict[str, Any], device: torch.device) -> None:
    """Put back what ``random_states`` found."""
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"], device)
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, inner, gauss = states["python"]
    random.setstate((version, tuple(inner), gauss))
