"""What is asked of SLURM from within one of its jobs."""

from __future__ import annotations

import os
import re
import subprocess

_ASK_SECONDS = 30.0


def requeue() -> str | None:
    """The SLURM job that this is, back in its queue; None: there is none, or SLURM or its user would not have it.

    A job that is being cancelled, or that SLURM requeues by itself, does not count as running any more.
    """
    array, task, job = (os.environ.get(f"SLURM_{name}") for name in ("ARRAY_JOB_ID", "ARRAY_TASK_ID", "JOB_ID"))
    job = f"{array}_{task}" if array and task else job
    if job is None or not re.fullmatch(r"\d+(_\d+)?", job):
        return None
    told = _scontrol("show", "job", job, "--oneliner")
    if told is None or not {"Requeue=1", "JobState=RUNNING"} <= set(told.split()):
        return None
    return None if _scontrol("requeue", job) is None else job


def _scontrol(*arguments: str) -> str | None:
    """What it says; None: it fails, is not there, or does not answer."""
    try:
        done = subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=_ASK_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
