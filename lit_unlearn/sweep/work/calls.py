"""A command of ours in a process of its own, and why it ended, in one line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from lit_unlearn.errors import Preempted

INTERRUPTED = 130
_SAID = re.compile(r"(error: |preempted: |[A-Za-z_][\w.]*(Error|Exception|Loss): )")
_OF_SLURM = ("srun: ", "slurmstepd")


class Terminated(BaseException):
    """SIGTERM has come to this process."""


def end_on_sigterm() -> None:
    """The first one raises ``Terminated``; further ones are the same."""

    def end(number: int, frame: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    signal.signal(signal.SIGTERM, end)


@dataclass
class Failed(Exception):
    """A command that did not come to its end."""

    code: int
    """Of its exit; 128 and the number of the signal where one ended it."""
    reason: str
    terminated: bool = False
    """This process was asked to end too."""

    @property
    def state(self) -> str:
        if self.code in (Preempted.CODE, 128 + signal.SIGUSR1):
            return "preempted"
        return "stopped" if self.terminated or self.code == INTERRUPTED else "failed"


def in_array() -> bool:
    """Whether this is a task of a SLURM array; ``srun`` then starts each command, on all of the task's nodes."""
    return "SLURM_ARRAY_TASK_ID" in os.environ and "SLURM_JOB_ID" in os.environ


def call(command: str, arguments: Sequence[str], log: Path) -> None:
    """``python -m lit_unlearn.COMMAND``; what it prints is added to ``log``.

    Raises:
        Failed: its exit code is not 0. After Ctrl-C, which it has had too, and SIGTERM it is waited for.
    """
    launcher, terminated = ["srun"] if in_array() else [], False
    with log.open("ab") as file:
        begin = file.tell()
        words = [*launcher, sys.executable, "-m", f"lit_unlearn.{command}", *arguments]
        with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT) as process:
            try:
                code = process.wait()
            except KeyboardInterrupt:
                code = process.wait() or INTERRUPTED
            except Terminated:
                terminated = True
                if not launcher:  # SLURM tells the step itself, and srun would end it at once
                    process.terminate()
                code = process.wait()
    if code or terminated:
        code = code if code >= 0 else 128 - code
        raise Failed(code, _reason(log, begin, code), terminated)


def _reason(log: Path, begin: int, code: int) -> str:
    """The last error that was told since ``begin``, else the last line."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode(errors="replace").splitlines()
    lines = [line.strip() for line in lines if line.strip() and not line.startswith(_OF_SLURM)]
    told = next((line for line in reversed(lines) if _SAID.match(line)), None)
    if told is not None:
        return told.removeprefix("error: ").removeprefix("preempted: ")
    ended = f"ended by signal {code - 128}" if code > 128 else f"exit code {code}"
    return f"{ended}; its last line: {lines[-1]}" if lines else ended
