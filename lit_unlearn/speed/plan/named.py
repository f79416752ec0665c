"""The size of a model that is known by its name, or by its config.json alone."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from lit_unlearn.errors import UserError
from lit_unlearn.memory.size import ModelSize, size_of
from lit_unlearn.speed.workload.models import llama_config
from lit_unlearn.speed.workload.shapes import SHAPES


def model_size(name: str) -> ModelSize:
    """Counted on the meta device: no weights are read or made."""
    config = llama_config(SHAPES[name]) if name in SHAPES else _local_config(name)
    with torch.device("meta"):
        return size_of(AutoModelForCausalLM.from_config(config))


def _local_config(name: str) -> PretrainedConfig:
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise UserError(f"model={name}: the directory holds no config.json")
    try:
        return AutoConfig.from_pretrained(name, local_files_only=True)
    except Exception as error:  # the library raises many kinds, each is the user's to mend
        raise UserError(
            f"model={name} is none of {', '.join(SHAPES)}, and no config.json of it is on this machine"
        ) from error
