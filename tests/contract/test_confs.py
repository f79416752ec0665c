"""The same questions to every shipped configuration."""

from pathlib import Path

import pytest

from lit_unlearn.assembly import load_benchmark
from lit_unlearn.conf_files import conf_names
from lit_unlearn.config import build_terms, load
from lit_unlearn.reference import plan_reference
from lit_unlearn.types import union_of_needs

CONFS = sorted((Path(__file__).parents[2] / "conf").rglob("*.yaml"))


def test_the_promised_confs_are_there():
    promised = {"quickstart", "llama8b_tofu", "llama8b_tofu_bss", "llama3b_tofu", "llama1b_tofu", "smollm2_tofu"}
    assert {path.stem for path in CONFS} >= promised
    assert set(conf_names()) >= promised


@pytest.mark.parametrize("path", CONFS, ids=lambda path: path.stem)
def test_a_conf_builds(path: Path):
    config = load([f"conf={path}"])
    terms = build_terms(config)
    plan_reference(union_of_needs(terms), config.model.reference)
    load_benchmark(config)


@pytest.mark.parametrize("path", CONFS, ids=lambda path: path.stem)
def test_a_conf_is_one_screen_that_says_its_command(path: Path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 60
    assert lines[0].startswith("# ")
    assert any(f"python -m lit_unlearn.train conf={path.stem}" in line for line in lines[:5])
