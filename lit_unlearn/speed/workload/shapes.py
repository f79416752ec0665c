"""Shapes of the models that are timed; their weights are random, since time and memory do not depend on them."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool
    """Embedding and vocabulary head are one matrix."""

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            num_hidden_layers=self.layers,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            vocab_size=self.vocab,
            tie_word_embeddings=self.tied,
            max_position_embeddings=8192,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )


SHAPES = {
    "tiny": Shape(3, 32, 64, 4, 2, 160, False),  # for tests
    "llama43m": Shape(6, 512, 1536, 8, 2, 49152, True),  # 43.3 M parameters, 25.2 M of them the tied embedding
    "smollm2_135m": Shape(30, 576, 1536, 9, 3, 49152, True),
    "llama1b": Shape(16, 2048, 8192, 32, 8, 128256, True),  # Llama-3.2-1B
    "llama3b": Shape(28, 3072, 8192, 24, 8, 128256, True),  # Llama-3.2-3B
    "llama8b": Shape(32, 4096, 14336, 32, 8, 128256, False),  # Llama-3.1-8B
}


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
            start = LlamaForCausalLM(shape.config()).eval()
        policy = copy.deepcopy(start).train()
        start.requires_grad_(False)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    return Models(policy, start)
