"""Settings of a sweep, read before torch is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from lit_unlearn.evaluation.choice.settings import KeepBestConfig


@dataclass
class SearchConfig:
    """Points that Optuna (https://optuna.org) proposes one after the other; needs the extra ``sweep``."""

    space: dict[str, Any] = field(default_factory=dict)
    """Setting -> ``{low: 1e-6, high: 1e-4, log: true}``, with ``step: 1`` and whole bounds for whole numbers, or
    ``{choices: [1.0, 2.0]}``."""
    num_trials: int = 20
    sampler: Literal["tpe", "random"] = "tpe"
    """``tpe``: after ten random ones, where the best so far are more frequent. ``random``: each by itself."""

    def __post_init__(self) -> None:
        self.space = _specs(self.space)
        if self.num_trials < 1 or not self.space:
            raise ValueError(f"search: num_trials={self.num_trials} must be at least 1, and space name a setting")
        for key, spec in self.space.items():
            keys = set(spec) if isinstance(spec, Mapping) else set()
            chosen = keys == {"choices"} and isinstance(spec["choices"], list) and spec["choices"]
            if not chosen and not ({"low", "high"} <= keys <= {"low", "high", "log", "step"}):
                raise ValueError(f"search.space.{key}={spec} must be {{low: ..., high: ...}} or {{choices: [...]}}")
            if not chosen:
                _check_bounds(f"search.space.{key}={spec}", **spec)


@dataclass
class SweepConfig:
    """A list of runs: ``points`` times ``grid``, or the trials of ``search``, for each of ``seeds``."""

    conf: str = "???"
    """What every run starts from, by name or path; ``conf`` may be an axis too."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of all runs, on top of the conf."""
    grid: dict[str, Any] = field(default_factory=dict)
    """Setting -> list of its values, e.g. ``{optim.lr: [1e-5, 2e-5]}``; every combination is a point."""
    points: list[dict[str, Any]] = field(default_factory=list)
    """Points one by one, e.g. ``[{conf: methods/llama1b_npo, optim.lr: 1e-5}]``."""
    search: SearchConfig | None = None
    seeds: list[int] = field(default_factory=list)
    """The slowest axis; numbers are averaged over it. Empty: the conf's own seed. The first is also
    ``evaluation.selection.seed`` of all points where that is null: no seed may choose by what another reports."""
    rule: KeepBestConfig | None = None
    """What points are ranked by and a search optimizes, of the numbers on the selection half where there is one:
    ``{metric: agg, constraints: {utility: {min_ratio: 0.95}}}``. Null: the conf's ``evaluation.keep_best``, or the
    largest ``agg``."""
    slurm: dict[str, Any] = field(default_factory=dict)
    """Options of ``sbatch``, e.g. ``{time: "4:00:00", partition: gpu}``."""
    limit: int = 4
    """Tasks of the array that may run at a time."""
    jobs: int = 1
    """Points that ``run`` works on at a time."""
    point: int | None = None
    """The one that ``run`` works on; null: all, or within an array of SLURM the task's own."""
    dry_run: bool = False
    """``submit`` prints what it would do, and does nothing."""
    output_dir: str = "???"
    """Directory of the runs and of what they share; runs/sweeps/<name> unless set."""
    day: str | None = None
    """What ``data.prompt.date`` is where a conf leaves it to the day; null: that of the sweep's start."""
    debug: bool = False
    """Show tracebacks of user errors."""

    def __post_init__(self) -> None:
        if min(self.jobs, self.limit) < 1:
            raise ValueError(f"jobs={self.jobs} and limit={self.limit} must be at least 1")
        if self.search is not None and (self.grid or self.points or len(self.seeds) > 1):
            raise ValueError("search proposes the points itself: leave grid and points out, and give one seed at most")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds} names one twice")
        for key, values in flat(self.grid).items():
            if not isinstance(values, list) or not values:
                raise ValueError(f"grid.{key}={values} must be a list of values")
        if any(not isinstance(point, Mapping) or not point for point in self.points):
            raise ValueError("points must be a list of {setting: value, ...}, none of them empty")


OF_THE_CALL = ("limit", "jobs", "point", "dry_run", "output_dir", "debug")
"""What says how a sweep is worked on, not what it is; may be another at each call."""


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"optim": {"lr": 1}}`` and ``{"optim.lr": 1}`` alike as the second."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        inner = isinstance(value, Mapping) and value
        found |= flat(cast(Mapping, value), f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def _check_bounds(told: str, low: Any, high: Any, log: Any = False, step: Any = None) -> None:
    """Raises ValueError for what Optuna would refuse, at its first trial."""
    numbers = [low, high, *([] if step is None else [step])]
    if any(isinstance(number, bool) or not isinstance(number, int | float) for number in numbers):
        raise ValueError(f"{told}: low, high and step must be numbers")
    if not low < high:
        raise ValueError(f"{told}: low must be below high")
    if not isinstance(log, bool) or (log and (low <= 0 or step is not None)):
        raise ValueError(f"{told}: log must be true or false, and true needs low above 0 and goes without step")
    if step is not None and step <= 0:
        raise ValueError(f"{told}: step must be above 0")


def _specs(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """As ``flat``, down to what says where a setting lies."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        inner = isinstance(value, Mapping) and all(isinstance(part, Mapping) for part in value.values())
        found |= _specs(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found
