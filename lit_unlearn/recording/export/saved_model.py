"""A model on disk: whole or absent, plain safetensors or adapters alone, with its tokenizer beside it."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from lit_unlearn.files import write_json, write_text
from lit_unlearn.models.adapters.lora import merged_weights, save_adapters
from lit_unlearn.models.files import in_dtype
from lit_unlearn.models.settings import ExportForm
from lit_unlearn.recording.export.card import CARD

SAMPLING_FIELDS = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


@dataclass(frozen=True)
class Export:
    """How a model is written."""

    dtype: torch.dtype = torch.float32
    form: ExportForm = "merged"
    stops: tuple[int, ...] = ()
    """Tokens by which its answers end, beside those at which its own settings stop generation."""
    card: str | None = None
    """Text of its ``README.md``."""


def save_model(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    export: Export | None = None,
    weights: Path | None = None,
) -> None:
    """Save safetensors, config and tokenizer; ``directory`` holds a whole model or none. One rank calls it.

    Args:
        policy: its adapters, where it has some, are folded into what is written, or all that is.
        tokenizer: saved beside the model.
        directory: replaced when it exists.
        export: a float32 model unless it says otherwise.
        weights: a directory that holds the merged weights already, which are taken from there.
    """
    temporary = directory.with_name(f"{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    export = export or Export()
    generation = _generation(policy.generation_config, export.stops)
    try:
        if export.form == "adapter":
            save_adapters(policy, temporary, export.dtype)
            if generation is not None:
                generation.save_pretrained(temporary)
        else:
            _save_merged(policy, temporary, generation, export.dtype, weights)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    tokenizer.save_pretrained(temporary)
    if export.card is not None:
        write_text(temporary / CARD, export.card)
    shutil.rmtree(directory, ignore_errors=True)
    temporary.rename(directory)


def _save_merged(
    policy: PreTrainedModel,
    directory: Path,
    generation: GenerationConfig | None,
    dtype: torch.dtype,
    weights: Path | None,
) -> None:
    own = policy.generation_config
    state_dict = in_dtype(merged_weights(policy, dtype), dtype) if weights is None else {}
    policy.generation_config = generation  # type: ignore[assignment]
    try:
        policy.save_pretrained(directory, state_dict=state_dict)
    finally:
        policy.generation_config = own
    if weights is not None:
        for file in weights.iterdir():
            file.replace(directory / file.name)
        weights.rmdir()
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    named = str(dtype).removeprefix("torch.")
    write_json(directory / "config.json", {**config, "dtype": named})  # else it reloads in the policy's precision


def _generation(own: GenerationConfig | None, stops: tuple[int, ...]) -> GenerationConfig | None:
    """A model's own settings of generation, which stop at ``stops`` too, as they can be saved.

    Greedy decoding with sampling fields set, as many hub models have it, is refused by save_pretrained.
    """
    if own is None:
        return None
    saved = copy.deepcopy(own)
    named = saved.eos_token_id if isinstance(saved.eos_token_id, list) else [saved.eos_token_id]
    ends = list(dict.fromkeys([*(id for id in named if id is not None), *stops]))
    if stops:
        saved.eos_token_id = ends if len(ends) > 1 else ends[0]
    for name in () if saved.do_sample else SAMPLING_FIELDS:
        setattr(saved, name, None)
    return saved
