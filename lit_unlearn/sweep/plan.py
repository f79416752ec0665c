"""The points a sweep stands for, and where what comes of them lies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from lit_unlearn.config.load import configured
from lit_unlearn.config.schema import Config
from lit_unlearn.errors import UserError
from lit_unlearn.evaluation.choice.rule import Rule
from lit_unlearn.sweep.settings import SweepConfig, flat


@dataclass(frozen=True)
class Point:
    """One run."""

    number: int
    conf: str
    settings: Mapping[str, Any]
    """Full key -> value, on top of the conf."""

    def arguments(self) -> list[str]:
        """As the commands take them; every value is YAML."""
        return [f"conf={self.conf}", *(f"{key}={json.dumps(value)}" for key, value in self.settings.items())]

    def config(self) -> Config:
        """What the arguments lead to.

        Raises:
            UserError: a key, type or value that a run does not take; begins with the point's number.
        """
        overrides = OmegaConf.create({})
        try:
            for key, value in self.settings.items():
                OmegaConf.update(overrides, key, value, merge=False, force_add=True)
            return configured(self.conf, cast(dict[str, Any], OmegaConf.to_container(overrides)))
        except UserError as error:
            raise UserError(f"point {self.number}: {error}") from error

    def having(self, settings: Mapping[str, Any]) -> Point:
        """With these settings on top."""
        return replace(self, settings={**self.settings, **settings})

    def on(self, day: str | None) -> Point:
        """With the day that templates are told, where the conf leaves it to the start: one for all runs of a sweep."""
        left = day is not None and self.config().data.prompt.date is None
        return self.having({"data.prompt.date": day}) if left else self

    def cut_by(self, seed: int) -> Point:
        """With the seed of the cut into selection and report half, where there is one and the conf leaves its seed to
        the run's."""
        selection = self.config().evaluation.selection
        left = selection is not None and selection.seed is None
        return self.having({"evaluation.selection.seed": seed}) if left else self


@dataclass(frozen=True)
class Sweep:
    """Points in order, and their directory."""

    config: SweepConfig
    verb: str

    @property
    def directory(self) -> Path:
        return Path(self.config.output_dir)

    @property
    def name(self) -> str:
        return self.directory.resolve().name

    @cached_property
    def points(self) -> list[Point]:
        """Their numbers are those of an array's tasks. Of a search they lack what Optuna is to propose."""
        config = self.config
        seeds = [{"seed": seed} for seed in config.seeds] or [{}]
        listed = [flat(point) for point in config.points] or [{}]
        axes = [[{key: value} for value in values] for key, values in flat(config.grid).items()]
        trials = [{}] * (config.search.num_trials if config.search else 1)
        chosen = product(seeds, listed, *axes, trials)
        return [self._point(number, parts) for number, parts in enumerate(chosen)]

    def aligned(self, point: Point) -> Point:
        """With what a conf leaves to its run and all runs of a sweep need alike: the day, and the cut of the probes, or
        one seed would choose by what another reports."""
        return point.on(self.config.day).cut_by(self._first_seed)

    @cached_property
    def _first_seed(self) -> int:
        return self.points[0].config().seed

    @property
    def rule(self) -> Rule:
        """By which one point is better than another."""
        if self.config.rule is not None:
            return Rule(self.config.rule.metric, self.config.rule.mode, self.config.rule.constraints)
        return Rule.of(self.points[0].config().evaluation) or Rule("agg")

    def _point(self, number: int, parts: tuple[Mapping[str, Any], ...]) -> Point:
        settings: dict[str, Any] = {"logging.group": self.name} | flat(self.config.settings)
        for part in parts:
            settings |= part
        conf = str(settings.pop("conf", self.config.conf))
        return Point(number, conf, settings)

    def run_dir(self, number: int) -> Path:
        """``output_dir`` of a point."""
        return self.directory / f"{self.name}-{number}"

    def task_dir(self, number: int) -> Path:
        """What is known of a point beside its run: who works on it, what was printed, why it ended."""
        return self.directory / "tasks" / str(number)

    @property
    def shared_dir(self) -> Path:
        return self.directory / "shared"
