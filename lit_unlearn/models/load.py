"""Causal language models with their tokenizers: from a path or the Hub, a tiny one made here, or SmolLM2."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lit_unlearn.engine.trial import can_pack
from lit_unlearn.errors import UserError
from lit_unlearn.models.blocks import equip
from lit_unlearn.models.files import refuse_unfit
from lit_unlearn.models.settings import ModelConfig, TinyConfig
from lit_unlearn.models.smollm2 import smollm2_directory
from lit_unlearn.models.streamed.empty import empty_model
from lit_unlearn.models.tiny import END, PAD, train_tokenizer

log = logging.getLogger(__name__)


def load_model(
    config: ModelConfig, corpus: Iterable[str], streamed: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Float32 weights and the tokenizer; ``corpus`` trains the tokenizer of a ``tiny`` model.

    ``streamed``: as of ``load_pretrained``.

    Weights are float32 whatever the compute precision: at learning rates of 1e-5 most of an update would round
    away in bf16 weights.

    Raises:
        UserError: no such model, no safetensors, or a head this engine cannot score.
    """
    if config.path is not None:
        return load_pretrained(config.path, config, streamed)
    if config.name == "smollm2":
        return load_pretrained(str(smollm2_directory()), config, streamed)
    if config.name == "tiny":
        tokenizer = train_tokenizer(corpus, config.tiny.vocab_size)
        return _prepare(_random_llama(config.tiny, tokenizer, config.attention), config), tokenizer
    raise UserError("model.path is not set; give a directory or a Hub id, or choose model.name=tiny or smollm2")


def load_pretrained(
    path: str, config: ModelConfig, streamed: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A saved model, whichever ``config.name`` says.

    ``streamed``: its weights stay in their files until a strategy has cut it, where they can be read piece by piece.
    """
    found = check_path(path, config.trust_remote_code)
    tokenizer = load_tokenizer(path, config)
    attention = _attention(MODEL_FOR_CAUSAL_LM_MAPPING.get(type(found), None), config)
    empty = empty_model(path, found, config, attention) if streamed else None
    if empty is not None:
        return empty, tokenizer
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch.float32,
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=config.trust_remote_code,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:  # the libraries raise a dozen kinds for a bad file; each is the user's to mend
        hint = "" if config.attention == "sdpa" else f"; model.attention={config.attention} was asked for"
        raise UserError(f"model {path} cannot be read ({type(error).__name__}: {_first_line(error)}){hint}") from error
    model, report = loaded
    mismatched = [name if isinstance(name, str) else name[0] for name in report["mismatched_keys"]]
    refuse_unfit(path, report["missing_keys"], mismatched)
    return _prepare(model, config), tokenizer


def load_tokenizer(path: str, config: ModelConfig) -> PreTrainedTokenizerBase:
    """Raises UserError: it cannot be read, or no answer could end in it."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=config.trust_remote_code)
    except Exception as error:  # as in load_pretrained
        raise UserError(
            f"the tokenizer of model {path} cannot be read ({type(error).__name__}: {_first_line(error)})"
        ) from error
    return _ending(path, tokenizer)


def adopt(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, config: ModelConfig
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """What ``load_pretrained`` would have read, of a model that is in memory: a float32 copy on the CPU.

    ``tokenizer``: None: the one at the place that the model came from.

    Raises:
        UserError: no tokenizer, or as ``load_pretrained``.
    """
    name = type(model).__name__
    found: Any = tokenizer
    if not isinstance(model, PreTrainedModel):
        raise UserError(f"{name} is no causal LM of transformers; give one, a directory or a Hub id, adapters merged")
    if found is None:
        try:
            found = AutoTokenizer.from_pretrained(model.name_or_path, trust_remote_code=config.trust_remote_code)
        except Exception as error:  # as in load_pretrained
            where = model.name_or_path or "the model, which came from nowhere"
            raise UserError(f"there is no tokenizer at {where}; give tokenizer=...") from error
    copied = copy.deepcopy(model).cpu().float().requires_grad_(True)
    copied.set_attn_implementation(_attention(type(model), config))
    return _prepare(copied, config), _ending(name, found)


def _ending(name: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    if tokenizer.eos_token_id is None:
        raise UserError(f"model {name}: its tokenizer has no end-of-sequence token, so answers could not end")
    return tokenizer


def check_path(path: str, trust_remote_code: bool) -> PretrainedConfig:
    """The model's config. Raises UserError for a path or Hub id without a readable one; the weights are not read."""
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise UserError(f"model {path}: the directory holds no config.json; give one written by save_pretrained")
    beside_others = "/" in path and Path(path).parent.is_dir()  # runs/typo, not owner/name
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or beside_others
    if not Path(path).is_dir() and looks_local:
        raise UserError(f"model {path}: no such directory; give a directory or a Hub id")
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # as in load_pretrained
        raise UserError(f"model {path} cannot be read ({type(error).__name__}: {_first_line(error)})") from error
    if Path(path).is_dir():
        _check_files(Path(path))
    return config


def _check_files(directory: Path) -> None:
    """The weights are there whole, by the headers of their files; reading them all would take minutes."""
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"model {directory}: the directory holds no *.safetensors; weights that are pickled may run code when they "
            "are read: save the model again with save_pretrained"
        )
    for file in files:
        try:
            with safe_open(file, "pt"):
                pass
        except Exception as error:  # SafetensorError, OSError
            raise UserError(f"{file} cannot be read ({_first_line(error)}); copy the model again") from error


def named_ends(model: PreTrainedModel) -> tuple[int, ...]:
    """Tokens at which the model's own settings stop generation."""
    end = getattr(model.generation_config, "eos_token_id", None)
    return tuple(id for id in (end if isinstance(end, list) else [end]) if isinstance(id, int))


def _random_llama(tiny: TinyConfig, tokenizer: PreTrainedTokenizerBase, attention: str) -> PreTrainedModel:
    try:
        return LlamaForCausalLM(_tiny_llama(tiny, tokenizer, attention))
    except Exception as error:  # the library looks for the package and the device that the kind of attention needs
        raise UserError(f"model.attention={attention}: {_first_line(error)}") from error


def _tiny_llama(tiny: TinyConfig, tokenizer: PreTrainedTokenizerBase, attention: str) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=tiny.hidden_size,
        intermediate_size=3 * tiny.hidden_size,
        num_hidden_layers=tiny.num_layers,
        num_attention_heads=tiny.num_heads,
        num_key_value_heads=tiny.num_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),  # type: ignore[arg-type]
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),  # type: ignore[arg-type]
        attn_implementation=attention,  # type: ignore[call-arg]
    )


def _prepare(model: PreTrainedModel, config: ModelConfig) -> PreTrainedModel:
    can_pack(model)  # refuses, before anything is written, what cannot be scored
    equip(model, config)
    return model


def _attention(kind: Any, config: ModelConfig) -> str:
    """The kind of attention asked for, or eager where the model's class, None where it is not known, has no sdpa."""
    if config.attention != "sdpa" or kind is None or kind._supports_sdpa:
        return config.attention
    log.info("%s has no sdpa attention: it runs with model.attention=eager", kind.__name__)
    return "eager"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
