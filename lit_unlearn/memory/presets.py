"""Bytes a parameter under each optimizer, and how strategies spread them over GPUs."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    """A more exact copy of the weights, where they are bf16; DeepSpeed keeps one of float32 weights too."""
    states: float
    casts: bool = False
    """Autocast makes bf16 copies of the blocks' matrices."""
    ends: float = 0.0
    """Further bytes of the weights, and of the gradients, outside the blocks: embedding and head."""
    host: float = 0.0
    """Bytes a parameter in host memory."""
    one_gpu: bool = False
    """Not combined with other GPUs."""


PRESETS = {
    "adamw": Preset("float32 weights, bf16 autocast; the default of every conf", 4, 4, 0, 8, casts=True),
    "adamw_master": Preset("bf16 weights, float32 masters and sums of gradients, as DeepSpeed holds them", 2, 4, 4, 8),
    "adamw_split16": Preset("bf16 weights and the 16 bits that make them float32", 2, 2, 2, 8),
    "adamw_bf16": Preset("bf16 weights alone; most of an update at lr 1e-5 rounds away", 2, 2, 0, 8),
    "adamw_8bit": Preset(
        "bf16 blocks with stochastic rounding, 8-bit moments; embedding and head float32", 2, 2, 0, STATE_8BIT, ends=2
    ),
    "adamw_paged": Preset("float32 weights, moments in host memory", 4, 4, 0, 0, casts=True, host=8, one_gpu=True),
    "adamw_in_backward": Preset(
        "float32, updated during the backward: no accumulation, no global clipping",
        4,
        0,
        0,
        8,
        casts=True,
        one_gpu=True,
    ),
    "adamw_8bit_in_backward": Preset("both: 8 bits, during the backward", 2, 0, 0, STATE_8BIT, one_gpu=True),
}
"""``adamw``, ``_8bit``, ``_paged`` and ``_in_backward`` are names of ``optim.name``; others: to compare."""

CUT = ("zero1", "zero2", "zero3", "fsdp2")
"""Strategies that spread states; ``single`` is ``ddp`` on one GPU."""
BUCKET = 200_000_000
"""Elements that ZeRO reduces at once, by Lightning's default."""
LIVE = 1_000_000_000
"""Elements that ZeRO-3 leaves whole between their uses, by DeepSpeed's default; also of one group of its step."""


def held(name: str, strategy: str, low: bool) -> Preset:
    """What a strategy makes of ``optim.name``, or of a name in ``PRESETS``.

    DeepSpeed holds bf16 weights with float32 masters under bf16-mixed, float32 weights twice under 32-true. Stage 1
    adds gradients up in the weights' precision, stages 2 and 3 in float32 (``data_types.grad_accum_dtype``).
    """
    if name == "adamw" and strategy.startswith("zero"):
        name, kind = "adamw_master", PRESETS["adamw_master"]
        kind = kind if low else replace(kind, weights=4)
    else:
        kind = PRESETS[name]
    return replace(kind, gradients=kind.weights) if name == "adamw_master" and strategy == "zero1" else kind


@dataclass(frozen=True, slots=True)
class Share:
    """Fraction of each part that stands on one of n GPUs."""

    weights: float
    gradients: float
    states: float
    """Optimizer states and masters."""
    keeps: bool = False
    """Gradients have their place from the first step on, in the forward too."""


def share(strategy: str, num_gpus: int, micro: bool = False) -> Share:
    """ZeRO-1 splits the states, ZeRO-2 gradients too, ZeRO-3 and FSDP (full shard) everything; a reference goes with
    the weights.

    ``micro``: gradients add up over more backwards than one; with one, ZeRO-1 lets them go as ZeRO-2 does.
    """
    part = 1 / num_gpus
    cut = {
        "single": Share(1, 1, 1),
        "ddp": Share(1, 1, 1, keeps=num_gpus > 1),
        "zero1": Share(1, 1 if micro else part, part),
        "zero2": Share(1, part, part),
        "zero3": Share(part, part, part, keeps=True),
        "fsdp2": Share(part, part, part),
    }
    return cut[strategy]
