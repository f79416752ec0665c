"""Shapes of the models that are timed."""

from __future__ import annotations

from dataclasses import dataclass


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


SHAPES = {
    "tiny": Shape(3, 32, 64, 4, 2, 160, False),  # for tests
    "llama43m": Shape(6, 512, 1536, 8, 2, 49152, True),  # 43.3 M parameters, 25.2 M of them the tied embedding
    "smollm2_135m": Shape(30, 576, 1536, 9, 3, 49152, True),
    "llama1b": Shape(16, 2048, 8192, 32, 8, 128256, True),  # Llama-3.2-1B
    "llama3b": Shape(28, 3072, 8192, 24, 8, 128256, True),  # Llama-3.2-3B
    "llama8b": Shape(32, 4096, 14336, 32, 8, 128256, False),  # Llama-3.1-8B
}
