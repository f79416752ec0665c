"""Every method's ready conf, its terms and schedules on a tiny model: 20 steps along the path a user walks."""

import json
import math
from pathlib import Path

import pytest
import yaml

from lit_unlearn import finetune, train
from lit_unlearn.alternates import __main__ as alternates
from lit_unlearn.config.files import read_conf
from lit_unlearn.recording.history import read_history

TINY = Path(__file__).parent / "tiny.yaml"
CONFS = sorted((Path(__file__).parents[2] / "conf" / "methods").glob("*.yaml"))
NUM_STEPS, STEPS_PER_EPOCH = 20, 2
OF_LLAMA = {"layer": 1, "target_tokens": [5, 6]}
"""Fields that depend on the model, and what they are here."""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("methods") / "models"
    longer = ["finetune.max_epochs=40", "finetune.optim.lr=3e-3"]  # a model that knows something to forget
    finetune.main([f"conf={TINY}", f"output_dir={directory}", *longer])
    return directory


@pytest.fixture(scope="session")
def alternates_file(models: Path) -> Path:
    """As the generation step of AltPO writes it."""
    directory = models.parent / "alternates"
    length = "data.max_length=400"  # the request holds the question and its answer
    alternates.main([f"conf={TINY}", f"model.path={models / 'target'}", f"output_dir={directory}", length, "num=3"])
    return directory / "alternates.jsonl"


def tiny_conf(method: Path, alternates_file: Path) -> dict:
    """tiny.yaml with the loss of a method's conf."""
    conf, written = read_conf(TINY), read_conf(method)
    terms = {name: term for name, term in written["terms"].items() if term is not None}
    for term in terms.values():
        term["objective"] |= {name: value for name, value in OF_LLAMA.items() if name in term["objective"]}
    conf |= {"terms": terms, "schedules": written.get("schedules", {}), "finetune": None, "squeeze": None}
    if "beliefs" in written:
        conf["beliefs"] = written["beliefs"] | {"max_new_tokens": 8}
    if "alternates" in written["data"]:
        conf["data"]["alternates"] = str(alternates_file)
    return conf


def test_there_are_methods():
    assert len(CONFS) >= 24


@pytest.mark.parametrize("method", CONFS, ids=lambda path: path.stem.removeprefix("llama1b_"))
def test_a_method_runs(method: Path, models: Path, alternates_file: Path, tmp_path: Path):
    conf, run_dir = tmp_path / method.name, tmp_path / "run"
    conf.write_text(yaml.safe_dump(tiny_conf(method, alternates_file), sort_keys=False))
    train.main([
        f"conf={conf}", f"output_dir={run_dir}", f"model.path={models / 'target'}", "logging.mode=disabled",
        "evaluation.every_n_epochs=0", "trainer.checkpoint_every_n_epochs=0", "trainer.max_epochs=10",
    ])  # fmt: skip
    history = read_history(run_dir / "history.csv")
    losses = {name: [value for _, value in points] for name, points in history.items() if name.endswith("loss")}
    assert {f"train/{name}_loss" for name in yaml.safe_load(conf.read_text())["terms"]} <= losses.keys()
    for name, values in losses.items():
        assert len(values) == NUM_STEPS, name
        assert all(map(math.isfinite, values)), name
    first, last = (
        sum(values) / STEPS_PER_EPOCH  # over all forget rows
        for values in (losses["train/forget_loss"][:STEPS_PER_EPOCH], losses["train/forget_loss"][-STEPS_PER_EPOCH:])
    )
    assert abs(last - first) > 1e-4 * abs(first)
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["unlearned"]["forget_probability"] < 0.99 * metrics["original"]["forget_probability"]
    assert (run_dir / "model" / "model.safetensors").is_file()
