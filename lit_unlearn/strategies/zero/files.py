"""Checkpoints of DeepSpeed: a directory with a file a rank, whole or absent, that runs no code when it is read."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy

from lit_unlearn.parallel import gather_by_key, rank
from lit_unlearn.recording.checkpoints import put_in_place, refuse_unwritten, why_unwritten, write_durably


class ZeroFiles(DeepSpeedStrategy):
    """Lightning's own writes them in place and reads them with code in them."""

    _unwritten: str | None = None  # why this rank's file is not there

    def take_over_files(self) -> None:
        """Once DeepSpeed's engine is there."""
        files: Any = self.deepspeed_engine.checkpoint_engine
        files.save, files.load = self._save, _load

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | os.PathLike, storage_options: Any = None
    ) -> None:
        """A directory with a file a rank, whole or absent.

        Raises:
            UserError: on every rank, where one could not write its file.
        """
        path = Path(self.broadcast(filepath))
        unfinished = path.with_name(f".{path.name}.new.tmp")
        self._unwritten = None
        super().save_checkpoint(checkpoint, unfinished, storage_options)
        refuse_unwritten(path, next(filter(None, gather_by_key({rank(): self._unwritten}).values()), None))
        if self.is_global_zero:
            put_in_place(unfinished, path)
        self.barrier()

    def _save(self, state_dict: Any, path: str) -> None:
        self._unwritten = self._unwritten or why_unwritten(write_durably, state_dict, Path(path))


def _load(path: str, map_location: Any = None) -> Any:
    """Tensors, plain values and a few classes of DeepSpeed's own: a checkpoint runs no code."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address, OrderedDict]):
        return torch.load(path, map_location=map_location, weights_only=True)
