"""How far the policy has moved from its start on retain rows that it is not trained on; too far ends the training."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
import torch

from lit_unlearn.callbacks.choosing.choice import STEP, Choice
from lit_unlearn.callbacks.reference_cache import ReferenceCache
from lit_unlearn.data.tokenize import Encoded, pad
from lit_unlearn.engine.body import evaluating
from lit_unlearn.evaluation.choice.rule import DISRUPTION
from lit_unlearn.evaluation.choice.settings import DisruptionConfig
from lit_unlearn.objectives.kl import KL
from lit_unlearn.parallel import all_reduce_sum, rank, world_size
from lit_unlearn.recording.keys import evaluation_key
from lit_unlearn.reference.store import ReferenceStore
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.types import Role, Term

KL_TO_START = {DISRUPTION: Term(1.0, KL(Role.retain))}
"""KL(start || policy) over the vocabulary, mean over the answer tokens of all rows."""


class Disruption(L.Callback):
    """The start's final hidden states are stored once, as for a term that reads them; a measurement is one forward of
    the policy over the held-out rows. Logged as ``eval/disruption``."""

    def __init__(self, cache: ReferenceCache, config: DisruptionConfig, choice: Choice, batch_size: int) -> None:
        """``cache``: of the held-out rows."""
        self.cache, self.config, self.choice, self.batch_size = cache, config, choice, batch_size
        self.store: ReferenceStore | None = None
        self.known: tuple[int, float] | None = None
        """The last step measured, and its value."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, UnlearnModule)
        self.store = self.cache.stored(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs, batch, batch_idx) -> None:
        assert isinstance(pl_module, UnlearnModule)
        if trainer.global_step % self.config.every_n_steps == 0:
            self.look(pl_module)

    def look(self, module: UnlearnModule) -> float:
        """The value at this step, in nats; past the budget it ends the training. Every rank calls it."""
        step = module.global_step
        if self.known is not None and self.known[0] == step:
            return self.known[1]
        value = self.measure(module)
        self.known = step, value
        for logger in module.loggers:
            logger.log_metrics({evaluation_key(DISRUPTION): value}, step)
        if not self.choice.reads_evaluations:
            self.choice.consider(module, {STEP: step, DISRUPTION: value}, {})
        if not value <= self.config.max:
            self.choice.stop(module.trainer, f"{DISRUPTION}={value:.4g} is above {self.config.max:g}")
        return value

    @torch.no_grad()
    def measure(self, module: UnlearnModule) -> float:
        """The same on all ranks, whose number it depends on only in the order of a sum."""
        assert self.store is not None
        engine, rows = module.engine, self.cache.data.rows[Role.retain]
        total = 0.0
        with module.reading(), evaluating(engine):
            blocks = [{Role.retain: pad(own).to(engine.model.device)} for own in _shares(rows, self.batch_size)]
            weigh = [engine.weigh(block, KL_TO_START) for block in blocks]
            overall = all_reduce_sum(torch.stack(weigh).sum(0))
            for block in blocks:
                start = {Role.retain: self.store.states(Role.retain, block[Role.retain])}
                total += engine.forward(block, KL_TO_START, start, overall=overall).losses[DISRUPTION]
            self.store.working = None  # a head that is not trained may be the policy's own, whole only in here
        return total


def _shares(rows: Sequence[Encoded], batch_size: int) -> list[list[Encoded]]:
    """This rank's rows of each batch; all ranks get as many batches, and none of them is empty."""
    count = max(1, min(-(-len(rows) // batch_size), len(rows) // world_size()))
    batches = [rows[number::count] for number in range(count)]
    return [list(batch[rank() :: world_size()]) for batch in batches]
