"""What a scheduler's signal does: the step is ended and saved, anything else is left, and the job may start again."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only

from lit_unlearn.errors import Preempted, UserError
from lit_unlearn.slurm import requeue

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
SAME_SECONDS = 1.0
"""A signal that follows another so soon is the same, come on another way: to the process, its group, through srun."""


@dataclass
class _Ear:
    launched: bool
    """Another process of the run has started this one, and takes every exit code but 0 for a crash."""
    heard: float | None = None
    """When the first signal came."""
    patient: bool = False
    launchers: list[_SubprocessScriptLauncher] = field(default_factory=list)
    """Hold the processes that this one has started for the run."""

    def hear(self, number: int, frame: object) -> None:
        if self.heard is None:
            self.heard = time.monotonic()
            if not self.patient:
                raise self.preempted()
        elif time.monotonic() - self.heard > SAME_SECONDS:
            self.tell_children(signal.SIGKILL)
            os._exit(self.preempted().code)

    def preempted(self, saved: str = "what was written is whole") -> Preempted:
        return Preempted(saved, 0 if self.launched else Preempted.CODE)

    def leave(self, told: Preempted, requeues: bool) -> None:
        """What is left to do where a signal has ended the run."""
        if rank_zero_only.rank == 0:
            job = requeue() if requeues else None
            told.add("go on with resume=auto" if job is None else f"SLURM has put job {job} back into its queue")
        self.tell_children(signal.SIGTERM)

    def tell_children(self, number: signal.Signals) -> None:
        for process in [process for launcher in self.launchers for process in launcher.procs]:
            process.send_signal(number)


_ear: _Ear | None = None


@contextmanager
def heeding(requeues: bool, launched: bool) -> Iterator[None]:
    """USR1 and TERM end the body with ``Preempted``, at once or where ``patience`` ends; a second one ends the process.

    Args:
        requeues: the command, given once more, would go on, so that SLURM may start the job again.
        launched: as of ``_Ear``.
    """
    global _ear
    if threading.current_thread() is not threading.main_thread():  # where Python hears no signals
        yield
        return
    _ear = ear = _Ear(launched)
    before = {number: signal.signal(number, ear.hear) for number in SIGNALS}
    try:
        yield
    except Preempted as told:
        ear.leave(told, requeues)
        raise
    except Exception as error:
        if ear.heard is None or isinstance(error, UserError):
            raise
        told = ear.preempted()  # a rank that has left first shows as an error of a collective in the others
        ear.leave(told, requeues)
        raise told from error
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _ear = None


@contextmanager
def patience() -> Iterator[None]:
    """A signal waits until the body has ended."""
    ear = _ear
    if ear is None or ear.patient:
        yield
        return
    ear.patient = True
    try:
        yield
    finally:
        ear.patient = False
    if ear.heard is not None:
        raise ear.preempted()


def is_asked_to_end() -> bool:
    """Whether this process has heard a signal."""
    return _ear is not None and _ear.heard is not None


def end(saved: str) -> None:
    """Raises Preempted: some rank was asked to end, and what all have is saved."""
    assert _ear is not None
    _ear.heard = _ear.heard or time.monotonic()
    raise _ear.preempted(saved)


def remember(launcher: _SubprocessScriptLauncher) -> None:
    """What it has started, or will, ends with this process."""
    if _ear is not None:
        _ear.launchers.append(launcher)
