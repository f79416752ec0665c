"""Keeps the weights of the best step so far by a rule, ends a training that brings no better, puts the best back."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L

from lit_unlearn.callbacks.choosing.kept import KeptWeights
from lit_unlearn.errors import UserError
from lit_unlearn.evaluation.choice.rule import DISRUPTION, Numbers, Rule
from lit_unlearn.evaluation.choice.settings import BoundConfig
from lit_unlearn.evaluation.settings import EvaluationConfig
from lit_unlearn.parallel import rank
from lit_unlearn.recording.checkpoints import checkpoints
from lit_unlearn.training.module import UnlearnModule

log = logging.getLogger(__name__)
STEP = "step"


@dataclass(frozen=True)
class Candidate:
    """A step whose weights could be the saved ones."""

    step: int
    epoch: int
    value: float | None
    """As of ``Rule.value``."""
    broken: list[str]


class Choice(L.Callback):
    """What it knows lies in each checkpoint; weights that a kept checkpoint would call the best stay on disk.

    Without ``keep_best`` the rule is the latest step within the budget of ``disruption``.
    """

    def __init__(self, rule: Rule, patience: int | None, run_dir: Path) -> None:
        """``patience``: as of ``early_stop``; None: never."""
        self.rule, self.patience = rule, patience
        self.kept, self.checkpoints = KeptWeights(run_dir / "chosen"), run_dir / "checkpoints"
        self.candidates: list[Candidate] = []
        self.stopped: dict[str, Any] | None = None
        """At which step the training was ended, and why."""

    @classmethod
    def of(cls, config: EvaluationConfig, run_dir: Path) -> Choice | None:
        """None: the weights of the last step are saved."""
        rule = Rule.of(config)
        if rule is None and config.disruption is not None:
            rule = Rule(STEP, constraints={DISRUPTION: BoundConfig(max=config.disruption.max)})
        patience = None if config.early_stop is None else config.early_stop.patience
        return None if rule is None else cls(rule, patience, run_dir)

    @property
    def reads_evaluations(self) -> bool:
        """Whether candidates are those of the evaluations, not of the measurements of the disruption alone."""
        return self.rule.metric != STEP

    @property
    def best(self) -> Candidate | None:
        """None: no candidate so far keeps to the constraints."""
        return self._best_until(self.candidates[-1].step) if self.candidates else None

    def knows(self, step: int) -> bool:
        return any(candidate.step == step for candidate in self.candidates)

    def consider(self, module: UnlearnModule, numbers: Numbers, original: Numbers) -> None:
        """The model as it is now, with its numbers, unless it is known; every rank calls it with the same."""
        step, broken = module.global_step, self.rule.broken(numbers, original)
        if self.knows(step):
            return
        # ``current_epoch`` is one less until the epoch ends
        epoch: int = module.trainer.fit_loop.epoch_progress.current.started  # type: ignore[attr-defined]
        self.candidates.append(Candidate(step, epoch, self.rule.value(numbers, original), broken))
        best = self.best
        if best is not None and best.step == step:
            self.kept.write(module.trainer.strategy, module.engine.model, step)
            bests = map(self._best_until, self._known_by_checkpoints())
            self.kept.prune({step} | {old.step for old in bests if old is not None})
        since = len(self.candidates) if best is None else self.candidates[::-1].index(best)
        if self.patience is not None and since >= self.patience:
            self.stop(module.trainer, f"{since} evaluations in a row brought no better model")

    def stop(self, trainer: L.Trainer, why: str) -> None:
        """End the training after this step; every rank calls it."""
        if self.stopped is None:
            self.stopped = {"step": trainer.global_step, "why": why}
            trainer.should_stop = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Of a resumed run: what was ended stays so, and no step is trained for a choice that could not be made."""
        self._check()
        if self.stopped is not None:
            trainer.should_stop = True

    def _check(self) -> None:
        """Raises UserError where the best weights so far, which a checkpoint counts on, are gone."""
        if self.best is not None and not self.kept.has(self.best.step):
            raise UserError(
                f"resume=true, but the weights of the best step so far, {self.best.step}, are not in "
                f"{self.kept.directory}: put them back or start another run"
            )

    def put_back(self, module: UnlearnModule) -> None:
        """After the last step: the model is the chosen one."""
        self._check()
        best = self.best
        if best is not None and best.step != module.global_step:
            self.kept.put_back(module.trainer.strategy, module.engine.model, best.step)
        if best is None and rank() == 0:
            log.warning("%s", self)

    def chosen_step(self, last: int) -> int:
        return last if self.best is None else self.best.step

    def as_numbers(self) -> dict[str, Any]:
        """For ``metrics.json``."""
        chosen = self.best or self.candidates[-1]
        told = {"rule": str(self.rule), "keeps_constraints": self.best is not None, "stopped": self.stopped}
        return asdict(chosen) | told | {"considered": len(self.candidates)}

    def __str__(self) -> str:
        best, last = self.best, self.candidates[-1]
        ended = (
            "" if self.stopped is None else f"; training ended at step {self.stopped['step']}: {self.stopped['why']}"
        )
        if best is None:
            kept = (
                f"none of {len(self.candidates)} steps keeps to the rule, {self.rule}: the last one, step {last.step}, "
            )
            return f"{kept}is saved, where {' and '.join(last.broken) or f'{self.rule.metric} is unknown'}{ended}"
        value = f", {self.rule.metric}={best.value:.4g} on the selection half" if self.reads_evaluations else ""
        return f"saved: step {best.step} (epoch {best.epoch}) by {self.rule}{value}{ended}"

    def state_dict(self) -> dict[str, Any]:
        return {"candidates": [asdict(candidate) for candidate in self.candidates], "stopped": self.stopped}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.candidates = [Candidate(**fields) for fields in state_dict["candidates"]]
        self.stopped = state_dict["stopped"]

    def _best_until(self, step: int) -> Candidate | None:
        best = None
        for candidate in self.candidates:
            if candidate.step <= step and self.rule.better(candidate.value, None if best is None else best.value):
                best = candidate
        return best

    def _known_by_checkpoints(self) -> list[int]:
        """Steps up to which the checkpoints may know candidates: their own, or the one before, where they were written
        ahead of an epoch's evaluation."""
        names = [path.stem.rpartition("-")[2] for path in checkpoints(self.checkpoints)]
        return [step for name in names if name.isdigit() for step in (int(name) - 1, int(name))]
