"""The models that are timed; their weights are random, since time and memory do not depend on them."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from lit_unlearn.speed.workload.shapes import Shape


def llama_config(shape: Shape) -> LlamaConfig:
    return LlamaConfig(
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocab,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=8192,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )


@dataclass(frozen=True, slots=True)
class Models:
    """What a step needs: a policy that has moved a little from its frozen start."""

    policy: PreTrainedModel
    start: PreTrainedModel


def random_models(shape: Shape, seed: int, device: torch.device) -> Models:
    """Float32, the policy in training mode.

    With equal weights every log-ratio would be 0 and the parity gate blind: the policy has 10 % of noise on it.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        with torch.device(device):
            start = LlamaForCausalLM(llama_config(shape)).eval()
        policy = copy.deepcopy(start).train()
        start.requires_grad_(False)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    return Models(policy, start)
