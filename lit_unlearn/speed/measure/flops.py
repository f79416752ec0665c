"""Useful arithmetic of a step, and how much arithmetic the machine can do at all."""

from __future__ import annotations

import time

import torch

from lit_unlearn.memory.tokens import Tokens
from lit_unlearn.speed.workload.shapes import Shape
from lit_unlearn.types import Terms, union_of_needs

PEAK_BF16_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "4090": 165.0}
"""Dense products with float32 sums, as the maker states them; of the fastest card of that name."""


def useful_flops(shape: Shape, tokens: Tokens, terms: Terms) -> float:
    """Of a forward and a backward that compute nothing twice and nothing that no loss reads.

    Body: 2 a parameter of the blocks and unique token, and 4 * layers * heads * head size a pair of positions that
    attend. Head: 2 * vocabulary * hidden a labelled token. The backward is twice the forward. No reference, no padding,
    no recomputation; terms that read a hidden state only need the blocks up to it and no head.
    """
    asks = union_of_needs(terms).policy.values()
    head = any(ask.logps for ask in asks)
    layers = shape.layers if head else 1 + max(layer for ask in asks for layer in ask.hidden_layers)
    key_width = shape.hidden * shape.kv_heads // shape.heads
    block = 2 * shape.hidden * (shape.hidden + key_width) + 3 * shape.hidden * shape.intermediate
    forward = layers * (2 * block * tokens.unique + 4 * shape.hidden * tokens.context)
    forward += head * 2 * shape.vocab * shape.hidden * tokens.answer
    return 3.0 * forward


def ceiling(device: torch.device, precision: str) -> tuple[float, str]:
    """(FLOP a second, where the number is from): the card's own for bf16 where known, else a square product's best."""
    if device.type == "cuda" and precision == "bf16-mixed":
        name = torch.cuda.get_device_name(device)
        for known, tflops in PEAK_BF16_TFLOPS.items():
            if known in name:
                return tflops * 1e12, f"bf16 peak of {known}"
    size = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        _wait(device)
        began = time.perf_counter()
        torch.mm(left, right)
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best, f"best of 6 products of {size}x{size}, {str(dtype).removeprefix('torch.')}"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
