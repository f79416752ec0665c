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
SMALL: dict[str, Any] = {}
SMALL |= dict.fromkeys(WIDTH, 32) | dict.fromkeys(INNER, 48) | dict.fromkeys(DEPTH, 2)
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

MIXED = {"layer_types": ["linear_attention", "full_attention"]}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"]}
LATENT = {"num_key_value_heads": 4}
CONTEXT_FREE = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
VISION = CONTEXT_FREE | {"image_size": 16, "patch_size": 8}
TEXT = CONTEXT_FREE | {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": VOCABULARY, "initializer_range": 0.2}
TEXT |= {"max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "sliding_window": 6}
BY_HAND: dict[str, dict[str, Any]] = {
    "AXK1ForCausalLM": LATENT,
    "AXK2ForCausalLM": LATENT,
    "BailingHybridForCausalLM": LATENT
    | MIXED
    | {"mlp_layer_types": ["dense", "sparse"], "linear_head_dim": 8, "linear_num_heads": 4, "num_experts_per_token": 2}
    | {"num_expert_group": 1},
    "BambaForCausalLM": {"attn_layer_indices": [1]},
    "BigBirdForCausalLM": {"attention_type": "original_full"},
    "BigBirdPegasusForCausalLM": {"attention_type": "original_full"},
    "CohereCompassForCausalLM": {"layer_types": ["full_attention"] * 2}
    | {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}, "is_decoder": ...},
    "DbrxForCausalLM": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "DeepseekV2ForCausalLM": LATENT,
    "DeepseekV3ForCausalLM": LATENT,
    "DeepseekV32ForCausalLM": LATENT,
    "Glm4MoeLiteForCausalLM": LATENT,
    "GlmMoeDsaForCausalLM": LATENT,
    "Dots3NoteForCausalLM": LATENT
    | {"per_layer_config": {}, "layer_types": ["indexed_attention", "sliding_attention"]}
    | {"mlp_layer_types": ["dense", "sparse"], "shared_experts_intermediate_size": 16},
    "FuyuForCausalLM": {"text_config": TEXT | {"model_type": "persimmon"}},
    "Gemma4ForConditionalGeneration": {"text_config": TEXT | SLIDING, "vision_config": VISION, "audio_config": None},
    "GotOcr2ForConditionalGeneration": {"text_config": TEXT | {"model_type": "qwen2"}, "vision_config": VISION},
    "GitForCausalLM": {"vision_config": VISION},
    "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 1]]},
    "GraniteMoeHybridForCausalLM": MIXED,
    "Gemma3ForConditionalGeneration": {
        "text_config": TEXT | SLIDING,
        "vision_config": VISION,
        "mm_tokens_per_image": 4,
        "image_token_index": 90,
        "boi_token_index": 91,
        "eoi_token_index": 92,
    },
    "Gemma3nForCausalLM": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "intermediate_size": 48,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        "laurel_rank": 4,
    },
    "HYV4ForCausalLM": {"index_n_heads": 16},  # with few, exact ties at 0 are broken by the number of tokens
    "Inkling2ForCausalLM": {"unpadded_vocab_size": 90, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2}
    | {"swa_head_dim": 8, "d_rel": 4, "rel_extent": 8},
    "Inkling2LoopForCausalLM": {"unpadded_vocab_size": 90, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2}
    | {"swa_head_dim": 8, "d_rel": 4, "rel_extent": 8},
    "JambaForCausalLM": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "KimiLinearForCausalLM": LATENT
    | MIXED
    | {"mlp_layer_types": ["dense", "sparse"], "linear_head_dim": 8, "linear_num_heads": 4, "num_experts_per_token": 2},
    "Lfm2ForCausalLM": {"layer_types": ["conv", "full_attention"]},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "LongcatFlashForCausalLM": LATENT | {"ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "zero_expert_num": 2},
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 8},
    "MiniCPM3ForCausalLM": LATENT,
    "CpmAntForCausalLM": {
        "dim_ff": 48,
        "prompt_length": 4,
        "position_bias_num_buckets": 32,
        "position_bias_max_distance": 64,
    },
    "Qwen3NextForCausalLM": MIXED,
    "Qwen3_5ForCausalLM": MIXED,
    "Qwen3_5MoeForCausalLM": MIXED,
    "RecurrentGemmaForCausalLM": {"num_hidden_layers": 3},
    "ReformerModelWithLMHead": {"axial_pos_embds": False, "attn_layers": ["local", "local"], "feed_forward_size": 48}
    | {"local_attention_probs_dropout_prob": 0.0},
    "RoCBertForCausalLM": {"shape_embed_dim": 8, "shape_vocab_size": 20, "pronunciation_embed_dim": 8}
    | {"pronunciation_vocab_size": 20},
    "XLMWithLMHeadModel": {"emb_dim": 32, "causal": True},
    "XmodForCausalLM": {"default_language": "en_XX"},
    "YoutuForCausalLM": LATENT,
    "ZambaForCausalLM": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
    },
    "Zamba2ForCausalLM": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "num_key_value_heads": 4,
        "mamba_headdim": 32,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_query_groups": 4,
        "adapter_rank": 4,
    },
    "ZayaForCausalLM": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}
"""By class, beside or in place of ``SMALL``; ... takes a field out."""
CANNOT_BE_BUILT: dict[str, str] = {
    "BltForCausalLM": "reads bytes in patches of its own, with hash tables of three million rows",
    "Dots3NoteForCausalLM": "its config's sizes of sliding and indexed layers depend on each other",
    "Gemma3nForConditionalGeneration": "needs timm; its text model is Gemma3nForCausalLM",
    "Gemma4ForConditionalGeneration": "its towers have no small shape; its text model is Gemma4ForCausalLM",
    "Gemma4UnifiedForConditionalGeneration": "as above; its text model is Gemma4UnifiedForCausalLM",
    "Gemma4AssistantForCausalLM": "drafts for another model, whose hidden states it reads",
    "Gemma4UnifiedAssistantForCausalLM": "drafts for another model, whose hidden states it reads",
    "MossTranscribeDiarizeForConditionalGeneration": "its audio tower has no small shape",
    "MusicgenForCausalLM": "reads four streams of audio codes, no text",
    "MusicgenMelodyForCausalLM": "reads four streams of audio codes, no text",
    "Phi4MultimodalForCausalLM": "its image and audio towers have no small shape",
}
"""By class, and why: no tiny model of it exists here, so nothing is claimed of it."""


def classes() -> dict[str, type[PreTrainedModel]]:
    """Every class of causal LMs, by name."""
    found: dict[str, type[PreTrainedModel]] = {}
    for config in MODEL_FOR_CAUSAL_LM_MAPPING:
        model = MODEL_FOR_CAUSAL_LM_MAPPING[config]
        model = model[0] if isinstance(model, tuple) else model
        assert model is not None
        found.setdefault(model.__name__, model)
    return found


def build(name: str, seed: int = 0) -> PreTrainedModel:
    """Random float32 weights, in evaluation mode."""
    model = classes()[name]
    assert model.config_class is not None
    config = model.config_class(**_fields(model.config_class, name))
    logging.disable(logging.WARNING)  # of tokens and kernels, at every one of these classes
    try:
        with torch.device("meta"):
            size = sum(weight.numel() for weight in model(config).parameters())
        assert size < 3e6, f"{name}: {size} weights"
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
