"""A run's configuration: what is merged, what is refused, and in which words."""

from pathlib import Path

import pytest

from lit_unlearn.config.files import find_conf
from lit_unlearn.config.terms import build_terms
from lit_unlearn.errors import UserError
from lit_unlearn.objectives import BST, NPO
from lit_unlearn.types import Role
from tests.configs import load

QUICK = "conf=quickstart"


def test_another_name_drops_the_old_one_s_fields():
    """BS-T's lambda must not haunt NPO, and NPO's defaults are its own."""
    terms = build_terms(load([QUICK, "terms.forget.objective.name=npo"]))
    assert terms["forget"].objective == NPO()
    same = build_terms(load([QUICK, "terms.forget.objective.name=bst", "terms.forget.objective.mix=0.5"]))
    assert same["forget"].objective == BST(mix=0.5, k=20)


def test_another_benchmark_starts_from_its_own_defaults(tmp_path: Path):
    """By an override and by a file on its base; the same name keeps what is written."""
    tofu = ["data.benchmark.name=tofu", "data.benchmark.forget_split=forget01"]
    config = load([QUICK, *tofu])  # the authors' num_authors=40 is no field of TOFU
    assert config.data.benchmark == {"name": "tofu", "forget_split": "forget01"}
    assert config.data.batch_size == 16  # its neighbours stay
    few = load([QUICK, "data.benchmark.name=authors", "data.benchmark.num_authors=20"])
    assert few.data.benchmark == {"name": "authors", "num_authors": 20, "num_forget_authors": 4}

    (tmp_path / "low.yaml").write_text(
        "data: {benchmark: {name: authors, num_authors: 20}}\nterms: {forget: {objective: {name: npo}}}\n"
    )
    (tmp_path / "top.yaml").write_text("base: low.yaml\ndata: {benchmark: {name: tofu, forget_split: forget05}}\n")
    assert load([f"conf={tmp_path / 'top.yaml'}"]).data.benchmark == {"name": "tofu", "forget_split": "forget05"}


def test_a_term_can_be_added_and_left_out():
    config = load([QUICK, "terms.belief={weight: 0.5, objective: {name: bst, role: belief}}", "terms.retain=null"])
    terms = build_terms(config)
    assert list(terms) == ["forget", "belief"]
    assert terms["belief"].objective.needs.policy.keys() == {Role.belief}


def test_an_objective_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from lit_unlearn.objectives import GradAscent\n"
        "@dataclass(frozen=True)\nclass Mine(GradAscent):\n    strength: float = 2.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    terms = build_terms(load([QUICK, "terms.forget.objective={name: 'mine:Mine', strength: 3}"]))
    assert getattr(terms["forget"].objective, "strength", None) == 3.0


def test_one_parent_and_no_more(tmp_path: Path):
    (tmp_path / "low.yaml").write_text("terms: {forget: {objective: {name: npo}}}\noptim: {lr: 1.0e-3}\n")
    (tmp_path / "mid.yaml").write_text("base: low.yaml\nseed: 7\n")
    (tmp_path / "top.yaml").write_text("base: mid.yaml\n")
    (tmp_path / "torn.yaml").write_text("terms: {forget: [\n")
    config = load([f"conf={tmp_path / 'mid.yaml'}", "optim.weight_decay=0.5"])
    assert (config.optim.lr, config.optim.weight_decay, config.seed) == (1e-3, 0.5, 7)
    assert config.output_dir == "runs/mid"
    with pytest.raises(UserError, match="one parent is the limit"):
        load([f"conf={tmp_path / 'top.yaml'}"])
    with pytest.raises(UserError, match="not valid YAML"):
        load([f"conf={tmp_path / 'torn.yaml'}"])


def test_text_stays_at_home_unless_nobody_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "rows.py").write_text(
        "from dataclasses import dataclass\nfrom lit_unlearn.benchmarks.authors import Authors\n"
        "@dataclass(frozen=True)\nclass Mine(Authors):\n    note: str = ''\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    mine = [QUICK, "data.benchmark={name: 'rows:Mine'}"]
    kinds = {"default": load([QUICK]), "mine": load(mine), "hashed": load([*mine, "privacy=hashed"])}
    assert {name: config.privacy for name, config in kinds.items()} == {
        "default": "full", "mine": "local", "hashed": "hashed"
    }  # fmt: skip
    assert [(config.keeps_text, config.uploads_text) for config in kinds.values()] == [
        (True, True), (True, False), (False, False)
    ]  # fmt: skip
    assert load(["conf=llama1b_tofu"]).privacy == "full"
    for written, expected in (("full", "local"), ("hashed", "hashed")):  # by a run on another benchmark
        (tmp_path / "run.yaml").write_text(f"base: {find_conf('quickstart').resolve()}\nprivacy: {written}\n")
        assert load([f"conf={tmp_path / 'run.yaml'}", "seed=1"]).privacy == written
        assert load([f"conf={tmp_path / 'run.yaml'}", *mine[1:]]).privacy == expected
    assert load([*mine, "privacy=full"]).uploads_text
