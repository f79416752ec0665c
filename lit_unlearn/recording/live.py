"""Hands whatever is logged to the display, whoever logs it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers.logger import Logger

from lit_unlearn.display.screen import show


class Live(Logger):
    """Keeps nothing; Lightning has made plain numbers of what it is given, for the other loggers."""

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        show(metrics, step or 0)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nobody watches settings."""
