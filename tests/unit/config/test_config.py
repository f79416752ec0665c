"""A run's configuration: what is merged, what is refused, and in which words."""

from pathlib import Path

import pytest
import torch

from lit_unlearn.config.checks import check_alternates, check_finetune
from lit_unlearn.config.files import find_conf
from lit_unlearn.config.terms import build_terms
from lit_unlearn.errors import UserError
from lit_unlearn.objectives import BST, NPO
from lit_unlearn.training.settings import TrainerConfig
from lit_unlearn.training.trainer import prepare_device
from lit_unlearn.types import Role
from tests.configs import load

QUICK = "conf=quickstart"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"conf=NAME is missing; choose one of .*quickstart"),
        (["conf=nope"], r"conf=nope is unknown; choose one of .*quickstart"),
        (["conf=there/is/none.yaml"], r"conf=there/is/none\.yaml: no such file"),
        (["quickstart"], r"cannot read 'quickstart': arguments are key=value, e\.g\. conf=NAME"),
        ([QUICK, "--epochs=3"], r"cannot read '--epochs=3'"),
        ([QUICK, "optim.lrr=1"], r"optim\.lrr: Key 'lrr' not in 'OptimConfig'"),
        ([QUICK, "terms.forget.wieght=1"], r"terms\.forget\.wieght: .*Did you mean: 'weight'"),
        ([QUICK, "terms.forget.objective.name=nppo"], r"objective\.name='nppo' is unknown; choose one of bst, .*npo"),
        ([QUICK, "terms.forget.objective.mix=high"], r"terms\.forget\.objective \(bst\): mix: Value 'high'"),
        ([QUICK, "terms.forget.objective.mix=2"], r"terms\.forget\.objective \(bst\): mix=2\.0 must lie in \[0, 1\]"),
        ([QUICK, "terms.forget.objective.role=retian"], r"Invalid value 'retian', expected one of \[forget"),
        ([QUICK, "terms.forget.objective.name=os:path"], r"os:path must be a dataclass"),
        ([QUICK, "terms.forget.objective.name=no_such:Thing"], r"No module named 'no_such'"),
        ([QUICK, "terms.forget=null"], r"no term reads the forget rows"),
        ([QUICK, "terms.forget=null", "terms.retain=null"], r"terms is empty"),
        ([QUICK, "beliefs.num_samples=2"], r"beliefs\.\* is set, but no term has role: belief"),
        ([QUICK, "optim.lr=-1"], r"optim\.lr=-1\.0 must be above 0"),
        ([QUICK, "data.batch_size=0"], r"data\.batch_size=0 must be at least 1"),
        ([QUICK, "trainer.max_epochs=0"], r"trainer\.max_epochs=0 must be at least 1"),
        ([QUICK, "trainer.precision=bf16-true"], r"trainer\.precision: .*bf16-true"),
        ([QUICK, "terms.forget.objective={name: npo"], r"an override is not valid YAML"),
        ([QUICK, "terms.forget.weight=.inf"], r"must be a finite number"),
        ([QUICK, "model.tiny.num_heads=0"], r"num_heads=0"),
        ([QUICK, "optim.betas=[1,2]"], r"optim\.betas=\[1\.0, 2\.0\] must lie in \[0, 1\)"),
        ([QUICK, "optim.lr=nan"], r"optim\.lr=nan must be above 0"),
        ([QUICK, "trainer.gradient_clip=-1"], r"trainer\.gradient_clip=-1\.0 must be above 0"),
        ([QUICK, "seed=-1"], r"seed=-1 must be from 0"),
        ([QUICK, "data.batch_size=1", "trainer.devices=2"], r"devices=2 cannot share a batch of 1 rows"),
        ([QUICK, "data.prompt.plain=no question"], r"data\.prompt\.plain must hold \{prompt\}"),
        ([QUICK, "seed=x"], r"seed: Value 'x'"),
        ([QUICK, "privacy=secret"], r"privacy: .*'secret'"),
        ([QUICK, "evaluation.retain_model=a", "evaluation.retain_records=b"], r"both name the retain model"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: list[str], message: str):
    with pytest.raises(UserError, match=message) as caught:
        load(arguments)
    assert "\n" not in str(caught.value)


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


def test_alternates_are_text():
    with pytest.raises(UserError, match="privacy=hashed writes no answers"):
        check_alternates(load([QUICK, "privacy=hashed", "model.path=x"]))
    check_alternates(load([QUICK, "privacy=local", "model.path=x"]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_asked_for_and_absent():
    with pytest.raises(UserError, match=r"finds no CUDA device; set trainer\.accelerator=cpu"):
        prepare_device(TrainerConfig(accelerator="cuda"))


def test_finetuning_needs_a_start_and_makes_the_retain_model_itself():
    with pytest.raises(UserError, match="needs a model to start from"):
        check_finetune(load([QUICK, "model.name=hub"]))
    with pytest.raises(UserError, match="has no finetune section"):
        check_finetune(load(["conf=llama1b_tofu"]))
    with pytest.raises(UserError, match="makes the retain model itself"):
        check_finetune(load([QUICK, "evaluation.retain_model=x"]))
