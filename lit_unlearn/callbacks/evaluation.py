"""Evaluates the policy before, during and after training, on all ranks together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning as L
import torch
from transformers import PreTrainedModel

from lit_unlearn.callbacks.choosing.choice import Choice
from lit_unlearn.callbacks.choosing.disruption import Disruption
from lit_unlearn.errors import UserError
from lit_unlearn.evaluation.base import Records
from lit_unlearn.evaluation.choice.rule import DISRUPTION
from lit_unlearn.evaluation.evaluator import Evaluator
from lit_unlearn.evaluation.records import are_complete, read_records, write_records
from lit_unlearn.files import write_json
from lit_unlearn.models.rounding import Rounding
from lit_unlearn.parallel import broadcast_object, rank
from lit_unlearn.recording.keys import evaluation_key, selection_key
from lit_unlearn.training.module import UnlearnModule

LAST = "last"
"""Name of the model of the last step, where another may be chosen."""


@dataclass(frozen=True)
class Evaluated:
    """What was asked last."""

    name: str
    step: int
    records: Records


class Evaluation(L.Callback):
    """Writes the records, logs the numbers by ``evaluation_key`` and keeps those of each model for ``metrics.json``."""

    def __init__(
        self,
        evaluator: Evaluator,
        run_dir: Path,
        every_n_epochs: int,
        ask_retain_model: Callable[[torch.device], Records] | None,
        settle: Callable[[PreTrainedModel], Rounding | None] | None = None,
        choice: Choice | None = None,
        disruption: Disruption | None = None,
    ) -> None:
        """``ask_retain_model`` is called once, and only if its records are not there yet.

        ``settle`` makes of the trained policy what will be exported, after the last checkpoint. ``choice``: considers
        every evaluation; what it has chosen is put back before. ``disruption``: one more number of each evaluation.
        """
        self.evaluator, self.every_n_epochs = evaluator, every_n_epochs
        self.directory, self.ask_retain_model = run_dir / "records", ask_retain_model
        self.settle, self.rounding = settle, None
        self.choice, self.disruption = choice, disruption
        self.numbers: dict[str, dict[str, float]] = {}
        """Of each model on the report half, on all questions where there is one half only."""
        self.selection: dict[str, dict[str, float]] = {}
        """On the selection half."""
        self.original: Records = {}
        self.last: Evaluated | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, UnlearnModule)
        if self.ask_retain_model is not None:
            with trainer.precision_plugin.forward_context():
                ask = partial(self.ask_retain_model, pl_module.device)
                self.evaluator.retain_model = self._records("retain_model", ask)
        if self.evaluator.retain_model is not None:
            self._take("retain_model", self.evaluator.retain_model)
        if trainer.ckpt_path is not None and not are_complete(self.directory / "original"):
            raise UserError(
                f"resume=true, but the records in {self.directory / 'original'} are not whole; the policy has moved, "
                "so the original model can no longer be asked: put them back or start another run"
            )
        self.original = self._records("original", lambda: self._read(pl_module, "original"))
        if self.evaluator.split is not None and rank() == 0:
            write_json(self.directory / "selection.json", self.evaluator.split.as_lists())
        self._keep("original", self.original, step=0, disruption=0.0)
        if trainer.ckpt_path is None:  # else they have been logged
            self._log(pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        last = epoch == trainer.max_epochs or trainer.global_step >= trainer.estimated_stepping_batches
        last |= self.choice is not None and self.choice.stopped is not None
        if self.every_n_epochs and epoch % self.every_n_epochs == 0 and not last:
            self._ask(f"epoch-{epoch:03d}", pl_module, pl_module.global_step)
            self._consider(f"epoch-{epoch:03d}", pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, UnlearnModule)
        step = pl_module.global_step
        if self.disruption is not None:
            self.disruption.look(pl_module)
        if self.choice is not None:
            if self.choice.reads_evaluations and not self.choice.knows(step):
                self._ask(LAST, pl_module, step)
                self._consider(LAST, pl_module)
            self.choice.put_back(pl_module)
            step = self.choice.chosen_step(step)
        if self.settle is not None:
            self.rounding = self.settle(pl_module.engine.model)
        self._ask("unlearned", pl_module, step)

    def finish(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """For a resumed run that had no step left to train, in which Lightning calls no hook of the training's end."""
        if "unlearned" not in self.numbers:
            pl_module.to(trainer.strategy.root_device)
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                callback.on_train_end(trainer, pl_module)

    def _consider(self, name: str, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, UnlearnModule)
        if self.choice is not None and self.choice.reads_evaluations:
            self.choice.consider(pl_module, self.selection[name], self.selection["original"])

    def _ask(self, name: str, pl_module: L.LightningModule, step: int) -> None:
        assert isinstance(pl_module, UnlearnModule)
        records, moved = self._read(pl_module, name), None
        if rank() == 0:
            write_records(self.directory / name, records)
        if self.disruption is not None:  # of the final model, which may be another than the last step's
            moved = (self.disruption.measure if name == "unlearned" else self.disruption.look)(pl_module)
        self._keep(name, records, step, moved)
        self._log(pl_module)

    def _read(self, pl_module: L.LightningModule, name: str) -> Records:
        assert isinstance(pl_module, UnlearnModule)
        with pl_module.reading():
            return self.evaluator.ask(pl_module.engine, name)

    def _keep(self, name: str, records: Records, step: int, disruption: float | None = None) -> None:
        self._take(name, records, disruption)
        self.last = Evaluated(name, step, records)

    def _log(self, pl_module: L.LightningModule) -> None:
        assert self.last is not None
        name = self.last.name
        logged = {evaluation_key(number): value for number, value in self.numbers[name].items()}
        logged |= {selection_key(number): value for number, value in self.selection.get(name, {}).items()}
        for logger in pl_module.loggers:
            logger.log_metrics(logged, step=self.last.step)

    def _take(self, name: str, records: Records, disruption: float | None = None) -> None:
        more = {} if self.disruption is None or disruption is None else {DISRUPTION: disruption}
        self.numbers[name] = self.evaluator.report(records) | more
        if self.evaluator.split is not None:
            self.selection[name] = self.evaluator.select(records) | more

    def _records(self, name: str, ask: Callable[[], Records]) -> Records:
        """Of a model that does not change: a resumed run reads what the first start wrote."""
        directory = self.directory / name
        if broadcast_object(are_complete(directory)):
            return read_records(directory)
        records = ask()
        if rank() == 0:
            write_records(directory, records)
        return records
