"""Samples the policy's beliefs: its own answers to the forget prompts, which BS-S suppresses too."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass

import lightning as L

from lit_unlearn.callbacks.settings import BeliefConfig
from lit_unlearn.data.beliefs import Belief, BeliefStore
from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.data.ends import AnswerEnd
from lit_unlearn.data.tokenize import Encoded
from lit_unlearn.engine.answers import score_answers
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.generation.generate import Prompt, Sampling, generate
from lit_unlearn.parallel import gather_by_key, rank, world_size
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.types import Role

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Counts:
    """Of the samples of one prompt."""

    empty: int
    duplicates: int
    """Repeat another that is kept."""
    targets: int
    """Say the true answer, kept or not."""


class BeliefSampler(L.Callback):
    """The store's only writer. Every prompt of the coming window is sampled, whichever batch it will be in."""

    def __init__(
        self,
        store: BeliefStore,
        data: UnlearnData,
        config: BeliefConfig,
        end: AnswerEnd,
        seed: int,
        keep_text: bool = True,
    ) -> None:
        """``keep_text``: write the beliefs, whose token ids are text, into checkpoints."""
        self.store, self.data, self.config, self.end, self.seed = store, data, config, end, seed
        self.keep_text = keep_text
        if config.every_n_steps == 1 and config.temperature == 1:
            log.warning("beliefs resampled every step at temperature 1 give no gradient in expectation; lower it")

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Beliefs of the policy's start that no checkpoint holds: sampled before one is loaded, so always the same."""
        once = self.config.every_n_epochs is None and self.config.every_n_steps is None
        if once and not self.keep_text:
            pl_module.to(trainer.strategy.root_device)  # Lightning's own move comes later
            self._refresh(pl_module, self._every_prompt())

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A resumed run whose checkpoint holds no beliefs; in the middle of an epoch nothing else would sample them."""
        if not self.store.rounds or self.store.beliefs:
            return
        if rank() == 0:
            log.warning("beliefs are sampled anew: under privacy=hashed the checkpoint holds none")
        if trainer.fit_loop.restarted_mid_epoch:
            self._refresh(pl_module, self._every_prompt())

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch, period = trainer.current_epoch, self.config.every_n_epochs
        if self.store.beliefs and (period is None or epoch % period):
            return  # refreshed by steps, not in this epoch, or sampled once for the whole run
        if self.config.every_n_steps is not None:
            self._refresh_window(pl_module, epoch, 0)
        else:
            self._refresh(pl_module, self._every_prompt())

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs, batch, batch_idx) -> None:
        period = self.config.every_n_steps
        more = trainer.global_step < trainer.estimated_stepping_batches
        if period is not None and more and trainer.global_step % period == 0:  # before the next batch meets the store
            self._refresh_window(pl_module, trainer.current_epoch, batch_idx + 1)

    def _every_prompt(self) -> list[int]:
        return list(range(len(self.data.rows[Role.forget])))

    def _refresh_window(self, pl_module: L.LightningModule, epoch: int, step: int) -> None:
        assert self.data.sampler is not None
        assert self.config.every_n_steps is not None
        self._refresh(pl_module, self.data.sampler.window(epoch, step, self.config.every_n_steps))

    def _refresh(self, pl_module: L.LightningModule, indices: list[int]) -> None:
        assert isinstance(pl_module, UnlearnModule)
        started = time.monotonic()
        rows = [self.data.rows[Role.forget][index] for index in indices]
        with pl_module.reading():
            if self.config.stale_after is not None:
                falls = gather_by_key(self._falls(pl_module.engine, rows[rank() :: world_size()]))
                rows = [row for row in rows if falls.get(row.id, math.inf) > self.config.stale_after]
            sampled = gather_by_key(self._sample(pl_module, rows[rank() :: world_size()]))
        self.store.beliefs |= {id: beliefs for id, (beliefs, _) in sampled.items()}
        self.store.rounds += 1
        kept = [belief for beliefs, _ in sampled.values() for belief in beliefs]
        stats = {
            "beliefs/refreshed": float(len(sampled)),
            "beliefs/kept": float(len(kept)),
            "beliefs/empty": float(sum(counts.empty for _, counts in sampled.values())),
            "beliefs/duplicates": float(sum(counts.duplicates for _, counts in sampled.values())),
            "beliefs/refresh_seconds": time.monotonic() - started,
        }
        if sampled:
            targets = sum(counts.targets for _, counts in sampled.values())
            stats["beliefs/target_share"] = targets / (len(sampled) * self.config.num_samples)
        if kept:
            stats["beliefs/mean_tokens"] = sum(len(belief.tokens) for belief in kept) / len(kept)
            stats["beliefs/mean_logp"] = sum(belief.logp for belief in kept) / len(kept)
        for logger in pl_module.loggers:
            logger.log_metrics(stats, step=pl_module.global_step)

    def _falls(self, engine: ScoringEngine, rows: list[Encoded]) -> dict[int, float]:
        """Largest fall of mean token log-prob since sampling, over the beliefs of each prompt that has any."""
        stored = [(row, belief) for row in rows for belief in self.store.beliefs.get(row.id, [])]
        told = [Encoded(row.id, row.prompt, belief.tokens) for row, belief in stored]
        falls: dict[int, float] = {}
        scored = score_answers(engine, told, self.config.batch_size)
        for (row, belief), answer in zip(stored, scored, strict=True):
            falls[row.id] = max(belief.logp - answer.mean_logp, falls.get(row.id, -math.inf))
        return falls

    def _sample(self, module: UnlearnModule, rows: list[Encoded]) -> dict[int, tuple[list[Belief], _Counts]]:
        """Beliefs of this rank's prompts, and what their samples were."""
        config, number = self.config, self.config.num_samples
        prompts = [
            Prompt(row.prompt, f"{self.seed}/{self.store.rounds}/{row.id}/{sample}")
            for row in rows
            for sample in range(number)
        ]
        sampling = Sampling(config.temperature, config.top_p)
        model, size = module.engine.model, config.batch_size
        answers = generate(model, prompts, self.end.stops, config.max_new_tokens, size, sampling, "sampling beliefs")
        kept: list[Encoded] = []
        counts: dict[int, _Counts] = {}
        for index, row in enumerate(rows):
            samples = answers[index * number : (index + 1) * number]
            spoken = [tokens for tokens in samples if self.end.text(tokens)]
            true_answer = self.end.content(row.answer)
            others = [tokens for tokens in spoken if self.end.content(tokens) != true_answer]
            chosen = others if config.drop_targets else spoken
            distinct = list(dict.fromkeys(chosen))
            kept += [Encoded(row.id, row.prompt, tokens) for tokens in distinct]
            counts[row.id] = _Counts(number - len(spoken), len(chosen) - len(distinct), len(spoken) - len(others))
        policy = score_answers(module.engine, kept, size)
        reference = self._reference_logps(module, kept) if Role.belief in module.needs.reference else None
        beliefs: dict[int, list[Belief]] = {row.id: [] for row in rows}
        for index, row in enumerate(kept):
            known = None if reference is None else reference[index]
            beliefs[row.id].append(Belief(row.answer, policy[index].mean_logp, known))
        return {id: (found, counts[id]) for id, found in beliefs.items()}

    def _reference_logps(self, module: UnlearnModule, rows: list[Encoded]) -> list[tuple[float, ...]]:
        with module.start() as engine:
            assert engine is not None
            return [answer.logps for answer in score_answers(engine, rows, self.config.batch_size)]

    def state_dict(self) -> dict:
        if not self.keep_text:
            return {"rounds": self.store.rounds}
        stored = {
            id: [[list(b.tokens), b.logp, b.reference_logps and list(b.reference_logps)] for b in beliefs]
            for id, beliefs in self.store.beliefs.items()
        }
        return {"rounds": self.store.rounds, "beliefs": stored}

    def load_state_dict(self, state_dict: dict) -> None:
        self.store.rounds = state_dict["rounds"]
        if not self.keep_text:
            return
        self.store.beliefs = {
            id: [Belief(tuple(tokens), logp, known and tuple(known)) for tokens, logp, known in beliefs]
            for id, beliefs in state_dict["beliefs"].items()
        }
