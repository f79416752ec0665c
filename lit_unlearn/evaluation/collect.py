"""Asks all probes together, on all ranks: a model in, records out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lit_unlearn.benchmarks.base import Probe
from lit_unlearn.data.tokenize import Encoded, Encoder
from lit_unlearn.engine.answers import score_answers
from lit_unlearn.engine.body import evaluating
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.evaluation.base import Record, Records
from lit_unlearn.evaluation.text_scores import without_text
from lit_unlearn.generation.generate import Prompt, generate
from lit_unlearn.parallel import gather_by_key, rank, world_size


@dataclass(frozen=True, slots=True)
class EncodedProbe:
    """A probe as token ids, made once and asked many times."""

    name: str
    rows: Sequence[Encoded]
    choices: Sequence[int]
    targets: Sequence[str]
    questions: Sequence[str]
    """As a person reads them."""
    generate: bool


@dataclass(frozen=True, slots=True)
class Asking:
    """How probes are run."""

    stop_ids: Sequence[int]
    max_new_tokens: int
    batch_size: int
    keep_text: bool = True
    """False: no text leaves ``collect``, so nobody can write it down."""


def encode_probe(encoder: Encoder, probe: Probe) -> EncodedProbe:
    rows = encoder.encode(probe.examples, probe.name)
    choices = [example.choice for example in probe.examples]
    targets, questions = [e.response for e in probe.examples], [e.prompt for e in probe.examples]
    return EncodedProbe(probe.name, rows, choices, targets, questions, probe.generate)


def collect(engine: ScoringEngine, encoder: Encoder, probes: Sequence[EncodedProbe], asking: Asking) -> Records:
    """Records of every probe, in (id, choice) order, whatever the number of ranks and the batch size.

    All probes go through the model together: a question they share is computed once, an answer they share too.
    """
    asked = [
        _Asked(probe.name, row, choice, target, probe.generate)
        for probe in probes
        for row, choice, target in zip(probe.rows, probe.choices, probe.targets, strict=True)
    ]
    mine = _share(asked)
    with evaluating(engine):
        scored = score_answers(engine, [one.row for one in mine], asking.batch_size, "answers given")
        texts = _own_answers(engine, encoder, mine, asking)
    local = {
        (one.probe, one.row.id, one.choice): Record(
            one.row.id,
            one.choice,
            answer.logps,
            answer.greedy,
            one.target,
            texts[one.row.prompt] if one.speaks else None,
        )
        for one, answer in zip(mine, scored, strict=True)
    }
    if not asking.keep_text:
        local = {key: without_text(record) for key, record in local.items()}
    found: dict[str, list[Record]] = {probe.name: [] for probe in probes}
    for (probe, _, _), record in gather_by_key(local).items():
        found[probe].append(record)
    return found


@dataclass(frozen=True, slots=True)
class _Asked:
    probe: str
    row: Encoded
    choice: int
    target: str
    speaks: bool
    """The model's own answer is wanted too."""


def _share(asked: Sequence[_Asked]) -> list[_Asked]:
    """This rank's part: whole questions, so that their answers stay together."""
    prompts = {prompt: number for number, prompt in enumerate(sorted({one.row.prompt for one in asked}))}
    return [one for one in asked if prompts[one.row.prompt] % world_size() == rank()]


def _own_answers(
    engine: ScoringEngine, encoder: Encoder, asked: Sequence[_Asked], asking: Asking
) -> dict[tuple[int, ...], str]:
    """Prompt -> the model's greedy answer."""
    prompts = list(dict.fromkeys(one.row.prompt for one in asked if one.speaks))
    answers = generate(
        engine.model,
        [Prompt(prompt) for prompt in prompts],
        asking.stop_ids,
        asking.max_new_tokens,
        asking.batch_size,
        title="its own answers",
    )
    return {prompt: encoder.decode(answer) for prompt, answer in zip(prompts, answers, strict=True)}
