"""Switches a model's own dropout off, wherever its class keeps the probability."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


def dropout_off(model: PreTrainedModel) -> None:
    """Set every probability to 0: those of dropout modules, and floats with ``drop`` in their name (GPT-2 writes
    ``attn_pdrop``, OPT ``layerdrop``) of modules, which hand them to functions, and of configs, read in the forward.
    """
    configs: dict[int, PretrainedConfig] = {}
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        _zero(module)
        for value in vars(module).values():
            if isinstance(value, PretrainedConfig):
                configs |= {id(config): config for config in _with_parts(value)}
    for config in configs.values():
        _zero(config)


def _zero(owner: object) -> None:
    for name, value in list(vars(owner).items()):
        if "drop" in name and isinstance(value, float):
            setattr(owner, name, 0.0)


def _with_parts(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """A config and those inside it, as a multimodal model's for its text."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            yield from _with_parts(value)
