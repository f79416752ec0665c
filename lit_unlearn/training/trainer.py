"""The Lightning trainer: precision, devices, checkpoints, loggers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import lightning as L
import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy as FabricDDPStrategy
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, Strategy

from lit_unlearn.errors import UserError


@dataclass
class TrainerConfig:
    """How long, on what, in which precision."""

    max_epochs: int = 10
    max_steps: int = -1
    """Stop after this many optimizer steps; -1: when the epochs are over."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    """Processes on this machine, one a GPU (or one a CPU process)."""
    num_threads: int | None = None
    """CPU threads of each process; null: torch's choice. Tiny models are fastest with 1."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Of the computation; the weights stay float32 in both, except under ``optim.name=adamw_8bit``."""
    gradient_clip: float | None = 1.0
    """Largest gradient norm; null: no clipping."""
    log_every_n_steps: int = 1
    checkpoint_every_n_epochs: int = 1
    """Overwrite ``checkpoints/last.ckpt`` at the end of every n-th epoch; 0: keep none."""

    def __post_init__(self) -> None:
        if self.max_epochs < 1 or self.max_steps == 0 or self.max_steps < -1:
            raise ValueError(
                f"trainer.max_epochs={self.max_epochs} must be at least 1, "
                f"trainer.max_steps={self.max_steps} at least 1, or -1 for no limit"
            )
        if self.gradient_clip is not None and self.gradient_clip <= 0:
            raise ValueError(f"trainer.gradient_clip={self.gradient_clip} must be above 0, or null for none")
        if min(self.devices, self.log_every_n_steps, self.num_threads or 1) < 1 or self.checkpoint_every_n_epochs < 0:
            raise ValueError(
                "trainer: devices, num_threads and log_every_n_steps must be at least 1, "
                "checkpoint_every_n_epochs at least 0"
            )


def prepare_device(config: TrainerConfig) -> None:
    """Check what was asked for, before anything is read, and set this process's threads.

    Raises:
        UserError: CUDA was asked for and is not there, or has fewer devices.
    """
    if config.accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError("trainer.accelerator=cuda, but torch finds no CUDA device; set trainer.accelerator=cpu or auto")
    on_gpu = config.accelerator != "cpu" and torch.cuda.is_available()
    if on_gpu and config.devices > torch.cuda.device_count():
        raise UserError(f"trainer.devices={config.devices}, but this machine has {torch.cuda.device_count()} GPUs")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, which Lightning imports, looks and complains
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)


def build_trainer(
    config: TrainerConfig, run_dir: Path, callbacks: Sequence[L.Callback], loggers: Sequence[Logger]
) -> L.Trainer:
    """One optimizer batch is one batch of the loader, so nothing accumulates and Lightning's sampler stays out."""
    progress: list[L.Callback] = [TQDMProgressBar(leave=True)]
    if config.checkpoint_every_n_epochs:
        progress.append(
            ModelCheckpoint(
                run_dir / "checkpoints",
                filename="last",
                every_n_epochs=config.checkpoint_every_n_epochs,
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            )
        )
    return L.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        strategy=_strategy(config),
        precision=config.precision,
        max_epochs=config.max_epochs,
        max_steps=config.max_steps,
        gradient_clip_val=config.gradient_clip,
        log_every_n_steps=config.log_every_n_steps,
        callbacks=[*callbacks, *progress],
        logger=list(loggers),
        default_root_dir=run_dir,
        use_distributed_sampler=False,
        enable_checkpointing=bool(config.checkpoint_every_n_epochs),
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def build_fabric(config: TrainerConfig) -> Fabric:
    """Processes and devices without a training loop, for evaluation."""
    strategy = "auto" if config.devices == 1 else FabricDDPStrategy(process_group_backend=_backend(config))
    return Fabric(accelerator=config.accelerator, devices=config.devices, strategy=strategy, precision=config.precision)


def _strategy(config: TrainerConfig) -> Strategy | str:
    if config.devices == 1:
        return "auto"
    return DDPStrategy(process_group_backend=_backend(config), timeout=timedelta(minutes=60))


def _backend(config: TrainerConfig) -> str:
    return "nccl" if config.accelerator != "cpu" and torch.cuda.is_available() else "gloo"
