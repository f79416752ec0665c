"""Watches where the freed probability goes: the squeezing effect (Li et al., 2026, arXiv 2510.19422, figure 2)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean as mean

import lightning as L
import torch

from lit_unlearn.benchmarks.tofu_rows import spread
from lit_unlearn.callbacks.settings import SqueezeConfig
from lit_unlearn.data.ends import AnswerEnd
from lit_unlearn.data.tokenize import Encoded, pad
from lit_unlearn.display.screen import phase, track
from lit_unlearn.engine.answers import score_answers
from lit_unlearn.engine.body import evaluating
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.generation.generate import Prompt, Sampling, beam_search, generate
from lit_unlearn.models.streamed.skeleton import is_skeleton
from lit_unlearn.parallel import broadcast_object, rank
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.types import Ask, Role

log = logging.getLogger(__name__)

DRAWING = "draw squeeze responses"
BANDS = ("high", "mid", "low")
_RANKS = {"high": (0.0, 0.1), "mid": (0.1, 0.5), "low": (0.5, 0.9)}


@dataclass
class Watched:
    """Answers of one split, and bands of the original model's own responses to the same prompts."""

    targets: Sequence[Encoded]
    prefix: str = ""
    """Of the names of its numbers."""
    bands: dict[str, list[Encoded]] = field(default_factory=dict)


class SqueezeProbe(L.Callback):
    """Mean token log-prob (nats) of the target answers and of bands of the original model's own responses.

    Also, at each of the target's positions (the target's own prefix before it), the most likely token, the mass of
    the top-k set and the entropy; and the squeeze index: change of the high band minus change of the target since the
    start. Every number is a mean over prompts, whatever the number of their responses. Purely selective forgetting,
    which moves the target alone, raises the index too; ``retain_index`` is the same of retain prompts, which nothing
    pushes down. The responses are never written down: a resumed run draws them again before the checkpoint is loaded.
    """

    def __init__(
        self,
        rows: Sequence[Encoded],
        config: SqueezeConfig,
        end: AnswerEnd,
        seed: int,
        control: Sequence[Encoded] = (),
    ) -> None:
        """``rows``: the forget split; ``control``: the retain rows that are watched beside it, all of them."""
        self.watched = [Watched([rows[index] for index in spread(len(rows), config.num_prompts)])]
        if control:
            self.watched.append(Watched(control, "retain_"))
        self.config, self.end, self.seed = config, end, seed
        self.start: dict[str, float] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """The last hook in which the policy is the original model in a resumed run too, if its weights are there."""
        assert isinstance(pl_module, UnlearnModule)
        if is_skeleton(pl_module):
            return
        pl_module.to(trainer.strategy.root_device)  # Lightning's own move comes later
        with trainer.precision_plugin.forward_context():
            self._begin(pl_module.engine)

    def _begin(self, engine: ScoringEngine) -> None:
        with phase(DRAWING):
            for watched in self.watched:
                drawn = self._draw_bands(engine, watched) if rank() == 0 else {}  # no collectives inside
                watched.bands = broadcast_object(drawn)
            self.start = self.measure(engine)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, UnlearnModule)
        if not self.start:  # the weights were read only now, and of what cuts them no checkpoint is loaded yet
            with pl_module.reading():
                self._begin(pl_module.engine)
        if trainer.ckpt_path is None:
            self._log(pl_module, self.start)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs, batch, batch_idx) -> None:
        if trainer.global_step % self.config.every_n_steps == 0:
            self._look(pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step % self.config.every_n_steps:
            self._look(pl_module)

    def _look(self, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, UnlearnModule)
        with pl_module.reading():
            self._log(pl_module, self.measure(pl_module.engine))

    def _log(self, pl_module: L.LightningModule, measured: dict[str, float]) -> None:
        change = {name: measured[name] - self.start[name] for name in measured}
        indices = {f"{p}index": change[f"{p}high"] - change[f"{p}target"] for p in (w.prefix for w in self.watched)}
        numbers = measured | indices
        for logger in pl_module.loggers:
            logger.log_metrics({f"squeeze/{name}": value for name, value in numbers.items()}, pl_module.global_step)

    def measure(self, engine: ScoringEngine) -> dict[str, float]:
        """Means over prompts: of each band's mean over its responses, and of the statistics at target positions."""
        return {
            watched.prefix + name: value
            for watched in self.watched
            for name, value in (self._bands(engine, watched) | self._at_targets(engine, watched)).items()
        }

    def _bands(self, engine: ScoringEngine, watched: Watched) -> dict[str, float]:
        """Mean token log-prob of each band; prompts without a response in it are left out; without any, NaN."""
        numbers = {}
        for band, rows in watched.bands.items():
            of_prompt: dict[int, list[float]] = {}
            for row, answer in zip(rows, score_answers(engine, rows, self.config.batch_size), strict=True):
                of_prompt.setdefault(row.id, []).append(answer.mean_logp)
            numbers[band] = mean(map(mean, of_prompt.values())) if of_prompt else math.nan
        return numbers

    def _at_targets(self, engine: ScoringEngine, watched: Watched) -> dict[str, float]:
        ask = Ask(top_k=self.config.top_k, entropy=True)
        with torch.no_grad(), evaluating(engine):
            block = pad(watched.targets).to(engine.model.device)
            scores = engine.score({Role.forget: block}, {Role.forget: ask})[Role.forget]
        topk_logps, _ = scores.topk(self.config.top_k)  # [N, K]
        tracked = {
            "target": scores.logps,
            "argmax": topk_logps[:, 0],
            "belief_mass": topk_logps.logsumexp(-1).exp(),
            "entropy": scores.entropy,
        }
        return {
            name: (scores.sequence_sum(values) / scores.num_tokens).mean().item() for name, values in tracked.items()
        }

    def _draw_bands(self, engine: ScoringEngine, watched: Watched) -> dict[str, list[Encoded]]:
        draw = self._beams if self.config.protocol == "beam" else self._token_ranks
        bands = draw(engine, watched)
        return {band: [row for row in rows if row.answer] for band, rows in bands.items()}

    def _beams(self, engine: ScoringEngine, watched: Watched) -> dict[str, list[Encoded]]:
        config, bands = self.config, {band: [] for band in BANDS}
        for target in track(watched.targets, "beam search"):
            prompt = Prompt(target.prompt)
            found = beam_search(engine.model, prompt, self.end.stops, config.max_new_tokens, config.num_beams)
            rows = [Encoded(target.id, target.prompt, tokens) for tokens in dict.fromkeys(found) if tokens]
            true_answer = self.end.content(target.answer)
            rows = [row for row in rows if self.end.content(row.answer) != true_answer]
            logps = [sum(answer.logps) for answer in score_answers(engine, rows, config.batch_size)]
            ranked = [rows[index] for index in sorted(range(len(rows)), key=lambda index: -logps[index])]
            first, second = round(0.2 * len(ranked)), round(0.6 * len(ranked))
            for band, part in zip(BANDS, (ranked[:first], ranked[first:second], ranked[second:]), strict=True):
                bands[band] += part
        return bands

    def _token_ranks(self, engine: ScoringEngine, watched: Watched) -> dict[str, list[Encoded]]:
        config, bands = self.config, {}
        for band, ranks in _RANKS.items():
            prompts = [
                Prompt(target.prompt, f"{self.seed}/{watched.prefix}{band}/{target.id}/{sample}")
                for target in watched.targets
                for sample in range(config.num_responses)
            ]
            sampling = Sampling(rank_band=ranks)
            size, title = config.batch_size, f"{band} band"
            found = generate(engine.model, prompts, self.end.stops, config.max_new_tokens, size, sampling, title)
            owners = [target for target in watched.targets for _ in range(config.num_responses)]
            bands[band] = [Encoded(t.id, t.prompt, tokens) for t, tokens in zip(owners, found, strict=True)]
        return bands

    def state_dict(self) -> dict:
        return {"start": self.start}

    def load_state_dict(self, state_dict: dict) -> None:
        """The numbers of the start tell whether the same responses were drawn; ``setup`` has found them again."""
        before = state_dict["start"]
        if any(not math.isclose(value, before[name], rel_tol=1e-3) for name, value in self.start.items()):
            log.warning("squeeze probe: other responses than before the interruption; is this another machine?")
