"""One directory, one run: living holders are respected, dead ones told from them, on this machine and on others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_unlearn.errors import UserError
from lit_unlearn.recording import lock
from lit_unlearn.recording.lock import LOCK, locked

HOLD = """
import sys, time
from pathlib import Path
from lit_unlearn.errors import UserError
from lit_unlearn.recording.lock import locked
while time.time() < float(sys.argv[2]):
    pass
try:
    with locked(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(float(sys.argv[3]))
except UserError as error:
    print(error)
"""


def start(directory: Path, at: float = 0.0, seconds: float = 60.0) -> subprocess.Popen[str]:
    line = [sys.executable, "-c", HOLD, str(directory), str(at), str(seconds)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, text=True)


def told(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch):
    def set_task(**values: str) -> None:
        for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(f"SLURM_{name.upper()}", value)

    set_task()
    return set_task


def leave(directory: Path, silent: float = 0.0, **fields) -> None:
    """A lock as another process left it."""
    content = lock._holder() | {"id": "another"} | fields
    (directory / LOCK).write_text(json.dumps(content))
    then = time.time() - silent
    os.utime(directory / LOCK, (then, then))


def test_a_living_holder_is_named_and_a_killed_one_is_followed(tmp_path: Path):
    holder = start(tmp_path)
    assert told(holder) == "held"
    with pytest.raises(UserError, match=rf"in use by process {holder.pid} on .*, started 20.*another output_dir"):
        locked(tmp_path).__enter__()
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == holder.pid
    holder.send_signal(signal.SIGKILL)
    while lock._process(holder.pid) is not None:  # a zombie, which nobody has waited for, is dead too
        time.sleep(0.01)
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        with pytest.raises(UserError, match="in use"), locked(tmp_path):
            pytest.fail("held twice")
        assert (tmp_path / LOCK).exists()
    assert list(tmp_path.iterdir()) == []
    holder.wait()


def test_of_many_starts_over_a_dead_one_one_gets_it(tmp_path: Path):
    leave(tmp_path, pid=2**22 + 1)
    at = time.time() + 4
    starts = [start(tmp_path, at, 5.0) for _ in range(4)]
    lines = [told(process) for process in starts]
    assert sorted(line == "held" for line in lines) == [False, False, False, True]
    assert sum("in use by process" in line or "just been taken" in line for line in lines) == 3
    for process in starts:
        process.kill()
        process.wait()


def test_the_process_number_of_a_dead_holder_may_be_another_s_now(tmp_path: Path):
    leave(tmp_path, process="an earlier boot:17")
    with locked(tmp_path):
        pass


@pytest.mark.parametrize(
    ("silent", "free"), [(0.0, False), (lock.STALE_SECONDS - 60, False), (lock.STALE_SECONDS + 1, True)]
)
@pytest.mark.parametrize("elsewhere", [{"host": "node7"}, {"namespace": "pid:[7]"}])
def test_on_another_machine_the_last_sign_of_life_decides(tmp_path: Path, slurm, silent, free, elsewhere):
    leave(tmp_path, silent, **elsewhere)
    if free:
        with locked(tmp_path):
            pass
        return
    with pytest.raises(UserError, match=r"last sign of life \d+ s ago"), locked(tmp_path):
        pass
    assert json.loads((tmp_path / LOCK).read_text())["id"] == "another"
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_a_job_that_slurm_put_back_goes_on_at_another_node(tmp_path: Path, slurm):
    slurm(job_id="12")
    leave(tmp_path, host="node7")
    with locked(tmp_path):
        pass
    leave(tmp_path, host="node7")
    slurm(job_id="13")
    with pytest.raises(UserError, match="on node7"), locked(tmp_path):
        pass


def test_tasks_of_one_array_are_told_apart(tmp_path: Path, slurm):
    slurm(job_id="12", array_job_id="10", array_task_id="2")
    leave(tmp_path, host="node7")
    slurm(job_id="13", array_job_id="10", array_task_id="3")
    with pytest.raises(UserError, match="on node7"), locked(tmp_path):
        pass
    slurm(job_id="19", array_job_id="10", array_task_id="2")
    with locked(tmp_path):
        pass


def test_on_this_machine_a_living_process_of_the_same_job_is_respected(tmp_path: Path, slurm):
    slurm(job_id="12")
    with locked(tmp_path), pytest.raises(UserError, match="in use"), locked(tmp_path):
        pass


def test_it_shows_life_and_stops_where_another_took_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a trainer interrupted in this process ignores it

    def run() -> None:
        with locked(tmp_path):
            os.utime(tmp_path / LOCK, (0, 0))
            while (tmp_path / LOCK).stat().st_mtime == 0:
                time.sleep(0.01)
            leave(tmp_path, host="node7")
            time.sleep(30)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert json.loads((tmp_path / LOCK).read_text())["host"] == "node7"  # theirs, and left to them


def test_a_torn_lock_is_somebody_s_until_it_has_been_silent(tmp_path: Path, slurm):
    (tmp_path / LOCK).write_text('{"ho')
    with pytest.raises(UserError, match="in use"), locked(tmp_path):
        pass
    os.utime(tmp_path / LOCK, (0, 0))
    with locked(tmp_path):
        pass
