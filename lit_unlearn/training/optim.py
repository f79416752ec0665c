"""What the optimizer of a run is set to: which AdamW, on which weights, with which warm-up and schedule."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel, get_scheduler

from lit_unlearn.engine.body import decoder_blocks
from lit_unlearn.errors import UserError
from lit_unlearn.training.optimizers import build_optimizer
from lit_unlearn.training.settings import OptimConfig


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


def freeze_above(model: PreTrainedModel, layer: int) -> None:
    """Freeze the matrices that a forward which ends with decoder block ``layer`` does not reach.

    They get no gradient, which AdamW passes over and DeepSpeed takes for 0: their weight decay would go on.
    """
    output, tokens = model.get_output_embeddings(), model.get_input_embeddings()
    above = [weight for block in decoder_blocks(model)[layer + 1 :] for weight in block.parameters()]
    read = {id(weight) for weight in tokens.parameters()} if isinstance(tokens, nn.Module) else set()
    above += [] if output is None else [weight for weight in output.parameters() if id(weight) not in read]
    for weight in above:
        weight.requires_grad_(False)


def adamw(parameters: Iterable[nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
    """The AdamW that ``config.name`` chooses, on the parameters that are trainable now."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]  # DeepSpeed drops empty ones, and the schedule counts
    return build_optimizer(config.name, groups, lr=config.lr, betas=tuple(config.betas), eps=config.eps)


def schedule(
    optimizer: torch.optim.Optimizer, config: OptimConfig, num_steps: int, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Stepped once an optimizer step."""
    name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
    num_warmup = min(round(config.warmup_epochs * steps_per_epoch), num_steps)
    return get_scheduler(name, optimizer, num_warmup_steps=num_warmup, num_training_steps=num_steps)  # type: ignore[return-value]
