"""Scores the reference once, before the first step, so that no second model has to be kept."""

from __future__ import annotations

from collections.abc import Collection

import lightning as L
import torch
from tqdm import tqdm

from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.data.tokenize import Encoded, pad
from lit_unlearn.generate import evaluating
from lit_unlearn.module import UnlearnModule
from lit_unlearn.parallel import gather_by_key, rank, world_size
from lit_unlearn.scoring import ScoringEngine
from lit_unlearn.types import LOGPS, Role


class ReferenceCache(L.Callback):
    """Log-probs of the answers under the policy's start; part of the checkpoint, since a resumed policy has moved."""

    def __init__(self, data: UnlearnData, roles: Collection[Role], batch_size: int) -> None:
        self.data, self.roles, self.batch_size = data, sorted(roles), batch_size
        self.logps: dict[str, dict[int, list[float]]] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, UnlearnModule)
        for role in self.roles:
            if role.value not in self.logps:
                rows = self.data.rows[role][rank() :: world_size()]
                title = f"reference log-probs of {role.value}"
                with trainer.precision_plugin.forward_context():  # the training step's own rounding
                    local = answer_logps(pl_module.engine, rows, self.batch_size, title)
                self.logps[role.value] = gather_by_key({row.id: logps for row, logps in zip(rows, local, strict=True)})
            self.data.know_reference(role, self.logps[role.value])

    def state_dict(self) -> dict:
        return {"logps": self.logps}

    def load_state_dict(self, state_dict: dict) -> None:
        self.logps = state_dict["logps"]


@torch.no_grad()
def answer_logps(
    engine: ScoringEngine, rows: list[Encoded], batch_size: int, title: str | None = None
) -> list[list[float]]:
    """Log-prob of each answer token of each row, in evaluation mode."""
    answers = []
    with evaluating(engine):
        for first in tqdm(range(0, len(rows), batch_size), desc=title, disable=title is None, leave=False):
            block = pad(rows[first : first + batch_size]).to(engine.model.device)
            scores = engine.score({Role.forget: block}, {Role.forget: LOGPS})[Role.forget]
            counts = scores.num_tokens.long().tolist()
            answers += [part.tolist() for part in scores.logps.split(counts)]
    return answers
