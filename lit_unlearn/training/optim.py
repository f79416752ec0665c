"""What the optimizer of a run is set to: which AdamW, on which weights, with which warm-up and schedule."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import get_scheduler

from lit_unlearn.errors import UserError
from lit_unlearn.training.optimizers import OptimizerName, build_optimizer


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
        if not (0 < self.lr < math.inf and 0 <= self.weight_decay < math.inf and 0 <= self.warmup_epochs < math.inf):
            raise ValueError(
                f"optim.lr={self.lr} must be above 0, weight_decay={self.weight_decay} and "
                f"warmup_epochs={self.warmup_epochs} not negative"
            )


def freeze_others(model: nn.Module, pattern: str | None) -> None:
    """Leave only the parameters trainable whose names hold ``pattern``.

    Raises:
        UserError: the pattern is no regular expression, or no parameter has such a name.
    """
    if pattern is None:
        return
    try:
        chosen = re.compile(pattern)
    except re.error as error:
        raise UserError(f"optim.trainable={pattern!r} is not a regular expression: {error}") from error
    names = [name for name, _ in model.named_parameters()]
    if not any(map(chosen.search, names)):
        raise UserError(
            f"optim.trainable={pattern!r} matches no parameter; their names are like {names[len(names) // 2]}"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(chosen.search(name) is not None)


def adamw(parameters: Iterable[nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
    """The AdamW that ``config.name`` chooses, on the parameters that are trainable now."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    return build_optimizer(config.name, groups, lr=config.lr, betas=tuple(config.betas), eps=config.eps)


def schedule(
    optimizer: torch.optim.Optimizer, config: OptimConfig, num_steps: int, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Stepped once an optimizer step."""
    name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
    num_warmup = min(round(config.warmup_epochs * steps_per_epoch), num_steps)
    return get_scheduler(name, optimizer, num_warmup_steps=num_warmup, num_training_steps=num_steps)  # type: ignore[return-value]
