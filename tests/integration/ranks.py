"""Whole runs on two processes, from the command line, that a test may kill or signal: all, or the first alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def start(argv: list[str], output: Path) -> subprocess.Popen[bytes]:
    """A run on its way, in a process group of its own; its words go into a file."""
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "lit_unlearn.train", *argv]
    with output.open("ab") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)


def finish(argv: list[str], output: Path, code: int = 0) -> float:
    """Run to the end; the seconds it took."""
    started, process = time.monotonic(), start(argv, output)
    assert process.wait(timeout=300) == code, output.read_text()[-4000:]
    return time.monotonic() - started


def kill_when(argv: list[str], output: Path, is_time: Callable[[], bool]) -> bool:
    """kill -9, both processes, at a moment; False: they had ended before."""
    process = start(argv, output)
    while process.poll() is None and not is_time():
        time.sleep(0.002)
    came_in_time = process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return came_in_time
