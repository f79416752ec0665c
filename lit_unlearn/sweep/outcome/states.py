"""What has become of each point, by the files it has left and by who holds its directory."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lit_unlearn.files import is_finished
from lit_unlearn.recording.lock import LOCK, is_held
from lit_unlearn.sweep.plan import Sweep
from lit_unlearn.sweep.work.task import ENDED, LOG

JOBS = "jobs.json"
"""In a sweep's directory, the arrays of SLURM that it was submitted as."""
_ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
_ENDED |= {"REVOKED", "TIMEOUT"}
StateName = Literal["done", "running", "waiting", "failed", "preempted", "cancelled", "stopped", "killed"]


@dataclass(frozen=True)
class State:
    """Of one point."""

    number: int
    name: StateName
    reason: str = ""
    """One line; of what came to no end, why, of what waits in SLURM's queue, that."""


def states(sweep: Sweep) -> list[State]:
    """Of all points; asks SLURM's queue where the sweep was submitted."""
    return _states(sweep, _queued(sweep))


def to_do(sweep: Sweep) -> list[int]:
    """Points that nobody works on, nor will, and that are not done."""
    queued = _queued(sweep)
    free = [state.number for state in _states(sweep, queued) if state.name not in ("done", "running")]
    return [number for number in free if number not in (queued or ())]


def submitted(sweep: Sweep) -> list[str]:
    """Numbers of the arrays, the oldest first."""
    path = sweep.directory / JOBS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _states(sweep: Sweep, queued: Mapping[int, str] | None) -> list[State]:
    return [_state(sweep, point.number, queued) for point in sweep.points]


def _state(sweep: Sweep, number: int, queued: Mapping[int, str] | None) -> State:
    directory, run_dir = sweep.task_dir(number), sweep.run_dir(number)
    if is_finished(run_dir):
        return State(number, "done")
    if is_held(run_dir):
        return State(number, "running")
    if is_held(directory):
        return State(number, "running", "starting, or waiting for what points share")
    left, task = _left(sweep, number), (queued or {}).get(number)
    if task in ("CONFIGURING", "RUNNING"):
        return State(number, "running", f"its task is {task.lower()}, says SLURM")
    if task is not None:
        return State(number, "waiting", f"in the queue; was {left.name}: {left.reason}" if left else "in the queue")
    if queued is not None and (left is None or left.name in ("preempted", "stopped")):
        return State(
            number, "cancelled", "no longer in the queue; submit goes on" + (f": {left.reason}" if left else "")
        )
    return left or State(number, "waiting")


def _left(sweep: Sweep, number: int) -> State | None:
    """Of the last attempt that came to no end; None: there was none."""
    directory = sweep.task_dir(number)
    if (directory / ENDED).is_file():
        ended = json.loads((directory / ENDED).read_text(encoding="utf-8"))
        return State(number, ended["state"], ended["reason"])
    if (directory / LOCK).is_file():
        log = directory / LOG
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
        said = next((line.strip() for line in reversed(lines) if line.strip()), None)
        return State(number, "killed", "it left no word" if said is None else f"its last line: {said}")
    return None


def _queued(sweep: Sweep) -> dict[int, str] | None:
    """Points of which SLURM holds a task that has not ended, with its state; None: there was none, or it cannot be
    asked."""
    jobs = ",".join(submitted(sweep))
    if not jobs:
        return None
    words = ["squeue", "--noheader", "--array", "--jobs", jobs, "--states", "all", "--format", "%K %T"]
    try:
        asked = subprocess.run(words, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if asked.returncode and "Invalid job id" not in asked.stderr:  # as it calls one that it has forgotten
        return None
    tasks = (line.split() for line in asked.stdout.splitlines())
    return {int(number): state for number, state in tasks if number.isdigit() and state not in _ENDED}
