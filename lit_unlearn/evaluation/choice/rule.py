"""Which of two models is better, by their numbers alone; sweeps rank their points with it too."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from lit_unlearn.evaluation.choice.settings import BoundConfig
from lit_unlearn.evaluation.settings import EvaluationConfig

DISRUPTION = "disruption"
"""Name of the divergence from the start among a model's numbers."""
Numbers = Mapping[str, float | None]
"""Of a model by name, as in ``metrics.json``: what is not finite is None there."""


@dataclass(frozen=True)
class Rule:
    """``keep_best`` with the budget of ``disruption``, where there is one, among its constraints."""

    metric: str
    mode: Literal["max", "min"] = "max"
    constraints: Mapping[str, BoundConfig] = field(default_factory=dict)

    @classmethod
    def of(cls, config: EvaluationConfig) -> Rule | None:
        """None: there is no ``keep_best``."""
        best, budget = config.keep_best, config.disruption
        if best is None:
            return None
        bounds = {} if budget is None else {DISRUPTION: BoundConfig(max=budget.max)}
        return cls(best.metric, best.mode, bounds | best.constraints)

    @property
    def reads(self) -> list[str]:
        """Names of the numbers it looks at."""
        return list(dict.fromkeys([self.metric, *self.constraints]))

    def value(self, numbers: Numbers, original: Numbers) -> float | None:
        """The metric of a model that keeps to all constraints; None where one is broken, or a number is not there.

        Args:
            numbers: of the model, on the selection half: ``selection.unlearned`` of a finished run.
            original: of the model before unlearning, on the same half.
        """
        value = numbers.get(self.metric)
        if value is None or not math.isfinite(value) or self.broken(numbers, original):
            return None
        return value

    def broken(self, numbers: Numbers, original: Numbers) -> list[str]:
        """A line for each bound that a model does not keep to."""
        return [
            f"{name}={_told(numbers.get(name))} is {side} {_told(limit)}"
            for name, bound in self.constraints.items()
            for side, limit in _limits(bound, original.get(name))
            if not _keeps(numbers.get(name), side, limit)
        ]

    def better(self, value: float | None, than: float | None) -> bool:
        """Whether a value, as of ``value``, is better; an equal one is not, and None is never."""
        if value is None or than is None:
            return value is not None
        return value > than if self.mode == "max" else value < than

    def __str__(self) -> str:
        kept = [
            f"{name} {key.replace('_', ' ')} {limit:g}"
            for name, bound in self.constraints.items()
            for key, limit in vars(bound).items()
            if limit is not None
        ]
        return f"{self.mode} {self.metric}" + (f" with {', '.join(kept)}" if kept else "")


def _limits(bound: BoundConfig, original: float | None) -> Iterator[tuple[str, float | None]]:
    """("below" or "above", limit) for each that is set; None: a ratio to a number that is not there."""
    if bound.min is not None:
        yield "below", bound.min
    if bound.max is not None:
        yield "above", bound.max
    if bound.min_ratio is not None:
        yield "below", None if original is None else bound.min_ratio * original
    if bound.max_ratio is not None:
        yield "above", None if original is None else bound.max_ratio * original


def _keeps(value: float | None, side: str, limit: float | None) -> bool:
    if value is None or limit is None or math.isnan(value) or math.isnan(limit):
        return False
    return value >= limit if side == "below" else value <= limit


def _told(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"
