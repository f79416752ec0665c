"""A sweep as an array of a real SLURM: one point preempted and requeued, one that fails, one cancelled, one target."""

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.test_sweep import ENVIRONMENT, SMALL, told

HERE = Path(__file__).parent
SIX = f"""{SMALL}
points:
  - {{optim.lr: 1.0e-3}}
  - {{optim.lr: 2.0e-3}}
  - {{optim.lr: 1.0e-3, trainer.max_epochs: 1000, trainer.checkpoint_every_n_epochs: 0}}
  - {{terms.forget.objective: {{name: dpo}}, data.alternates: nowhere.jsonl}}
  - {{optim.lr: 1.0e-4, trainer.max_epochs: 99999, trainer.checkpoint_every_n_epochs: 0}}
  - {{optim.lr: 4.0e-3}}
"""
SECONDS = 300.0
"""Most that anything is waited for."""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if os.geteuid() or not all(map(shutil.which, ("slurmctld", "slurmd", "munged"))):
        pytest.skip("needs root and a SLURM: apt-get install -y slurm-wlm munge")
    if not socket.gethostbyname(socket.gethostname().partition(".")[0]).startswith("127."):
        pytest.skip("the host's name does not lead to the loopback, where this SLURM listens")
    directory = tmp_path_factory.mktemp("slurm")
    subprocess.run(["bash", HERE / "start.sh", directory], check=True, timeout=60)
    ENVIRONMENT["SLURM_CONF"] = os.environ["SLURM_CONF"] = str(directory / "slurm.conf")
    yield
    subprocess.run(["scancel", "--user", "root"])
    subprocess.run(["bash", HERE / "stop.sh", directory], check=True)
    del ENVIRONMENT["SLURM_CONF"], os.environ["SLURM_CONF"]


def wait(until: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + SECONDS
    while not until():
        assert time.monotonic() < end, f"{what}: not in {SECONDS} s"
        time.sleep(0.2)


def queue(*words: str) -> str:
    return subprocess.run(["squeue", "--noheader", "--array", *words], capture_output=True, text=True).stdout


@pytest.mark.slow
def test_an_array_with_a_preempted_a_failing_and_a_cancelled_point(slurm: None, tmp_path: Path):
    (tmp_path / "six.yaml").write_text(SIX)
    said = told("sweep", ["submit", "six.yaml", "limit=2"], tmp_path)
    job = said.split()[1].rstrip(":")
    directory = tmp_path / "runs" / "sweeps" / "six"

    def trains(point: int) -> bool:  # the numbers of step 0 are there before
        history = directory / f"six-{point}" / "history.csv"
        return history.is_file() and not history.read_text().rpartition("\n")[0].rpartition("\n")[2].startswith(
            ("s", "0,")
        )

    wait(lambda: trains(2), "point 2 trains")
    with subprocess.Popen(["scancel", "--signal=USR1", f"{job}_2"]) as asks:  # as five minutes before its time is over
        wait(lambda: f"{job}_2 PENDING" in queue("--format", "%i %T"), "point 2 is requeued")
        asks.terminate()  # else it asks once more where the job was gone before SLURM answered
    ended = json.loads((directory / "tasks" / "2" / "ended.json").read_text())
    assert ended["state"] == "preempted"
    assert re.search(r"step-\d+\S* is whole", ended["reason"])
    assert "2  waiting: in the queue; was preempted: " in told("sweep", ["status", "six.yaml"], tmp_path)
    subprocess.run(["scontrol", "update", f"jobid={job}_2", "starttime=now"], check=True)  # else in two minutes

    wait(lambda: trains(4), "point 4 trains")
    subprocess.run(["scancel", f"{job}_4"], check=True)
    wait(lambda: not queue(), "all have ended")

    states = told("sweep", ["status", str(directory)], tmp_path).splitlines()
    assert states[3].startswith("3  failed: data.alternates=nowhere.jsonl: no such file")
    assert states[4].startswith("4  cancelled: no longer in the queue; submit goes on")
    assert states[:3] + states[5:6] == ["0  done", "1  done", "2  done", "5  done"]
    assert len(list(directory.glob("shared/models-*"))) == 1
    assert len(json.loads((directory / "six-2" / "environment.json").read_text())["starts"]) == 2  # gone on with
    steps = [line.split(",")[0] for line in (directory / "six-2" / "history.csv").read_text().splitlines()]
    assert len(steps) > 1000

    report = (directory / "report.txt").read_text()  # by the job behind the array
    assert "missing: point 3, failed: data.alternates" in report
    assert "missing: point 4, cancelled" in report
    points = [json.loads(line) for line in (directory / "points.jsonl").read_text().splitlines()]
    assert [point["point"] for point in points] == [0, 1, 2, 5]
    assert "--array=3-4%2" in told("sweep", ["submit", str(directory), "dry_run=true"], tmp_path)
