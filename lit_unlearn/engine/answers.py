"""Teacher-forced answers: what a model says of given answers, every distinct one once, prompts shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from lit_unlearn.data.tokenize import Encoded, pad
from lit_unlearn.display.screen import track
from lit_unlearn.engine.body import evaluating
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.halving import Halving
from lit_unlearn.types import Ask, Role


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """One answer, token by token."""

    logps: tuple[float, ...]
    """Log-prob of each answer token, in nats."""
    greedy: tuple[bool, ...]
    """Whether the token is the most likely one at its place."""

    @property
    def mean_logp(self) -> float:
        return sum(self.logps) / max(1, len(self.logps))


@torch.no_grad()
def score_answers(
    engine: ScoringEngine, rows: Sequence[Encoded], batch_size: int, title: str | None = None
) -> list[ScoredAnswer]:
    """The answer of each row, in the rows' order, in evaluation mode; ``title`` shows on the display.

    Rows are batched in the order of their tokens, so that answers to one prompt meet in a batch and share it.
    """
    distinct = {(row.prompt, row.answer): row for row in rows}
    by_length = lambda key: 0 if engine.packs else len(key[0]) + len(key[1])  # noqa: E731
    order = [distinct[key] for key in sorted(distinct, key=lambda key: (by_length(key), key))]
    answers: list[ScoredAnswer] = []
    fitting = Halving(partial(_score, engine), "answers to score")
    with evaluating(engine):
        for first in track(range(0, len(order), batch_size), title):
            answers += fitting(order[first : first + batch_size])
    found = {(row.prompt, row.answer): answer for row, answer in zip(order, answers, strict=True)}
    return [found[row.prompt, row.answer] for row in rows]


def _score(engine: ScoringEngine, batch: Sequence[Encoded]) -> list[ScoredAnswer]:
    block = pad(batch).to(engine.model.device)
    scores = engine.score({Role.forget: block}, {Role.forget: Ask(top_k=1)})[Role.forget]
    likeliest = scores.topk(1)[1].squeeze(-1) == scores.labels  # [N]
    counts = scores.num_tokens.long().tolist()
    logps, greedy = (values.cpu().split(counts) for values in (scores.logps, likeliest))
    return [ScoredAnswer(tuple(own.tolist()), tuple(right.tolist())) for own, right in zip(logps, greedy, strict=True)]
