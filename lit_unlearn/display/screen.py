"""How the rest of the package tells what it does; where no display was opened these calls do nothing."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console

from lit_unlearn.display.lines import Lines
from lit_unlearn.display.numbers import Numbers
from lit_unlearn.display.phases import Planned, State
from lit_unlearn.display.progress import Progress
from lit_unlearn.display.terminal import Terminal

T = TypeVar("T")


class _Display:
    """What is known of the run, and the one who draws it; other threads see it through the lock."""

    def __init__(self, title: str, plan: Sequence[Planned]) -> None:
        self.lock, self.progress, self.numbers = threading.RLock(), Progress(plan), Numbers()
        console = Console(stderr=True, highlight=False)
        on_terminal = sys.stderr.isatty() and not console.is_dumb_terminal
        self.painter = (
            Terminal(title, self.progress, self.numbers, self.lock, console)
            if on_terminal
            else Lines(self.progress, self.numbers)
        )

    def end(self, state: State) -> None:
        with self.lock:
            phase = self.progress.end(state)
            if not self.progress.open:
                self.painter.ended(phase)


_display: ContextVar[_Display | None] = ContextVar("display", default=None)


@contextmanager
def display(title: str, plan: Sequence[Planned], shown: bool = True) -> Iterator[None]:
    """Show a run on the standard error, a terminal or not, until the block is left, by an error or not.

    ``shown``: false on all ranks but one.
    """
    if not shown:
        yield
        return
    opened = _Display(title, plan)
    token = _display.set(opened)
    try:
        yield
    finally:
        while opened.progress.open:  # left by an error through code that keeps no block open
            opened.end(State.stopped)
        opened.painter.close()
        _display.reset(token)


@contextmanager
def phase(title: str, total: int | None = None, first: int = 0, kind: str = "", amount: float = 1.0) -> Iterator[None]:
    """A part of the run that is listed by itself; one inside another shows only while it goes on.

    Args:
        title: its name in the plan, which then tells its kind and amount.
        total: steps that ``advance`` will count; without it the loops of ``track`` show how far it is.
        first: of these, how many an interrupted run has taken.
        kind, amount: of a phase that no plan names; see ``Planned``.
    """
    begin(title, total, first, kind, amount)
    state = State.stopped
    try:
        yield
        state = State.done
    finally:
        end(state)


def begin(title: str, total: int | None = None, first: int = 0, kind: str = "", amount: float = 1.0) -> None:
    """``phase`` for those who cannot hold a block open, as callbacks; ``end`` ends it."""
    if (now := _display.get()) is not None:
        with now.lock:
            now.progress.begin(Planned(title, kind, amount), total, first)
            if total is not None:
                now.numbers.forget_training()


def end(state: State = State.done) -> None:
    """End the innermost phase."""
    if (now := _display.get()) is not None and now.progress.open:
        now.end(state)


def advance(note: str = "") -> None:
    """One more step of the running phase is done; ``note``: where it stands, in a word or two."""
    if (now := _display.get()) is not None and now.progress.open:
        with now.lock:
            running = now.progress.open[-1]
            running.done, running.note = running.done + 1, note
            now.painter.changed()


def track(items: Sequence[T], title: str | None) -> Iterator[T]:
    """The items one by one, and on the display how many are done; without a title they pass unseen."""
    now = _display.get()
    if now is None or title is None or not now.progress.open:
        yield from items
        return
    with now.lock:
        part = now.progress.begin_part(title, len(items))
    for item in items:
        yield item
        with now.lock:
            now.progress.advance_part(part)
            now.painter.changed()


def show(numbers: Mapping[str, float], step: int) -> None:
    """The numbers a person watches, among those given under their names in ``history.csv``."""
    if (now := _display.get()) is not None:
        with now.lock:
            now.numbers.take(numbers, step)
