"""A whole run on two processes that hold parts: numbers and model of one process, the best step's, resumed or not."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from lit_unlearn import evaluate, finetune
from lit_unlearn.recording.checkpoints import checkpoint_path, checkpoints, last_checkpoint, remove

CONF = f"conf={Path(__file__).parent / 'tiny.yaml'}"
COMMON = [CONF, "finetune=null", "trainer.max_epochs=3", "evaluation.max_new_tokens=4", "logging.mode=disabled"]
COMMON += ["data.micro_batch_size=1", "strategy.persistent_below=0", "export.dtype=float32"]
BEST = "evaluation.keep_best={metric: forget_probability, constraints: {forget_probability: {max: 0.0108}}}"
COMMON.append(BEST)  # which the first of three epochs breaks, and the second is closest to
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
        assert numbers["selection"][model] == pytest.approx(expected["selection"][model], abs=1e-5), model
    assert numbers["chosen"]["step"] == expected["chosen"]["step"] == 2 * STEPS_PER_EPOCH
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


STEEP = '''
from dataclasses import dataclass
from lit_unlearn.objectives.nll import NLL
from lit_unlearn.types import Loss, Role

calls = 0


@dataclass(frozen=True)
class Steep(NLL):
    """From the third time on, a finite loss with an infinite gradient."""

    role: Role = Role.forget

    def __call__(self, policy, reference):
        global calls
        calls += 1
        scores = policy[self.role]
        values = scores.logps if calls < CALLS else (scores.logps - scores.logps.detach()).clamp(min=0).sqrt()
        return Loss.per_token(values, scores, self.reduction)
'''


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "precision"),
    [("zero2", "bf16-mixed"), ("zero3", "bf16-mixed"), ("fsdp2", "32-true")]
    + ([("ddp", "32-true"), ("zero3", "32-true")] if os.environ.get("LIT_UNLEARN_MATRIX") else []),
)
def test_a_gradient_that_is_infinite_stops_the_run(strategy, precision, start, tmp_path, monkeypatch):
    (tmp_path / "steep.py").write_text(STEEP.replace("CALLS", "5"))
    monkeypatch.syspath_prepend(tmp_path)
    options = ["terms.forget.objective={name: steep:Steep}", f"trainer.precision={precision}", "squeeze=null"]
    options += ["data.micro_batch_size=null", "export.dtype=float32"]
    run = train(start, f"output_dir={tmp_path / 'run'}", *on_two(strategy), *options)
    assert run.returncode == 2, run.stderr[-3000:]
    assert "the gradient is NaN or infinite at step" in run.stderr
    assert "Traceback" not in run.stderr


ALONE = """
from dataclasses import dataclass
from lit_unlearn.errors import UserError
from lit_unlearn.objectives.npo import NPO
from lit_unlearn.parallel import rank

calls = 0


@dataclass(frozen=True)
class Alone(NPO):
    def __call__(self, policy, reference):
        global calls
        calls += 1
        if calls > 5 and rank() == 1:
            raise UserError("a fault of one process")
        return super().__call__(policy, reference)
"""


@pytest.mark.slow
def test_the_error_of_one_process_is_told_first_and_ends_the_other(start, tmp_path, monkeypatch):
    (tmp_path / "alone.py").write_text(ALONE)
    monkeypatch.syspath_prepend(tmp_path)
    options = ["terms.forget.objective={name: alone:Alone}", "squeeze=null"]
    run = train(start, f"output_dir={tmp_path / 'run'}", *on_two("fsdp2"), *options)
    assert run.returncode == 1, run.stderr[-3000:]
    own, other = run.stderr.find("error: a fault of one process"), run.stderr.find("error: another process")
    assert -1 < own < other
    assert "Traceback" not in run.stderr


@pytest.mark.slow
def test_a_process_that_is_gone_ends_the_other_at_once(start, tmp_path):
    run_dir, options = tmp_path / "run", ["trainer.max_epochs=500", "trainer.checkpoint_every_n_epochs=10"]
    options += ["evaluation.every_n_epochs=0", "evaluation.keep_best=null", "squeeze=null", *on_two("zero3")]
    command = [sys.executable, "-m", "lit_unlearn.train", *COMMON, start, f"output_dir={run_dir}", *options]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 100
    while not checkpoints(run_dir / "checkpoints") and time.monotonic() < until:
        time.sleep(0.2)
    [other] = psutil.Process(run.pid).children()
    other.kill()
    _, told = run.communicate(timeout=30)
    assert run.returncode == 1
    assert "another process of this run is gone" in told
    assert "Traceback" not in told
    assert last_checkpoint(run_dir) is not None


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


SMALL_FILES = """
from dataclasses import dataclass
from lit_unlearn.objectives.npo import NPO
from lit_unlearn.strategies import saving

saving.FILE_BYTES = 60_000


@dataclass(frozen=True)
class InSmallFiles(NPO):
    pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
def test_as_the_8b_conf_trains(strategy, start, tmp_path, monkeypatch):
    """bf16, blocks computed again, the best step put back, several files: the model on disk gives the run's numbers."""
    (tmp_path / "small_files.py").write_text(SMALL_FILES)
    monkeypatch.syspath_prepend(tmp_path)
    run_dir, precision = tmp_path / "run", "trainer.precision=bf16-mixed"
    options = ["terms.forget.objective={name: small_files:InSmallFiles}", "model.gradient_checkpointing=full"]
    options += ["evaluation.keep_best={metric: forget_probability, mode: max}", precision, "trainer.max_epochs=3"]
    run = train(start, f"output_dir={run_dir}", *on_two(strategy), *options)
    assert run.returncode == 0, run.stderr[-3000:]
    numbers = json.loads((run_dir / "metrics.json").read_text())
    assert numbers["chosen"]["step"] == STEPS_PER_EPOCH  # the first evaluation, and not the last
    files = sorted(path.name for path in (run_dir / "model").glob("*.safetensors"))
    assert len(files) > 3
    assert (run_dir / "model" / "model.safetensors.index.json").is_file()
    evaluate.main(
        [
            CONF,
            "finetune=null",
            f"model.path={run_dir / 'model'}",
            f"output_dir={tmp_path / 'again'}",
            precision,
            "evaluation.max_new_tokens=4",
            "logging.mode=disabled",
            "evaluation.selection={}",
        ]
    )
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    found = next(value for key, value in again.items() if isinstance(value, dict) and "mem" in value)
    for name in ("forget_probability", "mem", "utility"):
        assert found[name] == pytest.approx(numbers["unlearned"][name], abs=0.02), name
