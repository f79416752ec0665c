"""Tiny causal LMs of every class that transformers lists: its config's own sizes shrunk by name, some by hand."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

VOCABULARY = 96
WIDTH = ("hidden_size", "n_embd", "d_model", "dim", "hidden_dim", "embed_dim", "embedding_size", "word_embed_proj_dim")
INNER = ("intermediate_size", "ffn_dim", "n_inner", "d_ff", "d_inner", "decoder_ffn_dim", "encoder_ffn_dim", "dff")
DEPTH = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers")
DEPTH += ("num_decoder_layers", "num_encoder_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "encoder_attention_heads")
HEADS += ("num_decoder_attention_heads", "num_encoder_attention_heads")
LENGTH = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length", "max_sequence_length")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
WINDOWS = ("sliding_window", "attention_window_size", "attention_window", "window_size")
SMALL: dict[str, Any] = dict.fromkeys(WIDTH, 32) | dict.fromkeys(INNER, 48) | dict.fromkeys(DEPTH, 2)
SMALL |= dict.fromkeys(HEADS, 4) | dict.fromkeys(LENGTH, 64) | dict.fromkeys(EXPERTS, 4) | dict.fromkeys(WINDOWS, 6)
SMALL |= dict.fromkeys(("num_key_value_heads", "num_kv_heads", "kv_n_heads"), 2)
SMALL |= dict.fromkeys(("head_dim", "attention_head_dim", "dim_head", "kv_channels", "global_head_dim"), 8)
SMALL |= dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 16)
SMALL |= dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "top_k"), 2)
SMALL |= dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts", "n_groups"), 1)
SMALL |= {"vocab_size": VOCABULARY, "initializer_range": 0.2, "init_std": 0.2, "init_method_std": 0.2}
SMALL |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
SMALL |= {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
SMALL |= {"mamba_d_state": 8, "state_size": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_num_heads": 8}
SMALL |= {"mamba_head_dim": 8, "mamba_n_groups": 1, "mamba_ngroups": 1, "ssm_state_size": 8, "mamba_chunk_size": 8}
SMALL |= {"chunk_size": 8, "n_mamba_heads": 2, "mamba_d_ssm": 64, "mamba_headdim": 8, "time_step_rank": 4}
SMALL |= {"mamba_dt_rank": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8}
SMALL |= {"linear_value_head_dim": 8, "attention_chunk_size": 8, "lru_width": 32, "rotary_dim": 4}
SMALL |= {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8, "index_head_dim": 8}
SMALL |= {"index_n_heads": 2, "index_topk": 4, "intermediate_size_mlp": 48, "mlp_hidden_size": 48}
SMALL |= {"is_decoder": True}
SMALL |= dict.fromkeys(("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
SMALL |= dict.fromkeys(("dropout", "activation_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
"""Of every config that has such a field with a number."""

LINEAR_AND_FULL = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
LATENT = {"num_key_value_heads": 4}
BY_HAND: dict[str, dict[str, Any]] = {}
"""By class, beside or in place of ``SMALL``; None takes a field out."""
CANNOT_BE_BUILT: dict[str, str] = {}
"""By class, and why: no tiny model of it exists here, so nothing is claimed of it."""


def classes() -> dict[str, type[PreTrainedConfig]]:
    """Of every class of causal LMs the config to build it from; a text config before that of a larger model."""
    found: dict[str, type[PreTrainedConfig]] = {}
    for config in MODEL_FOR_CAUSAL_LM_MAPPING:
        model = MODEL_FOR_CAUSAL_LM_MAPPING[config]
        name = (model[0] if isinstance(model, tuple) else model).__name__
        if name not in found or config is model.config_class:
            found[name] = config
    return found


def build(name: str, seed: int = 0) -> PreTrainedModel:
    """Random float32 weights, a million at most, in evaluation mode."""
    kind = classes()[name]
    config = kind(**_fields(kind, name))
    model = MODEL_FOR_CAUSAL_LM_MAPPING[kind]
    model = next(one for one in (model if isinstance(model, tuple) else (model,)) if one.__name__ == name)
    logging.disable(logging.WARNING)  # of tokens and kernels, at every one of these classes
    try:
        with torch.device("meta"):
            size = sum(weight.numel() for weight in model(config).parameters())
        assert size < 2e6, f"{name}: {size} weights"
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return model(config).eval()
    finally:
        logging.disable(logging.NOTSET)


def _fields(kind: type[PreTrainedConfig], name: str) -> dict[str, Any]:
    known = kind().to_dict()
    small = {key: value for key, value in SMALL.items() if not isinstance(known.get(key, []), list | dict)}
    fields = small | BY_HAND.get(name, {})
    return {key: value for key, value in fields.items() if value is not ...}
