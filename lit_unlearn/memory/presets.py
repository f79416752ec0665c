"""Bytes a parameter under each optimizer, and how strategies spread them over GPUs."""

from __future__ import annotations

from dataclasses import dataclass

STATE_8BIT = 2 * (1 + 4 / 256)
"""Two moments of one byte, with a float32 scale for every 256."""


@dataclass(frozen=True, slots=True)
class Preset:
    """Bytes a trained parameter on the card."""

    about: str
    weights: float
    gradients: float
    """0: freed parameter by parameter during the backward; then the largest one counts."""
    master: float
    """A more exact copy of the weights, where they are bf16."""
    states: float
    cast: float = 0.0
    """bf16 copies of the blocks' matrices that autocast keeps from the forward to the backward."""
    host: float = 0.0
    """Bytes a parameter in host memory."""
    one_gpu: bool = False
    """Not combined with ZeRO or FSDP."""


PRESETS = {
    "adamw": Preset("float32 weights, bf16 autocast; the default of every conf", 4, 4, 0, 8, cast=2),
    "adamw_master": Preset("bf16 weights, float32 masters, as DeepSpeed holds them", 2, 2, 4, 8),
    "adamw_split16": Preset("bf16 weights and the 16 bits that make them float32", 2, 2, 2, 8),
    "adamw_bf16": Preset("bf16 weights alone; most of an update at lr 1e-5 rounds away", 2, 2, 0, 8),
    "adamw_8bit": Preset(
        "bf16 weights with stochastic rounding, 8-bit moments; ours holds embedding and head in float32, not counted",
        2,
        2,
        0,
        STATE_8BIT,
    ),
    "adamw_paged": Preset("float32 weights, moments in host memory", 4, 4, 0, 0, cast=2, host=8, one_gpu=True),
    "adamw_in_backward": Preset(
        "float32, updated during the backward: no accumulation, no global clipping", 4, 0, 0, 8, cast=2, one_gpu=True
    ),
    "adamw_8bit_in_backward": Preset("both: 8 bits, during the backward", 2, 0, 0, STATE_8BIT, one_gpu=True),
}
"""``adamw``, ``_8bit``, ``_paged`` and ``_in_backward`` are names of ``optim.name``; others: to compare."""

STRATEGIES = ("ddp", "zero1", "zero2", "zero3")
"""``single`` is ``ddp`` on one GPU, ``fsdp2`` takes what ``zero3`` takes."""


@dataclass(frozen=True, slots=True)
class Share:
    """Fraction of each part that stands on one of n GPUs."""

    weights: float
    gradients: float
    states: float
    """Optimizer states and masters."""
    gathered: bool = False
    """Two blocks at a time are whole while they compute."""


def share(strategy: str, num_gpus: int) -> Share:
    """ZeRO-1 splits the states, ZeRO-2 gradients too, ZeRO-3 and FSDP (full shard) everything; a reference goes with
    the weights."""
    part = 1 / num_gpus
    whole, full = Share(1, 1, 1), Share(part, part, part, gathered=num_gpus > 1)
    cut = {"zero1": Share(1, 1, part), "zero2": Share(1, part, part), "zero3": full, "fsdp2": full}
    return {"single": whole, "ddp": whole, **cut}[strategy]
