"""Lightning's loops where ours differ: a step is whole before it is saved, and an epoch goes on in its middle."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from lit_unlearn.training.checkpoints import Checkpoints
from lit_unlearn.training.signals import patience


class Epochs(_FitLoop):
    """Goes on from a checkpoint of an epoch's end with the next epoch, from any other in the middle of its own."""

    def _iteration_based_training(self) -> bool:
        """Under ``max_steps`` Lightning takes an epoch's end for the middle of one: the resumed run would not call
        ``on_train_epoch_start`` and count one epoch too few."""
        return False

    def setup_data(self) -> None:
        """The optimizer's schedule has made the loader before the checkpoint told where it goes on."""
        super().setup_data()
        self._load_combined_loader_states()

    @property
    def done(self) -> bool:
        """Where all steps are taken, but the last epoch has not been ended, it is ended first."""
        return not self.restarting and super().done


class Steps(_TrainingEpochLoop):
    """Nothing is validated in between; a signal waits for the end of the step."""

    def __init__(self, trainer: L.Trainer, max_steps: int, checkpoints: Checkpoints) -> None:
        super().__init__(trainer, max_steps=max_steps)
        self.checkpoints = checkpoints

    def run(self, data_fetcher: _DataFetcher) -> None:
        with patience():
            super().run(data_fetcher)
        self.on_iteration_done()  # not yet done where no step of the epoch was left

    @property
    def _is_validation_done(self) -> bool:
        """Else a run that was stopped behind an epoch's last step would take one more."""
        return True

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        super().on_advance_end(data_fetcher)
        self.checkpoints.step_is_whole(self.trainer, self._is_training_done)

    def _broadcast_sigterm_tensor(self) -> None:
        """``step_is_whole`` asks all ranks, and any may have heard a signal."""
