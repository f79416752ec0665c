"""A sweep on this machine, its points in processes of their own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
TINY = REPOSITORY / "tests" / "integration" / "tiny.yaml"
SMALL = f"""
conf: {TINY}
settings:
  squeeze: null
  evaluation: {{every_n_epochs: 0, max_new_tokens: 4}}
  finetune.max_epochs: 5
  logging.mode: disabled
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def command(name: str, arguments: Sequence[str], directory: Path) -> subprocess.Popen:
    words = [sys.executable, "-m", f"lit_unlearn.{name}", *arguments]
    return subprocess.Popen(
        words, cwd=directory, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def told(name: str, arguments: Sequence[str], directory: Path, code: int = 0) -> str:
    process = command(name, arguments, directory)
    text = process.communicate()[0]
    assert process.returncode == code, text
    return text


@pytest.mark.slow
def test_points_share_their_target_and_one_fails_alone(tmp_path: Path):
    failing = "{terms.forget.objective: {name: dpo}, data.alternates: nowhere.jsonl}"
    (tmp_path / "three.yaml").write_text(f"{SMALL}points: [{failing}, {{optim.lr: 2.0e-3}}, {{optim.lr: 4.0e-3}}]\n")
    said = told("sweep", ["run", "three.yaml", "jobs=2"], tmp_path, code=2)
    assert "error: point 0 did not finish" in said
    directory = tmp_path / "runs" / "sweeps" / "three"
    states = told("sweep", ["status", str(directory)], tmp_path).splitlines()
    assert states[0].startswith("0  failed: data.alternates=nowhere.jsonl: no such file")
    assert states[1:] == ["1  done", "2  done", "1 failed, 2 done"]
    collected = told("sweep", ["collect", "three.yaml"], tmp_path)
    assert "missing: point 0, failed: data.alternates" in collected
    assert len((directory / "points.jsonl").read_text().splitlines()) == 2

    (models,) = directory.glob("shared/models-*")
    assert (models / "log.txt").read_text().count("target model: ") == 1
    lone = ["squeeze=null", "evaluation={every_n_epochs: 0, max_new_tokens: 4}", "finetune.max_epochs=5"]
    lone += [f"conf={TINY}", "logging.mode=disabled", "optim.lr=4e-3", "output_dir=lone"]
    told("train", lone, tmp_path)
    for written in ("metrics.json", "model/model.safetensors", "records/original/forget-answer.jsonl"):
        assert (tmp_path / "lone" / written).read_bytes() == (directory / "three-2" / written).read_bytes()

    finished = (directory / "three-1" / "metrics.json").stat().st_mtime_ns
    assert "1 of 3 points to do" in told("sweep", ["run", "three.yaml"], tmp_path, code=2)
    assert (directory / "three-1" / "metrics.json").stat().st_mtime_ns == finished


@pytest.mark.slow
@pytest.mark.parametrize(("number", "state"), [(signal.SIGINT, "stopped"), (signal.SIGTERM, "preempted")])
def test_asked_to_end_it_leaves_nothing_at_work(number: signal.Signals, state: str, tmp_path: Path):
    long = "{finetune: null, trainer.max_epochs: 9999}"  # of an untrained model
    (tmp_path / "long.yaml").write_text(f"{SMALL}points: [{long}]\ngrid: {{optim.lr: [1.0e-3, 2.0e-3]}}\n")
    process = command("sweep", ["run", "long.yaml"], tmp_path)
    history = tmp_path / "runs" / "sweeps" / "long" / "long-0" / "history.csv"
    until = time.monotonic() + 60
    while not (history.is_file() and history.stat().st_size):
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    process.send_signal(number)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "point 1" not in said
    assert told("sweep", ["status", "long.yaml"], tmp_path).startswith(f"0  {state}")
    working = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [words for words in working if b"lit_unlearn" in words and str(tmp_path).encode() in words]
    assert not list(tmp_path.rglob(".lock"))
