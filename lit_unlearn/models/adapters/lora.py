"""Low-rank adapters on a frozen policy: switched off they leave its start, folded in they leave a plain model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from sys import modules
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lit_unlearn.engine.body import decoder_blocks
from lit_unlearn.errors import UserError
from lit_unlearn.models.adapters.nf4 import NF4Linear, nf4_layers, quantized_names
from lit_unlearn.models.settings import LoraConfig
from lit_unlearn.models.streamed.skeleton import as_if_there


def check_lora_installed() -> None:
    if find_spec("peft") is None:
        raise UserError("model.lora needs the extra lora: pip install -e '.[lora]'")


def add_adapters(model: PreTrainedModel, config: LoraConfig) -> None:
    """Put fresh float32 adapters beside the linear layers of the blocks, quantized or not, and freeze everything else.

    Raises:
        UserError: a target names no linear layer of the blocks.
    """
    peft = import_module("peft")
    options = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=target_names(model, config.targets),
    )
    with as_if_there(model):  # adapters are made where the weights are
        peft.inject_adapter_in_model(options, model)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()  # in bf16, as beside bf16 weights, their updates would round away


def has_adapters(model: nn.Module) -> bool:
    return bool(adapted_layers(model))


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The model as it was before ``add_adapters``; afterwards the adapters are as they were."""
    layers = adapted_layers(model)
    trained = {weight: weight.requires_grad for layer in layers.values() for weight in layer.parameters()}
    try:
        for layer in layers.values():
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers.values():
            layer.enable_adapters(True)
        for weight, requires_grad in trained.items():  # enabling makes every adapter trainable
            weight.requires_grad_(requires_grad)


@torch.no_grad()
def merged_weights(model: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The state dict of a plain model with the adapters folded in; without adapters, the model's own.

    Layers that are put together for it are in ``dtype``; quantized ones are on the CPU, since all of them together may
    be more than the device of the quantized model holds.
    """
    weights = model.state_dict()
    layers, quantized = adapted_layers(model), dict(nf4_layers(model))
    for key in quantized_names(model) & weights.keys():
        del weights[key]
    for name, layer in quantized.items():
        plain = name.removesuffix(".base_layer")
        whole = layer.whole() + (added_weight(layers[plain]) if plain in layers else 0.0)
        weights[f"{name}.weight"] = whole.to("cpu", dtype)
    for name, layer in layers.items():
        prefix = f"{name}.base_layer."
        for key in [key for key in weights if key.startswith(f"{name}.")]:
            weight = weights.pop(key)
            if key.startswith(prefix):
                weights[f"{name}.{key.removeprefix(prefix)}"] = weight
        if f"{name}.base_layer" not in quantized:
            weights[f"{name}.weight"] = (weights[f"{name}.weight"].float() + added_weight(layer)).to(dtype)
    return weights


def plain_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Tensor | None]]:
    """Each weight but the adapters' own and quantized ones: its name in a plain model, itself, what adapters add."""
    layers, quantized = adapted_layers(model), quantized_names(model)
    own = {id(weight) for layer in layers.values() for weight in adapter_weights(layer)}
    for name, weight in model.named_parameters():
        if id(weight) in own or name in quantized:
            continue
        layer = layers.get(name.removesuffix(".base_layer.weight")) if name.endswith(".base_layer.weight") else None
        yield name.replace(".base_layer.", "."), weight, None if layer is None else added_weight(layer)


def quantized_weights(model: nn.Module) -> Iterator[tuple[NF4Linear, Tensor | None]]:
    """Each quantized layer, and what its adapter adds."""
    layers = adapted_layers(model)
    for name, quantized in nf4_layers(model):
        layer = layers.get(name.removesuffix(".base_layer"))
        yield quantized, None if layer is None else added_weight(layer)


def adapter_weights(layer: Any) -> list[nn.Parameter]:
    return [weight for name, weight in layer.named_parameters() if not name.startswith("base_layer.")]


def added_weight(layer: Any) -> Tensor:
    """``alpha / rank * B A`` in the shape of the layer's weight."""
    return sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters)  # type: ignore[return-value]


@torch.no_grad()
def empty_adapters(model: nn.Module) -> None:
    """They add nothing any more, as when they were new."""
    for layer in adapted_layers(model).values():
        for adapter in layer.active_adapters:
            layer.lora_B[adapter].weight.zero_()


def save_adapters(model: PreTrainedModel, directory: Path, dtype: torch.dtype) -> None:
    """Into a new directory, in peft's own format: ``PeftModel.from_pretrained`` puts them on the start."""
    peft = import_module("peft")
    weights = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    config: Any = copy.copy(model.peft_config["default"])  # type: ignore[index]
    config.base_model_name_or_path, config.task_type = model.name_or_path or None, "CAUSAL_LM"
    config.inference_mode = True
    config.save_pretrained(directory)
    saved = {f"base_model.model.{name}": weight.detach().to("cpu", dtype) for name, weight in weights.items()}
    save_file(saved, directory / "adapter_model.safetensors", metadata={"format": "pt"})


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """The layers with adapters, by name; none where peft was never imported, since nothing else adds them."""
    tuners = modules.get("peft.tuners.tuners_utils")
    if tuners is None:
        return {}
    return {name: module for name, module in model.named_modules() if isinstance(module, tuners.BaseTunerLayer)}


def target_names(model: PreTrainedModel, targets: list[str] | None) -> list[str]:
    """Full names of the layers to adapt: those of the blocks only, so that no vocabulary head is among them.

    Raises:
        UserError: a target names no linear layer of the blocks.
    """
    blocks = [module for block in decoder_blocks(model) for module in block.modules()]
    inside = {id(module) for module in blocks if isinstance(module, nn.Linear | Conv1D)}
    names = [name for name, module in model.named_modules() if id(module) in inside]
    last_names = {name.rpartition(".")[2] for name in names}
    if targets is None:
        return names
    unknown = sorted(set(targets) - last_names)
    if unknown:
        raise UserError(
            f"model.lora.targets: {', '.join(unknown)} is no linear layer of the blocks; "
            f"choose among {', '.join(sorted(last_names))}"
        )
    return [name for name in names if name.rpartition(".")[2] in targets]
