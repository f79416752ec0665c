"""Tells the display how far a training is."""

from __future__ import annotations

import lightning as L

from lit_unlearn.display.screen import advance, begin, end


class Progress(L.Callback):
    """First among the callbacks, so that what others do at the training's end is no longer part of it."""

    def __init__(self, title: str) -> None:
        self.title = title

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        begin(self.title, int(trainer.estimated_stepping_batches), trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs, batch, batch_idx) -> None:
        advance(f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        end()
