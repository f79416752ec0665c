"""The strategy of Lightning that a config's name stands for."""

from __future__ import annotations

from datetime import timedelta

from lightning.pytorch.strategies import DDPStrategy, Strategy

from lit_unlearn.strategies.fsdp import Fsdp2Strategy
from lit_unlearn.strategies.settings import StrategyConfig
from lit_unlearn.strategies.zero.strategy import ZeroStrategy

_STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}


def chosen(config: StrategyConfig, world: int) -> str:
    """The name behind ``auto``."""
    if config.name != "auto":
        return config.name
    return "single" if world == 1 else "ddp"


def build_strategy(
    config: StrategyConfig, world: int, precision: str, backend: str, learns_partly: bool
) -> Strategy | str:
    """``world``: ranks on all nodes. ``learns_partly``: some trainable weights may get no gradient, so DDP looks for
    them."""
    name, timeout = chosen(config, world), timedelta(minutes=config.timeout_minutes)
    if name in _STAGES:
        return ZeroStrategy(_STAGES[name], config, precision, backend, timeout)
    if name == "fsdp2":
        return Fsdp2Strategy(world, config, backend, timeout)
    if name == "ddp":
        return DDPStrategy(
            process_group_backend=backend,
            timeout=timeout,
            find_unused_parameters=learns_partly,
            gradient_as_bucket_view=True,  # else every gradient is there twice
        )
    return "auto"
