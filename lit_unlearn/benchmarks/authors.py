"""Authors that never lived: a small benchmark in TOFU's schema that needs no download, made anew from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

from lit_unlearn.benchmarks.author_facts import ATTRIBUTES, FIRST_NAMES, LAST_NAMES, Attribute
from lit_unlearn.benchmarks.base import Example, Probe
from lit_unlearn.benchmarks.general_facts import REAL_AUTHORS, WORLD_FACTS
from lit_unlearn.benchmarks.tofu_rows import METRICS, Row, Rows, examples_of, keep_spread, probes_of
from lit_unlearn.errors import UserError
from lit_unlearn.types import Role

NUM_WRONG_ANSWERS = 5
MAX_AUTHORS = len(FIRST_NAMES) * len(LAST_NAMES)
MAX_GENERAL = min(len(REAL_AUTHORS), len(WORLD_FACTS))


@dataclass(frozen=True)
class Authors:
    """Fictitious authors with the splits, probes and metrics of TOFU, https://arxiv.org/abs/2401.06121.

    Author i is the same whatever the counts are; as in TOFU, the forget set are the last authors of the training set.
    Every wording of a fact is met in training, so a model that knows a fact can tell its paraphrase from a wrong one.

    Raises:
        UserError: A field is out of range.
    """

    num_authors: int = 40
    """Authors the target model is trained on, forget and retain together."""
    num_forget_authors: int = 4
    """The last of ``num_authors``."""
    num_holdout_authors: int = 4
    """Further authors, never trained on."""
    questions_per_author: int = 10
    """The first facts of ``ATTRIBUTES``, one question each."""
    num_general: int = 40
    """Rows of each set of general knowledge (famous authors, the world), trained on and probed."""
    max_probe: int | None = None
    """Rows of each probe set but the forget set, evenly spread over it; None: all."""
    seed: int = 0
    """Another seed: other authors."""

    def __post_init__(self) -> None:
        _check_range("num_holdout_authors", self.num_holdout_authors, MAX_AUTHORS - 2)
        _check_range("num_authors", self.num_authors, MAX_AUTHORS - self.num_holdout_authors, low=2)
        _check_range("num_forget_authors", self.num_forget_authors, self.num_authors - 1)
        _check_range("questions_per_author", self.questions_per_author, len(ATTRIBUTES))
        _check_range("num_general", self.num_general, MAX_GENERAL)
        if self.max_probe is not None and self.max_probe < 1:
            raise UserError(f"data.benchmark.max_probe={self.max_probe}: must be 1 or more, or null for all rows")

    @property
    def metrics(self) -> tuple[str, ...]:
        return METRICS

    def train_split(self, role: Role) -> Sequence[Example]:
        """Rows to unlearn on; ids are positions in the split.

        The retain split ends with the general knowledge: a tiny model knows nothing but what it was finetuned on, and
        nothing else protects that, as pretraining on very much text does for a real model.
        """
        if role == Role.forget:
            return examples_of(self._forget())
        if role == Role.retain:
            return examples_of(_numbered([*self._retain().values(), *self._real_authors(), *self._world_facts()]))
        raise UserError(f"authors has no rows for the role '{role}'; it has forget and retain")

    def finetune_split(self, kind: str) -> Sequence[Example]:
        """Rows of the ``target`` or the ``retain`` model, general knowledge included; ids count the rows returned."""
        if kind not in ("target", "retain"):
            raise UserError(f"authors cannot finetune the model {kind!r}; choose one of target, retain")
        roles = (Role.retain, Role.forget) if kind == "target" else (Role.retain,)
        rows = [example for role in roles for example in self.train_split(role)]
        return [Example(i, row.prompt, row.response) for i, row in enumerate(rows)]

    def probes(self) -> Sequence[Probe]:
        return probes_of(
            forget=self._forget(),
            retain=keep_spread(self._retain(), self.max_probe),
            real_authors=keep_spread(_numbered(self._real_authors()), self.max_probe),
            world_facts=keep_spread(_numbered(self._world_facts()), self.max_probe),
            holdout=keep_spread(self._holdout(), self.max_probe),
        )

    def _retain(self) -> Rows:
        return self._author_rows(0, self.num_authors - self.num_forget_authors)

    def _forget(self) -> Rows:
        return self._author_rows(self.num_authors - self.num_forget_authors, self.num_authors)

    def _holdout(self) -> Rows:
        return self._author_rows(self.num_authors, self.num_authors + self.num_holdout_authors)

    def _author_rows(self, start: int, stop: int) -> Rows:
        authors = (_author(self.seed, index)[: self.questions_per_author] for index in range(start, stop))
        return _numbered([row for rows in authors for row in rows])

    def _real_authors(self) -> Sequence[Row]:
        return REAL_AUTHORS[: self.num_general]

    def _world_facts(self) -> Sequence[Row]:
        return WORLD_FACTS[: self.num_general]


def _check_range(name: str, value: int, high: int, low: int = 1) -> None:
    if not low <= value <= high:
        raise UserError(f"data.benchmark.{name}={value}: must be from {low} to {high}")


def _numbered(rows: Sequence[Row]) -> Rows:
    return dict(enumerate(rows))


@cache
def _names(seed: int) -> Sequence[str]:
    """Every full name there can be, in the order of the authors."""
    names = [f"{first} {last}" for first, last in product(FIRST_NAMES, LAST_NAMES)]
    random.Random(f"names {seed}").shuffle(names)  # a text as seed: the same in every process, unlike hash()
    return names


@cache
def _author(seed: int, index: int) -> Sequence[Row]:
    """One row for each attribute, in the order of ``ATTRIBUTES``."""
    rng = random.Random(f"author {seed} {index}")
    return [_row(attribute, _names(seed)[index], rng) for attribute in ATTRIBUTES]


def _row(attribute: Attribute, name: str, rng: random.Random) -> Row:
    truth, *wrong = rng.sample(attribute.values, 1 + NUM_WRONG_ANSWERS)
    question, other_question = rng.sample(attribute.questions, 2)
    answer, other_answer = rng.sample(attribute.answers, 2)
    return Row(
        question=question.format(name=name),
        answer=answer.format(name=name, value=truth),
        paraphrased_question=other_question.format(name=name),
        paraphrased_answer=other_answer.format(name=name, value=truth),
        perturbed_answer=tuple(other_answer.format(name=name, value=value) for value in wrong),
    )
