"""Shows a run while it trains: its pictures are drawn again at each evaluation, and W&B gets them with the answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import Logger, WandbLogger

from lit_unlearn.callbacks.evaluation import Evaluation
from lit_unlearn.evaluation.answers import COLUMNS, forget_answers
from lit_unlearn.parallel import rank
from lit_unlearn.recording.plots import draw
from lit_unlearn.recording.wandb.page import log_answers, log_pictures


class Page(L.Callback):
    """Comes after the callbacks that measure, so that what they found at the same step is in the pictures."""

    def __init__(self, evaluation: Evaluation, run_dir: Path, texts: bool = True) -> None:
        """``texts``: whether questions and answers go to W&B, or pictures alone."""
        self.evaluation, self.run_dir, self.texts = evaluation, run_dir, texts
        self.shown: str | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.ckpt_path is None:  # a resumed run has shown its start before
            self.show(trainer.loggers)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.show(trainer.loggers)

    def show(self, loggers: Sequence[Logger]) -> None:
        """The last evaluation, unless it was shown already; the first rank does it. Called once more after the fit."""
        last = self.evaluation.last
        if rank() != 0 or last is None or last.name == self.shown:
            return
        self.shown = last.name
        pictures = draw(self.run_dir, self.evaluation.numbers)
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                log_pictures(logger, pictures, last.step)
                if self.texts:
                    rows = forget_answers(self.evaluation.evaluator, last.records, self.evaluation.original)
                    log_answers(logger, COLUMNS, rows, last.step)
