"""Runs each probe once, on all ranks together: a model in, records out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from lit_unlearn.data.base import Probe
from lit_unlearn.data.tokenize import Encoded, Encoder, pad
from lit_unlearn.evaluation.base import Record, Records
from lit_unlearn.generate import Prompt, evaluating, generate
from lit_unlearn.parallel import gather_by_key, rank, world_size
from lit_unlearn.scoring import ScoringEngine
from lit_unlearn.types import Ask, Role


@dataclass(frozen=True, slots=True)
class EncodedProbe:
    """A probe as token ids, made once and asked many times."""

    name: str
    rows: Sequence[Encoded]
    choices: Sequence[int]
    targets: Sequence[str]
    generate: bool


@dataclass(frozen=True, slots=True)
class Asking:
    """How probes are run."""

    stop_ids: Sequence[int]
    max_new_tokens: int
    batch_size: int


def encode_probe(encoder: Encoder, probe: Probe) -> EncodedProbe:
    rows = encoder.encode(probe.examples, probe.name)
    choices = [example.choice for example in probe.examples]
    return EncodedProbe(probe.name, rows, choices, [e.response for e in probe.examples], probe.generate)


def collect(
    engine: ScoringEngine, encoder: Encoder, probes: Sequence[EncodedProbe], asking: Asking, title: str
) -> Records:
    """Records of every probe, in (id, choice) order, whatever the number of ranks and the batch size."""
    with evaluating(engine):
        return {probe.name: _collect_one(engine, encoder, probe, asking, f"{title}: {probe.name}") for probe in probes}


def _collect_one(
    engine: ScoringEngine, encoder: Encoder, probe: EncodedProbe, asking: Asking, title: str
) -> list[Record]:
    mine = range(rank(), len(probe.rows), world_size())
    rows = [probe.rows[index] for index in mine]
    scored = teacher_forced(engine, rows, asking.batch_size, title)
    texts: list[str | None] = [None] * len(rows)
    if probe.generate:
        prompts = [Prompt(row.prompt) for row in rows]
        answers = generate(
            engine.model, prompts, asking.stop_ids, asking.max_new_tokens, asking.batch_size, title=f"{title}, answers"
        )
        texts = [encoder.decode(answer) for answer in answers]
    local = {}
    for index, row, (logps, greedy), text in zip(mine, rows, scored, texts, strict=True):
        local[row.id, probe.choices[index]] = Record(
            row.id, probe.choices[index], logps, greedy, probe.targets[index], text
        )
    return list(gather_by_key(local).values())


@torch.no_grad()
def teacher_forced(
    engine: ScoringEngine, rows: Sequence[Encoded], batch_size: int, title: str | None = None
) -> list[tuple[tuple[float, ...], tuple[bool, ...]]]:
    """(log-prob, whether it is the most likely token) of each answer token of each row, in the rows' order."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].prompt) + len(rows[index].answer))
    results: list[tuple[tuple[float, ...], tuple[bool, ...]]] = [((), ())] * len(rows)
    for first in tqdm(range(0, len(order), batch_size), desc=title, disable=title is None, leave=False):
        batch = order[first : first + batch_size]
        block = pad([rows[index] for index in batch]).to(engine.model.device)
        scores = engine.score({Role.forget: block}, {Role.forget: Ask(top_k=1)})[Role.forget]
        greedy = scores.topk(1)[1].squeeze(-1) == scores.labels  # [N]
        counts = scores.num_tokens.long().tolist()
        for index, logps, right in zip(batch, scores.logps.split(counts), greedy.split(counts), strict=True):
            results[index] = tuple(logps.tolist()), tuple(right.tolist())
    return results
