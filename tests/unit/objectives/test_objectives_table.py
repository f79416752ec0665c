"""The table that ``python -m lit_unlearn.objectives`` prints: every objective with its fields, needs and paper."""

import subprocess
import sys
from dataclasses import dataclass, fields

import pytest

from lit_unlearn.command.arguments import parse
from lit_unlearn.errors import UserError
from lit_unlearn.objectives import OBJECTIVES
from lit_unlearn.objectives.__main__ import load
from lit_unlearn.objectives.bst import BST
from lit_unlearn.objectives.rmu import RMU
from lit_unlearn.objectives.table import WIDTH, describe, entry, table
from lit_unlearn.types import Ask, Needs, Role


def test_it_prints():
    done = subprocess.run([sys.executable, "-m", "lit_unlearn.objectives"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == table().strip()


def test_it_takes_no_arguments():
    with pytest.raises(UserError, match=r"objectives takes no arguments, not name=\.\.\."):
        load(parse(["name=npo"]))


def test_it_is_at_most_120_wide():
    lines = table().splitlines()
    assert len(lines) > 3 * len(OBJECTIVES)
    assert max(map(len, lines)) <= WIDTH == 120
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_stands_with_all_its_fields_needs_and_paper(name: str):
    kind = OBJECTIVES[name]
    text = entry(name, kind)
    assert text in table()
    assert text.split()[0] == name
    assert name == "nll" or "https://arxiv.org/abs/" in text.splitlines()[0]
    words = text.replace(",", " ").split()
    for field in fields(kind):
        assert [word for word in words if word.startswith(f"{field.name}=")], field.name
    assert "policy: " in text


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("grad_ascent", "policy: forget (log-probs)"),
        ("npo", "policy: forget (log-probs); reference: forget (log-probs)"),
        ("kl", "policy: retain (distributions); reference: retain (distributions)"),
        ("rmu", "policy: forget (hidden states of block 7)"),
        ("idk_nll", "policy: alternate (log-probs); alternate answers (data.alternates)"),
        ("bst", "policy: forget (log-probs + top-20)"),
    ],
)
def test_needs_in_words(name: str, needed: str):
    lines = entry(name, OBJECTIVES[name]).splitlines()
    assert lines[1] == f"  needs   {needed}"


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (Ask(entropy=True, attended=True), "log-probs + entropy + prompt positions too"),
        (Ask(logits=True, top_k=3, hidden_layers=(1, 2), logps=False),
         "top-3 + distributions + hidden states of block 1 + hidden states of block 2"),
    ],
)  # fmt: skip
def test_an_ask_in_words(ask: Ask, words: str):
    assert describe(ask) == words


@dataclass(frozen=True)
class Bare:
    """Nothing to set (https://example.org/paper)."""

    needs = Needs({Role.forget: Ask()})


def test_an_objective_without_fields():
    heading, needed, written = entry("bare", Bare).splitlines()
    assert heading.split() == ["bare", "https://example.org/paper"]
    assert (needed, written) == ("  needs   policy: forget (log-probs)", "  fields  none")


def test_defaults_are_written_as_in_yaml():
    assert "mix=0.2, k=20, reduction=seq_mean" in entry("bst", BST)
    assert "stop_gradient=true" in entry("bst", BST)
    assert "direction=null" in entry("rmu", RMU)
