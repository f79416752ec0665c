"""A signal ends a run in order and says what is next; a second one at once; SLURM is asked for another start."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_unlearn.errors import Preempted, UserError
from lit_unlearn.slurm import requeue
from lit_unlearn.training import signals
from lit_unlearn.training.signals import heeding, patience


def hear(number: signal.Signals = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_signal_waits_for_the_end_of_patience_and_no_longer(number: signal.Signals):
    before, reached = signal.getsignal(number), []

    def run() -> None:
        with heeding(requeues=False, launched=False):
            with patience(), patience():
                hear(number)
                reached.append("the end of the step")
            reached.append("what comes behind it")

    def evaluate() -> None:
        with heeding(requeues=False, launched=False):
            hear(number)
            reached.append("the end of an evaluation")

    for body in (run, evaluate):
        with pytest.raises(Preempted) as told:
            body()
        assert told.value.code == 75
        assert str(told.value) == "preempted: what was written is whole; go on with resume=auto"
    assert reached == ["the end of the step"]
    assert signal.getsignal(number) == before


def test_what_breaks_because_others_have_left_is_no_error_and_what_the_user_can_mend_is():
    def end(error: Exception) -> None:
        with heeding(requeues=False, launched=True), patience():
            hear()
            raise error

    with pytest.raises(Preempted) as told:
        end(RuntimeError("Connection closed by peer"))
    assert told.value.code == 0  # its starter would take another for a crash
    with pytest.raises(UserError, match="the disk is full"):
        end(UserError("the disk is full"))
    with pytest.raises(RuntimeError, match="a fault"), heeding(requeues=False, launched=False):
        raise RuntimeError("a fault")


def stubborn(ready, same_seconds: float) -> None:
    signals.SAME_SECONDS = same_seconds
    with heeding(requeues=False, launched=False), patience():
        ready.set()
        time.sleep(0.3)
        time.sleep(0.3)
        ready.set()


@pytest.mark.parametrize(("same_seconds", "reaches_the_end"), [(0.01, False), (60.0, True)])
def test_a_second_signal_ends_at_once_but_its_echo_does_not(same_seconds: float, reaches_the_end: bool):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=stubborn, args=(ready, same_seconds))
    process.start()
    assert ready.wait(10)
    ready.clear()
    assert process.pid is not None
    for _ in range(2):
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.1)
    process.join(10)
    assert process.exitcode == 75
    assert ready.is_set() == reaches_the_end


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A ``scontrol`` that says this of the job and keeps what it was asked."""

    def of(says: str) -> Path:
        script, asked = tmp_path / "scontrol", tmp_path / "asked"
        answer = f"[ $1 = show ] && echo 'JobId=7 {says} Restarts=0' && exit 0"
        script.write_text(f"#!/bin/sh\necho $* >> {asked}\n{answer}\nexit 0\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        return asked

    return of


RUNNING = "JobState=RUNNING Requeue=1"


@pytest.mark.parametrize("array", [False, True])
def test_a_job_that_may_start_again_is_requeued_once(array: bool, cluster, monkeypatch: pytest.MonkeyPatch):
    asked = cluster(RUNNING)
    task = {"ARRAY_JOB_ID": "5", "ARRAY_TASK_ID": "3"} if array else {}
    for name, value in ({"JOB_ID": "7"} | task).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(Preempted, match="back into its queue") as told, heeding(requeues=True, launched=False):
        hear()
    assert told.value.code == 75
    job = "5_3" if array else "7"
    assert asked.read_text().splitlines() == [f"show job {job} --oneliner", f"requeue {job}"]


@pytest.mark.parametrize("says", ["JobState=RUNNING Requeue=0", "JobState=COMPLETING Requeue=1"])
def test_a_job_that_may_not_is_left_alone(says: str, cluster, monkeypatch: pytest.MonkeyPatch):
    asked = cluster(says)
    assert requeue() is None  # not under SLURM
    assert not asked.exists()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert requeue() is None
    assert "requeue" not in asked.read_text()
    monkeypatch.setenv("PATH", "/nowhere")
    assert requeue() is None
