"""Settings of the choice, read before torch is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class SelectionConfig:
    """How every probe is cut in two by the ids of its examples: whatever chooses a model sees the selection half,
    whatever is reported the report half."""

    share: float = 0.5
    """Of the examples of each set that are in the selection half."""
    seed: int | None = None
    """Of the cut; null: the run's ``seed``. Runs that are compared with each other need the same cut."""

    def __post_init__(self) -> None:
        if not 0.0 < self.share < 1.0:
            raise ValueError(f"evaluation.selection.share={self.share} must lie between 0 and 1")


@dataclass
class BoundConfig:
    """What a number must keep to."""

    min: float | None = None
    max: float | None = None
    min_ratio: float | None = None
    """Times the original model's number on the same questions."""
    max_ratio: float | None = None

    def __post_init__(self) -> None:
        if self.min is self.max is self.min_ratio is self.max_ratio is None:
            raise ValueError(
                "evaluation.keep_best.constraints: a bound is empty; give it min, max, min_ratio or max_ratio"
            )


@dataclass
class KeepBestConfig:
    """The rule by which the saved weights are chosen among those of the evaluations."""

    metric: str
    """A number of the evaluation by its name in ``metrics.json``, as ``agg`` or ``utility/retain_probability``."""
    mode: Literal["max", "min"] = "max"
    """Whether the largest or the smallest is best; of equal ones the earliest."""
    constraints: dict[str, BoundConfig] = field(default_factory=dict)
    """Bounds by the name of a number, as ``{utility: {min_ratio: 0.95}}``; what breaks one is not chosen."""


@dataclass
class EarlyStopConfig:
    """When training ends before its last epoch, by ``keep_best``'s rule."""

    patience: int
    """Evaluations in a row that bring no better model."""

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"evaluation.early_stop.patience={self.patience} must be at least 1")


@dataclass
class DisruptionConfig:
    """How far the policy may move from its start where nothing is to change. Training stops at the first measurement
    above ``max``; saved is the last measured step below, or ``keep_best``'s among those evaluated. Where there is none
    the last step is, and ``metrics.json`` says so. Rounding to ``export.dtype`` comes after."""

    max: float = 0.01
    """Budget in nats: KL(start || policy), mean over the answer tokens of retain rows that are not trained on."""
    num_rows: int = 32
    """Rows of the retain split that are held out of training."""
    every_n_steps: int = 10
    """Measure after every n-th step, and at each evaluation; without ``keep_best`` the trained weights are written each
    time."""

    def __post_init__(self) -> None:
        if self.max <= 0.0:
            raise ValueError(f"evaluation.disruption.max={self.max} must be above 0")
        if min(self.num_rows, self.every_n_steps) < 1:
            raise ValueError("evaluation.disruption.num_rows and every_n_steps must be at least 1")
