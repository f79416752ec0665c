"""Scores the reference once, before the first step, so that no second model has to be kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.data.tokenize import Encoded, pad
from lit_unlearn.display.screen import phase, track
from lit_unlearn.engine.body import evaluating
from lit_unlearn.engine.head import Head
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.engine.states import scores_of
from lit_unlearn.errors import UserError
from lit_unlearn.halving import Halving
from lit_unlearn.models.streamed.source import fill_whole
from lit_unlearn.parallel import broadcast_object, rank, world_size
from lit_unlearn.reference.store import ReferenceStore, model_digest, store_key, stored_tensors, write_part
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.types import LOGPS, Ask, Role

STORING = "store the reference"
PART_BYTES = 2**30
"""Held in memory before they are written."""


class ReferenceCache(L.Callback):
    """Keeps what the terms read of the policy's start in ``directory``, in a folder named by what it depends on.

    Folders outlive the run: another run from the same model on the same rows finds its scores there. A resumed run
    must find them, for its policy has moved.
    """

    def __init__(
        self, data: UnlearnData, asks: Mapping[Role, Ask], batch_size: int, directory: Path, start: ScoringEngine
    ) -> None:
        """``start``: the policy's engine, before a checkpoint is loaded into it."""
        self.data, self.asks, self.batch_size, self.directory = data, dict(asks), batch_size, directory
        self.start = model_digest(start.model)
        full = any(ask.logps and ask != LOGPS for ask in self.asks.values())
        self.head = Head.of(start.model).frozen() if full else None
        if self.head is not None:
            fill_whole(self.head.shell, start.model)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, UnlearnModule)
        store = pl_module.store = self.stored(trainer, pl_module)
        for role in [role for role, ask in self.asks.items() if ask == LOGPS]:
            rows = self.data.rows[role]
            self.data.know_reference(role, {row.id: store.get(role, row.id, "logps").tolist() for row in rows})

    def stored(self, trainer: L.Trainer, pl_module: UnlearnModule) -> ReferenceStore:
        """What is kept of the rows, made where it is not there yet; every rank calls it.

        Raises:
            UserError: it is not there, and the policy of a resumed run has moved.
        """
        rows = {role: self.data.rows[role] for role in self.asks}
        key = store_key(self.start, rows, self.asks, str(trainer.precision))
        folder = self.directory / key[:16]
        done = folder / "complete"
        if not broadcast_object(done.is_file()):  # another run may finish between two ranks' looks
            with pl_module.reading(), pl_module.start() as start:  # the step's own rounding
                if start is None and trainer.ckpt_path is not None:
                    raise UserError(
                        f"resume=true, but the reference scores of the run's start are not in {folder}; the policy has "
                        "moved, so they cannot be made again: start another run"
                    )
                with phase(STORING):
                    self._write(start or pl_module.engine, rows, folder, key)
            trainer.strategy.barrier()
            if trainer.is_global_zero:
                done.touch()
        return ReferenceStore(folder, key, self.asks, self.head)

    @torch.no_grad()
    def _write(self, engine: ScoringEngine, rows: Mapping[Role, list[Encoded]], folder: Path, key: str) -> None:
        tensors, parts, bytes_held = {}, 0, 0
        with evaluating(engine):
            for role, ask in self.asks.items():
                mine = rows[role][rank() :: world_size()]
                fitting = Halving(partial(_scored, engine, role, ask), "rows to score")
                for first in track(range(0, len(mine), self.batch_size), f"{role} rows"):
                    for found in fitting(mine[first : first + self.batch_size]):
                        tensors |= found
                        bytes_held += sum(tensor.nbytes for tensor in found.values())
                    if bytes_held > PART_BYTES:
                        write_part(folder, f"{rank()}-of-{world_size()}-{parts}", tensors, key)
                        tensors, parts, bytes_held = {}, parts + 1, 0
        write_part(folder, f"{rank()}-of-{world_size()}-{parts}", tensors, key)


def _scored(engine: ScoringEngine, role: Role, ask: Ask, batch: Sequence[Encoded]) -> list[dict[str, Tensor]]:
    states = engine.states({role: pad(batch).to(engine.model.device)}, {role: ask})[role]
    logps = scores_of(states, LOGPS).logps if ask == LOGPS else None
    return [stored_tensors(role, [row.id for row in batch], states, logps)]
