"""Weights as the files of a model hold them: their dtype, and one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from lit_unlearn.errors import UserError

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


class StartFiles:
    """The files that ``model`` was read from; no tensor is found where it was read from none."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.prefix = f"{model.base_model_prefix}."
        path = model.name_or_path
        self._files: dict[str, Path] = {}
        for file in weight_files(path) if path else []:
            with safe_open(file, "pt") as opened:
                self._files |= dict.fromkeys(opened.keys(), file)

    def tensor(self, name: str, shape: torch.Size) -> Tensor | None:
        """The weight of that name in the model, on the CPU; None where no tensor of the files is known to be it.

        Files of a bare body lack the name of the body; others, fused or renamed when they are read, are not found.
        """
        for known in (name, name.removeprefix(self.prefix)):
            if known in self._files:
                with safe_open(self._files[known], "pt") as opened:
                    found = opened.get_tensor(known)
                return found if found.shape == shape else None
        return None


def stored_dtype(model: PreTrainedModel, trust_remote_code: bool) -> torch.dtype:
    """In which the files that ``model`` was read from hold their weights; float32 where it was read from none.

    Their config tells, or else their first weight; whole numbers, as of quantized weights, are read as float32.
    """
    if not model.name_or_path:
        return torch.float32
    config = AutoConfig.from_pretrained(model.name_or_path, trust_remote_code=trust_remote_code)
    dtype = config.dtype or config.get_text_config().dtype
    if dtype is None:
        with safe_open(weight_files(model.name_or_path)[0], "pt") as opened:
            dtype = opened.get_tensor(next(iter(opened.keys()))).dtype
    return dtype if dtype in (torch.float32, torch.bfloat16, torch.float16) else torch.float32


def in_dtype(state_dict: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Cast once per storage: tied weights stay tied, which is how save_pretrained knows to write them once."""
    cast: dict[tuple[int, torch.Size], Tensor] = {}
    return {
        name: cast.setdefault((tensor.data_ptr(), tensor.shape), tensor.detach().to(dtype))
        if tensor.is_floating_point()
        else tensor
        for name, tensor in state_dict.items()
    }


def refuse_unfit(path: str, missing: Collection[str], mismatched: Collection[str]) -> None:
    """Raises UserError for weights in whose place random numbers would be."""
    for fault, names in (("lack", missing), ("have another shape for", mismatched)):
        if names:
            raise UserError(
                f"model {path}: the files {fault} {len(names)} of the weights that its config.json asks for, "
                f"{min(names)} among them; take both from one copy of the model"
            )


def weight_files(path: str) -> list[Path]:
    """Those of a directory, or of the Hub's cache, which held them when the model was loaded."""
    if Path(path).is_dir():
        return sorted(Path(path).glob("*.safetensors"))
    index = cached_file(path, _INDEX, _raise_exceptions_for_missing_entries=False)
    names = [_WEIGHTS]
    if index is not None:
        names = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
    found = [cached_file(path, name, _raise_exceptions_for_missing_entries=False) for name in names]
    return [Path(file) for file in found if file is not None]
