"""The table that ``python -m lit_unlearn.objectives`` prints: every objective with its fields, needs and paper."""

import subprocess
import sys
from dataclasses import fields

import pytest

from lit_unlearn.objectives import OBJECTIVES
from lit_unlearn.objectives.bst import BST
from lit_unlearn.objectives.rmu import RMU
from lit_unlearn.objectives.table import WIDTH, entry, table


def test_it_prints():
    done = subprocess.run([sys.executable, "-m", "lit_unlearn.objectives"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == table().strip()


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


def test_defaults_are_written_as_in_yaml():
    assert "stop_gradient=true" in entry("bst", BST)
    assert "direction=null" in entry("rmu", RMU)
