"""A model without its weights: the structure and the buffers are there, the weights are on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, GenerationConfig, PretrainedConfig, PreTrainedModel

_WIDTHS = {"head_dim": 16, "intermediate_size": 64}
_HEADS = 2
"""Key-value heads of a small model; it has as many heads for each as the large one."""


def skeleton(path: str, config: PretrainedConfig, attention: str) -> PreTrainedModel | None:
    """What ``from_pretrained`` would read from ``path``, in float32 and evaluation mode, before any weight is there.

    None where the class is not the library's own, or reads its files in a way of its own.
    """
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None or getattr(config, "quantization_config", None) is not None or type(config).extra_files:
        return None
    config.name_or_path = path
    with init_empty_weights(include_buffers=False):
        model = kind._from_config(config, dtype=torch.float32, attn_implementation=attention)
    model.tie_weights()  # what was tied inside has come apart
    if any(name in model.state_dict() for name, _ in model.named_buffers()):
        return None
    model.generation_config = _generation(path)
    return model.eval()


def is_skeleton(model: nn.Module) -> bool:
    return any(weight.is_meta for weight in model.parameters())


def give_weights(root: nn.Module, make: Callable[[nn.Parameter], nn.Parameter]) -> None:
    """Put what ``make`` gives in the place of each weight on the meta device; in all its places where it is tied."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in root.modules():
        for name, weight in module._parameters.items():
            if weight is not None and weight.is_meta:
                if weight not in made:
                    made[weight] = make(weight)
                module._parameters[name] = made[weight]


@contextmanager
def as_if_there(model: nn.Module) -> Iterator[None]:
    """For the body, weights on the meta device are on the CPU, of one number that takes no memory."""
    away: dict[nn.Parameter, nn.Parameter] = {}

    def number(weight: nn.Parameter) -> nn.Parameter:
        made = nn.Parameter(torch.zeros((), dtype=weight.dtype).expand(weight.shape), weight.requires_grad)
        away[made] = weight
        return made

    give_weights(model, number)
    try:
        yield
    finally:
        for module in model.modules():
            for name, weight in module._parameters.items():
                if weight is not None and weight in away:
                    away[weight].requires_grad_(weight.requires_grad)
                    module._parameters[name] = away[weight]


def small_twin(model: PreTrainedModel) -> PreTrainedModel:
    """As many blocks and tokens as ``model``, but narrow, with random weights: for what depends on no width.

    Raises:
        Exception: whatever a class raises that cannot be made narrow.
    """
    config = type(model.config).from_dict(model.config.to_dict())
    text = config.get_text_config()
    heads = text.num_attention_heads
    groups = getattr(text, "num_key_value_heads", None) or heads
    few = min(groups, _HEADS)
    text.num_attention_heads, text.hidden_size = few * (heads // groups), few * (heads // groups) * _WIDTHS["head_dim"]
    if getattr(text, "num_key_value_heads", None) is not None:
        text.num_key_value_heads = few
    for name, width in _WIDTHS.items():
        if getattr(text, name, None) is not None:
            setattr(text, name, width)
    before = torch.get_rng_state()
    try:
        twin = type(model)._from_config(
            config, dtype=torch.float32, attn_implementation=model.config._attn_implementation
        )
    finally:
        torch.set_rng_state(before)
    twin.generation_config = model.generation_config
    return twin.eval()


def _generation(path: str) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(path)
    except OSError:  # older models say in their config how they generate
        return GenerationConfig.from_pretrained(path, config_file_name="config.json", _from_model_config=True)
