"""Settings of the optimizer and the trainer, read before torch is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from lit_unlearn.strategies.visible import processes_here

OptimizerName = Literal["adamw", "adamw_8bit", "adamw_paged", "adamw_in_backward"]


@dataclass
class OptimConfig:
    """Learning rate and schedule; the defaults are those of OpenUnlearning's TOFU runs."""

    name: OptimizerName = "adamw"
    """``adamw``: float32 weights and moments, 16 bytes a weight with its gradient. ``adamw_8bit``: bf16 weights that
    are rounded at random, and 8-bit moments, 6 bytes. ``adamw_paged``: moments that go to the host when the GPU is
    full. ``adamw_in_backward``: as ``adamw``, but each gradient is used and freed in the backward, 12 bytes."""
    lr: float = 1e-5
    weight_decay: float = 0.01
    """On matrices only, as in the Hugging Face trainer: norms and biases are left alone."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    warmup_epochs: float = 1.0
    """Linear rise from 0, in epochs; 0 starts at full rate."""
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    """What follows the warm-up: decay to 0 at the last step, or none."""
    trainable: str | None = None
    """Regular expression found in the names of the parameters to train, e.g. ``layers\\.(5|6|7)\\.mlp\\.down_proj`` for
    RMU on WMDP; null: all."""

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas) or self.eps <= 0:
            raise ValueError(f"optim.betas={list(self.betas)} must lie in [0, 1), optim.eps={self.eps} above 0")
        if not (0 < self.lr <= 1 and 0 <= self.weight_decay < math.inf and 0 <= self.warmup_epochs < math.inf):
            raise ValueError(
                f"optim.lr={self.lr} must be above 0 and at most 1, weight_decay={self.weight_decay} and "
                f"warmup_epochs={self.warmup_epochs} not negative"
            )


@dataclass
class TrainerConfig:
    """How long, on what, in which precision."""

    max_epochs: int = 10
    max_steps: int = -1
    """Stop after this many optimizer steps; -1: when the epochs are over."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Any = 1
    """Processes on this machine, one a GPU (or one a CPU process); ``auto``: as many as torchrun or srun has started,
    else one on each visible GPU, else one."""
    num_nodes: int = 1
    """Machines, with ``devices`` processes each; started by ``srun`` or ``torchrun``."""
    num_threads: int | None = None
    """CPU threads of each process; null: torch's choice. Tiny models are fastest with 1."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Of the computation; the weights stay float32 in both, except under ``optim.name=adamw_8bit``."""
    gradient_clip: float | None = 1.0
    """Largest gradient norm; null: no clipping."""
    log_every_n_steps: int = 1
    checkpoint_every_n_epochs: int = 1
    """Write ``checkpoints/step-N.ckpt`` at the end of every n-th epoch and of the last; 0: none."""
    checkpoint_every_n_steps: int = 0
    """Write one at the end of every n-th step too, counted over the run; 0: none."""
    checkpoint_every_n_minutes: float | None = None
    """Write one at the end of a step when the last is so old, by the first process's clock; null or 0: none. A signal
    (USR1, TERM) has one written at the end of its step in any case."""
    keep_checkpoints: int = 2
    """How many of them stay, the newest; a new one is whole on the disk before an older one goes."""

    @property
    def world(self) -> int:
        """Processes on all machines."""
        return self.devices * self.num_nodes

    def __post_init__(self) -> None:
        if self.devices == "auto":
            self.devices = processes_here(self.accelerator)
        if type(self.devices) is not int:
            raise ValueError(f"trainer.devices={self.devices} must be a number, or auto")
        if self.max_epochs < 1 or self.max_steps == 0 or self.max_steps < -1:
            raise ValueError(
                f"trainer.max_epochs={self.max_epochs} must be at least 1, "
                f"trainer.max_steps={self.max_steps} at least 1, or -1 for no limit"
            )
        if self.gradient_clip is not None and self.gradient_clip <= 0:
            raise ValueError(f"trainer.gradient_clip={self.gradient_clip} must be above 0, or null for none")
        counts = (self.devices, self.num_nodes, self.log_every_n_steps, self.num_threads or 1, self.keep_checkpoints)
        periods = (self.checkpoint_every_n_epochs, self.checkpoint_every_n_steps, self.checkpoint_every_n_minutes or 0)
        if min(counts) < 1 or min(periods) < 0:
            raise ValueError(
                "trainer: devices, num_nodes, num_threads, log_every_n_steps and keep_checkpoints must be at least 1, "
                "checkpoint_every_n_epochs, checkpoint_every_n_steps and checkpoint_every_n_minutes at least 0"
            )
