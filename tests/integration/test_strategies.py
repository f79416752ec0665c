"""A whole run on two processes that hold parts: numbers and model of one process, and resumed as if straight."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lit_unlearn import finetune
from lit_unlearn.recording.checkpoints import checkpoint_path, checkpoints, remove

CONF = f"conf={Path(__file__).parent / 'tiny.yaml'}"
COMMON = [CONF, "finetune=null", "trainer.max_epochs=2", "evaluation.max_new_tokens=4", "logging.mode=disabled"]
COMMON += ["data.micro_batch_size=1", "strategy.persistent_below=0", "export.dtype=float32"]
STEPS_PER_EPOCH = 2
LARGEST = 300_000
"""Bytes of the largest file where the disk is called full: records fit, a rank's share of a checkpoint does not."""


def train(*options: str, limit: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lit_unlearn.train", *COMMON, *options]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, env=environment, preexec_fn=limit, capture_output=True, text=True, timeout=200)


def on_two(strategy: str) -> list[str]:
    return ["trainer.devices=2", f"strategy.name={strategy}"]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    models = tmp_path_factory.mktemp("start") / "models"
    finetune.main([CONF, f"output_dir={models}", "finetune.max_epochs=5", "logging.mode=disabled"])
    return f"model.path={models / 'target'}"


@pytest.fixture(scope="module")
def alone(start: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("alone") / "run"
    assert train(start, f"output_dir={path}").returncode == 0
    return path


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
def test_a_run_in_pieces_is_the_run_of_one_and_resumes_on_its_path(strategy, start, alone, tmp_path):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    run = train(start, f"output_dir={straight}", *on_two(strategy))
    assert run.returncode == 0, run.stderr[-3000:]
    expected, numbers = (json.loads((path / "metrics.json").read_text()) for path in (alone, straight))
    for model in ("original", "unlearned"):
        assert numbers[model] == pytest.approx(expected[model], abs=1e-5), model
    ours, theirs = (load_file(path / "model" / "model.safetensors") for path in (straight, alone))
    assert max((ours[name] - theirs[name]).abs().max().item() for name in theirs) < 1e-5

    shutil.copytree(straight, resumed)
    for path in checkpoints(resumed / "checkpoints"):
        if path != checkpoint_path(resumed / "checkpoints", STEPS_PER_EPOCH):
            remove(path)
    shutil.rmtree(resumed / "model")
    (resumed / "metrics.json").unlink()
    run = train(start, f"output_dir={resumed}", "resume=true", *on_two(strategy))
    assert run.returncode == 0, run.stderr[-3000:]
    for name in ("metrics.json", "model/model.safetensors"):
        assert (resumed / name).read_bytes() == (straight / name).read_bytes(), name


@pytest.mark.slow
def test_a_full_disk_under_zero_is_one_line_and_nothing_torn(start, tmp_path):
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, LARGEST))  # noqa: E731
    run = train(start, f"output_dir={tmp_path / 'run'}", *on_two("zero2"), limit=limit)
    assert run.returncode == 2, run.stderr[-3000:]
    assert "cannot be written: File too large; mend that, then go on with resume=true" in run.stderr
    assert "Traceback" not in run.stderr
    assert not checkpoints(tmp_path / "run" / "checkpoints")
    run = train(start, f"output_dir={tmp_path / 'run'}", "resume=true", *on_two("zero2"))
    assert run.returncode == 0, run.stderr[-3000:]
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_a_base_in_four_bits_on_two_is_that_on_one(start, tmp_path):
    found = []
    for devices in (1, 2):
        options = [start, f"output_dir={tmp_path / str(devices)}", "squeeze=null", "model.lora={rank: 4, base: nf4}"]
        run = train(*options, f"trainer.devices={devices}", "optim.lr=1e-2")
        assert run.returncode == 0, run.stderr[-3000:]
        found.append(tmp_path / str(devices))
    one, two = (json.loads((path / "metrics.json").read_text()) for path in found)
    for model in ("original", "unlearned"):
        assert two[model] == pytest.approx(one[model], abs=1e-5), model
    weights = [load_file(path / "model" / "model.safetensors") for path in found]
    assert all((weight - weights[1][name]).abs().max() < 1e-5 for name, weight in weights[0].items())
