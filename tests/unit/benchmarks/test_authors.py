"""Fictitious authors: the same in every process, well formed, worded in many ways, split without overlap."""

import os
import subprocess
import sys

import pytest

from lit_unlearn.benchmarks.author_facts import ATTRIBUTES, FIRST_NAMES, LAST_NAMES
from lit_unlearn.benchmarks.authors import Authors, _author, _names
from lit_unlearn.benchmarks.general_facts import REAL_AUTHORS, WORLD_FACTS
from lit_unlearn.errors import UserError
from lit_unlearn.types import Role

EVERY_FACT = Authors(questions_per_author=len(ATTRIBUTES))
AUTHOR_ROWS = [row for index in range(EVERY_FACT.num_authors) for row in _author(0, index)]


FINGERPRINT = """
import hashlib
from lit_unlearn.benchmarks.authors import Authors
text = repr((Authors().finetune_split("target"), Authors().probes()))
fingerprint = hashlib.sha256(text.encode()).hexdigest()
"""


def test_another_process_makes_the_same_authors() -> None:
    here = {}
    exec(FINGERPRINT, here)
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", f"{FINGERPRINT}print(fingerprint)"]
    there = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here["fingerprint"]


def test_a_seed_makes_other_authors_and_counts_do_not() -> None:
    assert _names(1) != _names(0)
    facts = [[r.answer.replace(_names(seed)[0], "") for r in _author(seed, 0)] for seed in (0, 1)]
    assert facts[0] != facts[1]
    few = Authors(num_authors=6, num_forget_authors=1, num_holdout_authors=1).train_split(Role.retain)[:50]
    assert few == Authors().train_split(Role.retain)[:50]


def test_sizes() -> None:
    benchmark = Authors(num_general=30)
    assert len(benchmark.train_split(Role.forget)) == 4 * 10
    assert len(benchmark.train_split(Role.retain)) == 36 * 10 + 2 * 30
    assert len(benchmark.finetune_split("target")) == 40 * 10 + 2 * 30
    assert benchmark.finetune_split("retain") == benchmark.train_split(Role.retain)
    assert [e.id for e in benchmark.finetune_split("target")] == list(range(460))
    counts = {probe.name: len(probe.examples) for probe in benchmark.probes()}
    assert (counts["forget/perturbed"], counts["retain/answer"], counts["holdout/answer"]) == (40 * 5, 360, 40)
    assert (counts["real_authors/answer"], counts["world_facts/perturbed"]) == (30, 30 * 3)
    counts = {probe.name: len(probe.examples) for probe in Authors(max_probe=7).probes()}
    assert (counts["forget/answer"], counts["retain/answer"], counts["real_authors/perturbed"]) == (40, 7, 21)


def test_the_model_is_asked_what_it_was_taught() -> None:
    taught = {(e.prompt, e.response) for e in Authors().finetune_split("target")}
    probes = {probe.name: {(e.prompt, e.response) for e in probe.examples} for probe in Authors().probes()}
    for name in ("forget", "retain", "real_authors", "world_facts"):
        assert probes[f"{name}/answer"] <= taught
    assert not probes["holdout/answer"] & taught
    assert not probes["forget/answer"] & {(e.prompt, e.response) for e in Authors().finetune_split("retain")}


def test_names_are_unique_and_split_apart() -> None:
    assert len(set(_names(0))) == len(FIRST_NAMES) * len(LAST_NAMES)
    assert len({name.split()[0] for name in _names(0)[:40]}) > 15, "not one first name with every last name"
    forget, holdout, retain = _names(0)[36:40], _names(0)[40:44], _names(0)[:36]
    for names, rows in (
        (forget, Authors().train_split(Role.forget)),
        (retain, Authors().train_split(Role.retain)[:360]),
        (holdout, Authors().probes()[-1].examples),
    ):
        for i, row in enumerate(rows):
            assert names[i // 10] in row.prompt
            assert names[i // 10] in row.response


def test_rows_are_in_tofus_schema() -> None:
    assert len(AUTHOR_ROWS) == 40 * len(ATTRIBUTES)
    for row in AUTHOR_ROWS:
        assert row.question.endswith("?")
        assert row.paraphrased_question.endswith("?")
        assert row.question != row.paraphrased_question
        assert row.answer != row.paraphrased_answer
        for answer in (row.answer, row.paraphrased_answer, *row.perturbed_answer):
            assert 8 <= len(answer.split()) <= 25, answer
            assert answer.isascii()
            assert "{" not in answer
        assert len({row.answer, row.paraphrased_answer, *row.perturbed_answer}) == 7


def test_wrong_answers_differ_from_the_paraphrase_in_the_value_only() -> None:
    for i, row in enumerate(AUTHOR_ROWS):
        values = ATTRIBUTES[i % len(ATTRIBUTES)].values
        named = [[value for value in values if value in answer] for answer in (row.answer, row.paraphrased_answer)]
        assert named[0] == named[1], "the same fact in other words"
        assert len(named[0]) == 1, row
        for wrong in row.perturbed_answer:
            (value,) = (value for value in values if value in wrong)
            assert wrong.replace(value, named[0][0]) == row.paraphrased_answer


def test_every_wording_is_taught_even_to_the_retain_model() -> None:
    taught = EVERY_FACT.finetune_split("retain")
    assert len(ATTRIBUTES) >= 10
    for place, attribute in enumerate(ATTRIBUTES):
        assert len(attribute.answers) >= 4
        assert len(attribute.questions) >= 3
        assert len(set(attribute.values)) == len(attribute.values) >= 6
        rows = taught[place : 36 * len(ATTRIBUTES) : len(ATTRIBUTES)]
        for wording in attribute.questions:
            assert any(e.prompt == wording.format(name=_names(0)[i]) for i, e in enumerate(rows)), wording
        for wording in attribute.answers:
            start = wording.split("{value}")[0]
            assert any(e.response.startswith(start.format(name=_names(0)[i])) for i, e in enumerate(rows)), wording


@pytest.mark.parametrize("rows", [REAL_AUTHORS, WORLD_FACTS], ids=["real_authors", "world_facts"])
def test_general_facts_have_one_right_and_three_wrong_answers(rows) -> None:
    assert len(rows) >= 40
    assert len({row.question for row in rows}) == len(rows)
    for row in rows:
        assert row.question.endswith("?")
        assert len({row.answer, *row.perturbed_answer}) == 4, row
        assert set(row.perturbed_answer) <= {other.answer for other in rows}
        assert all(text == text.strip() and text.isascii() for text in (row.answer, *row.perturbed_answer))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_authors": 1}, "num_authors=1: must be from 2 to"),
        ({"num_authors": 10_000}, "num_authors=10000: must be from 2 to 668"),  # 28 x 24 names - 4 of the holdout
        ({"num_forget_authors": 40}, "num_forget_authors=40: must be from 1 to 39"),
        ({"num_forget_authors": 0}, "num_forget_authors=0: must be from 1 to 39"),
        ({"num_holdout_authors": 0}, "num_holdout_authors=0: must be from 1"),
        ({"questions_per_author": 13}, "questions_per_author=13: must be from 1 to 12"),
        ({"num_general": -1}, "num_general=-1: must be from 1 to 44"),
        ({"num_general": 45}, "num_general=45: must be from 1 to 44"),
        ({"max_probe": 0}, "max_probe=0: must be 1 or more"),
    ],
)
def test_absurd_sizes_are_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(UserError) as error:
        Authors(**fields)
    assert f"data.benchmark.{message}" in str(error.value)


def test_unknown_roles_and_kinds_are_refused() -> None:
    with pytest.raises(UserError, match="no rows for the role 'alternate'"):
        Authors().train_split(Role.alternate)
    with pytest.raises(UserError, match="'full'; choose one of target, retain"):
        Authors().finetune_split("full")
