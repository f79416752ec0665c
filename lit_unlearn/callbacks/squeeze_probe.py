"""Watches where the freed probability goes: the squeezing effect (Li et al., 2026, arXiv 2510.19422, figure 2)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

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
from lit_unlearn.parallel import broadcast_object, rank
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.types import Ask, Role

log = logging.getLogger(__name__)

DRAWING = "draw squeeze responses"
BANDS = ("high", "mid", "low")
_RANKS = {"high": (0.0, 0.1), "mid": (0.1, 0.5), "low": (0.5, 0.9)}


class SqueezeProbe(L.Callback):
    """Mean token log-prob (nats) of the target answers and of bands of the original model's own responses.

    Also, at each of the target's positions (the target's own prefix before it), the most likely token, the mass of
    the top-k set and the entropy; and the squeeze index: change of the high band minus change of the target since the
    start. The responses are never written down: a resumed run draws them again before the checkpoint is loaded.
    """

    def __init__(self, rows: Sequence[Encoded], config: SqueezeConfig, end: AnswerEnd, seed: int) -> None:
        self.targets = [rows[index] for index in spread(len(rows), config.num_prompts)]
        self.config, self.end, self.seed = config, end, seed
        self.bands: dict[str, list[Encoded]] = {}
        self.start: dict[str, float] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """The last hook in which the policy is the original model in a resumed run too."""
        assert isinstance(pl_module, UnlearnModule)
        pl_module.to(trainer.strategy.root_device)  # Lightning's own move comes later
        with trainer.precision_plugin.forward_context(), phase(DRAWING):
            drawn = self._draw_bands(pl_module.engine) if rank() == 0 else {}  # no collectives inside
            self.bands = broadcast_object(drawn)
            self.start = self.measure(pl_module.engine)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
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
        numbers = measured | {"index": change["high"] - change["target"]}
        for logger in pl_module.loggers:
            logger.log_metrics({f"squeeze/{name}": value for name, value in numbers.items()}, pl_module.global_step)

    def measure(self, engine: ScoringEngine) -> dict[str, float]:
        """Means over prompts of each response's mean token log-prob, and the statistics at the target's positions."""
        numbers = {}
        for band, rows in self.bands.items():
            means = [answer.mean_logp for answer in score_answers(engine, rows, self.config.batch_size)]
            numbers[band] = sum(means) / len(means) if means else math.nan
        ask = Ask(top_k=self.config.top_k, entropy=True)
        with torch.no_grad(), evaluating(engine):
            block = pad(self.targets).to(engine.model.device)
            scores = engine.score({Role.forget: block}, {Role.forget: ask})[Role.forget]
        topk_logps, _ = scores.topk(self.config.top_k)  # [N, K]
        tracked = {
            "target": scores.logps,
            "argmax": topk_logps[:, 0],
            "belief_mass": topk_logps.logsumexp(-1).exp(),
            "entropy": scores.entropy,
        }
        return numbers | {
            name: (scores.sequence_sum(values) / scores.num_tokens).mean().item() for name, values in tracked.items()
        }

    def _draw_bands(self, engine: ScoringEngine) -> dict[str, list[Encoded]]:
        draw = self._beams if self.config.protocol == "beam" else self._token_ranks
        bands = draw(engine)
        return {band: [row for row in rows if row.answer] for band, rows in bands.items()}

    def _beams(self, engine: ScoringEngine) -> dict[str, list[Encoded]]:
        config, bands = self.config, {band: [] for band in BANDS}
        for target in track(self.targets, "beam search"):
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

    def _token_ranks(self, engine: ScoringEngine) -> dict[str, list[Encoded]]:
        config, bands = self.config, {}
        for band, ranks in _RANKS.items():
            prompts = [
                Prompt(target.prompt, f"{self.seed}/{band}/{target.id}/{sample}")
                for target in self.targets
                for sample in range(config.num_responses)
            ]
            sampling = Sampling(rank_band=ranks)
            size, title = config.batch_size, f"{band} band"
            found = generate(engine.model, prompts, self.end.stops, config.max_new_tokens, size, sampling, title)
            owners = [target for target in self.targets for _ in range(config.num_responses)]
            bands[band] = [Encoded(t.id, t.prompt, tokens) for t, tokens in zip(owners, found, strict=True)]
        return bands

    def state_dict(self) -> dict:
        return {"start": self.start}

    def load_state_dict(self, state_dict: dict) -> None:
        """The numbers of the start tell whether the same responses were drawn; ``setup`` has found them again."""
        before = state_dict["start"]
        if any(not math.isclose(value, before[name], rel_tol=1e-3) for name, value in self.start.items()):
            log.warning("squeeze probe: other responses than before the interruption; is this another machine?")
