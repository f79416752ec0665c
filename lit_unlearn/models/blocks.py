"""How the decoder blocks of a policy run while it is trained: what they recompute, and whether they are compiled."""

from __future__ import annotations

from functools import partial
from types import MethodType
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from lit_unlearn.engine.body import decoder_blocks
from lit_unlearn.models.dropout import dropout_off
from lit_unlearn.models.settings import Checkpointing, ModelConfig

_KEPT = ("mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product", "flash_attn")
"""Beginnings of the names of the operations that selective checkpointing does not repeat."""


def equip(model: PreTrainedModel, config: ModelConfig) -> None:
    """What ``config`` asks of a model that is trained; its weights may not be there yet."""
    if config.dropout == "none":
        dropout_off(model)
    checkpoint_blocks(model, config.gradient_checkpointing)
    if config.compile:
        compile_blocks(model)


def checkpoint_blocks(model: PreTrainedModel, checkpointing: Checkpointing) -> None:
    """Recompute every block in the backward, or only what is cheap in it (norms, activations, rotations)."""
    if checkpointing == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if checkpointing == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_or_repeat)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    model.disable_input_require_grads()  # only reentrant checkpoints need it; frozen low blocks then need no backward


def compile_blocks(model: PreTrainedModel) -> None:
    """Compile the blocks for training; in evaluation mode, where every step of a decoder has a new shape, they do not.

    The attention is left out (``attention.py``). One compiled function serves all blocks of a class.
    Their ``__call__`` stays as it is, so that hooks are outside.
    """
    compiled: dict[type, Any] = {}
    for block in decoder_blocks(model):
        kind = type(block)
        if kind not in compiled:
            compiled[kind] = torch.compile(kind.forward, dynamic=False)
        block.forward = MethodType(_by_mode(kind.forward, compiled[kind]), block)  # a deep copy binds to the copy


def _by_mode(plain: Any, compiled: Any) -> Any:
    def forward(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        return (compiled if self.training else plain)(self, *args, **kwargs)

    return forward


def _keep_or_repeat(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    name = operation.name().removeprefix("aten::")
    return CheckpointPolicy.MUST_SAVE if name.startswith(_KEPT) else CheckpointPolicy.PREFER_RECOMPUTE
