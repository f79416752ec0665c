"""Saves a model whose weights lie in pieces, one after the other: no process holds more of it than one file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_unlearn.errors import UserError
from lit_unlearn.files import write_json
from lit_unlearn.models.adapters.lora import adapted_layers, adapter_weights, added_weight
from lit_unlearn.models.streamed.source import plain, reads_back
from lit_unlearn.parallel import broadcast_object, rank
from lit_unlearn.recording.checkpoints import why_unwritten
from lit_unlearn.recording.export.saved_model import Export, save_model
from lit_unlearn.strategies.whole import Sharded, consolidate

FILE_BYTES = 5 * 10**9
"""Of weights in one file, which the first rank holds until it is full."""


def save_trained(
    strategy: Strategy,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    export: Export | None = None,
) -> None:
    """As ``save_model``, after the last step; every rank calls it. A model that lay in pieces is spent then.

    Raises:
        UserError: on every rank, where the weights cannot be written.
    """
    weights, export = None, export or Export()
    if isinstance(strategy, Sharded):
        for layer in adapted_layers(policy).values():
            for name, part in layer.named_children():
                if name != "base_layer":
                    consolidate(strategy, part)
        if export.form == "merged" and reads_back(policy):
            weights = directory.with_name(f".{directory.name}.weights.tmp")
            _write(strategy, policy, weights, export.dtype)
        elif export.form == "merged":
            consolidate(strategy, policy)
    failed = None
    if strategy.is_global_zero:
        failed = why_unwritten(save_model, policy, tokenizer, directory, export, weights)
    _refuse(directory, broadcast_object(failed))


@torch.no_grad()
def _write(strategy: Sharded, model: PreTrainedModel, directory: Path, dtype: torch.dtype) -> None:
    """Safetensors files, and an index where they are several. Every rank takes part to the end, whatever fails."""
    first, failed = rank() == 0, None
    if first:
        shutil.rmtree(directory, ignore_errors=True)
        failed = why_unwritten(directory.mkdir, parents=True)
    files = _files(model, dtype)
    names = [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    names = names if len(files) > 1 else ["model.safetensors"]
    for file, weights in zip(names, files, strict=True):
        held = {name: _merged(strategy, weight, layer, dtype) for name, (weight, layer) in weights.items()}
        if first and failed is None:
            tensors = {name: tensor for name, tensor in held.items() if tensor is not None}
            failed = why_unwritten(save_file, tensors, directory / file, {"format": "pt"})
    if first and failed is None and len(files) > 1:
        where = {name: file for file, weights in zip(names, files, strict=True) for name in weights}
        total = dtype.itemsize * sum(_count(weight) for weights in files for weight, _ in weights.values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        failed = why_unwritten(write_json, directory / "model.safetensors.index.json", index)
    if (failed := broadcast_object(failed)) is not None and first:
        shutil.rmtree(directory, ignore_errors=True)
    _refuse(directory, failed)


def _files(model: PreTrainedModel, dtype: torch.dtype) -> list[dict[str, tuple[Tensor, Any]]]:
    """What each file will hold: the plain name of a weight, the weight, and its layer where that has adapters."""
    layers = adapted_layers(model)
    own = {weight for layer in layers.values() for weight in adapter_weights(layer)}
    kept = model.state_dict().keys()
    named = [(name, weight) for name, weight in model.named_parameters() if weight not in own]
    named += [(name, buffer) for name, buffer in model.named_buffers() if name in kept]
    files: list[dict[str, tuple[Tensor, Any]]] = [{}]
    size = 0
    for name, weight in named:
        more = dtype.itemsize * _count(weight)
        if size + more > FILE_BYTES and files[-1]:
            files.append({})
            size = 0
        size += more
        layer = layers.get(name.removesuffix(".base_layer.weight")) if name.endswith(".base_layer.weight") else None
        files[-1][plain(name)] = (weight, layer)
    return files


def _count(weight: Tensor) -> int:
    return getattr(weight, "ds_numel", weight.numel())  # where ZeRO-3 keeps it


def _merged(strategy: Sharded, weight: Tensor, layer: Any, dtype: torch.dtype) -> Tensor | None:
    """All of a weight as it was trained, what adapters add inside; on the first rank."""
    exact = strategy.exact(weight) if isinstance(weight, nn.Parameter) else weight
    if rank() != 0:
        return None
    exact = exact.detach().to("cpu", copy=True)
    exact = exact if layer is None else exact.float() + added_weight(layer)
    return exact.to(dtype) if exact.is_floating_point() else exact


def _refuse(directory: Path, failed: str | None) -> None:
    if failed is not None:
        raise UserError(f"{directory} cannot be written: {failed}; mend that, then go on with resume=true")
