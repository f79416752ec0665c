"""Settings of the strategy, read before torch is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

StrategyName = Literal["auto", "single", "ddp", "zero1", "zero2", "zero3", "fsdp2"]
Gathering = Literal["auto", "whole", "blocks"]
CUT = ("zero1", "zero2", "zero3", "fsdp2")
"""Strategies that cut gradients or moments in pieces."""


@dataclass
class StrategyConfig:
    """Which part of the states each rank holds. Bytes a weight under bf16-mixed with AdamW, W ranks, copies on
    their way apart: ``ddp`` and ``single`` 16, ``zero1`` 2 + 14 / W, ``zero2`` 2 + 16 / W, ``zero3`` 18 / W, ``fsdp2``
    16 / W: ZeRO holds bf16 weights beside float32 masters."""

    name: StrategyName = "auto"
    """``single``: one process. ``ddp``: whole copies. ``zero1``, ``zero2``, ``zero3``: DeepSpeed cuts the moments, the
    gradients too, the weights too (Rajbhandari et al., 2020). ``fsdp2``: PyTorch cuts all three. ``auto``: ``single``
    on one device, else ``ddp``."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What waits in the host's memory: the moments, which the host's processors then move, or the weights too; for
    ``zero2`` and ``zero3``."""
    persistent_below: int = 100_000
    """Under ``zero3``, weights of fewer elements stay whole on every rank."""
    gathering: Gathering = "auto"
    """How weights in pieces are read between the steps, to evaluate or to sample. ``whole``: all at once, once.
    ``blocks``: each decoder block while it runs, which takes the memory of one and several times as long. ``auto``:
    ``whole`` where half of a GPU's free memory holds it, and on CPUs."""
    timeout_minutes: float = 60
    """How long a process waits for the others, which may evaluate or write meanwhile, before it ends."""

    @property
    def cuts_weights(self) -> bool:
        """Whether no process needs to hold a whole model."""
        return self.name in ("zero3", "fsdp2")

    def __post_init__(self) -> None:
        if not 0 < self.timeout_minutes < 10**6:
            raise ValueError(f"strategy.timeout_minutes={self.timeout_minutes} must be above 0")
        if self.persistent_below < 0:
            raise ValueError(f"strategy.persistent_below={self.persistent_below} must not be negative")
        if self.offload != "none" and self.name not in ("zero2", "zero3"):
            raise ValueError(f"strategy.offload={self.offload} needs strategy.name=zero2 or zero3, not {self.name}")
        if self.offload == "parameters" and self.name != "zero3":
            raise ValueError("strategy.offload=parameters needs strategy.name=zero3; zero2 can offload the optimizer")
