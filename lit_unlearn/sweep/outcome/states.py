"""What has become of each point, by the files it has left and by who holds its directory."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from lit_unlearn.recording.lock import LOCK, is_held
from lit_unlearn.sweep.plan import Sweep
from lit_unlearn.sweep.work.task import ENDED, LOG, is_finished

JOBS = "jobs.json"
"""In a sweep's directory, the arrays of SLURM that it was submitted as."""
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
    queued = _queued(sweep)
    return [_state(sweep, point.number, queued) for point in sweep.points]


def to_do(sweep: Sweep) -> list[int]:
    """Points that nobody works on, nor will, and that are not done."""
    queued = _queued(sweep) or ()
    return [
        state.number for state in states(sweep) if state.name not in ("done", "running") and state.number not in queued
    ]


def submitted(sweep: Sweep) -> list[str]:
    """Numbers of the arrays, the oldest first."""
    path = sweep.directory / JOBS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _state(sweep: Sweep, number: int, queued: Collection[int] | None) -> State:
    directory, run_dir = sweep.task_dir(number), sweep.run_dir(number)
    if is_finished(run_dir):
        return State(number, "done")
    if is_held(run_dir):
        return State(number, "running")
    if is_held(directory):
        return State(number, "running", "starting, or waiting for what points share")
    left = _left(sweep, number)
    if queued is not None and number in queued:
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


def _queued(sweep: Sweep) -> set[int] | None:
    """Points that SLURM will start; None: it was not asked to, or cannot be asked."""
    jobs = ",".join(submitted(sweep))
    if not jobs:
        return None
    words = ["squeue", "--noheader", "--array", "--jobs", jobs, "--states", "PENDING", "--format", "%K"]
    try:
        asked = subprocess.run(words, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return {int(word) for word in asked.stdout.split() if word.isdigit()}  # of a job it has forgotten, nothing
