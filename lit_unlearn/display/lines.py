"""The display where no terminal is: a plain line from time to time and at the end of each phase."""

from __future__ import annotations

import sys

from lit_unlearn.display.numbers import Numbers
from lit_unlearn.display.phases import Phase, State
from lit_unlearn.display.progress import Progress
from lit_unlearn.display.words import clock, to_come

LEAST, SHARE, MOST = 10.0, 0.25, 60.0
"""Seconds between two lines: a share of what the run has taken, so that a long run's log stays short, in bounds."""


class Lines:
    """Writes to the standard error."""

    def __init__(self, progress: Progress, numbers: Numbers) -> None:
        self.progress, self.numbers = progress, numbers
        self._due = progress.started + LEAST

    def changed(self) -> None:
        """Something has moved: a line, if one is due."""
        now, run = self.progress.clock(), self.progress
        if now < self._due or not run.open:
            return
        phase = run.open[0]
        times = [f"{run.fraction(phase):4.0%}", to_come(run.left(phase))]
        total = to_come(run.left_of_run())
        self._write(phase, [*times, f"(run: {total})" if total else "", *self._watched()])

    def ended(self, phase: Phase) -> None:
        how = "done" if phase.state is State.done else "stopped"
        numbers = self._watched() if phase.total else []
        self._write(phase, [f"{how} in {clock(self.progress.elapsed(phase))}", *numbers])

    def close(self) -> None:
        """Every line is out already."""

    def _watched(self) -> list[str]:
        return [
            f"{heading} {', '.join(f'{name} {value}' for name, value in numbers)}"
            for heading, numbers in self.numbers.groups()
        ]

    def _write(self, phase: Phase, parts: list[str]) -> None:
        now, phases = self.progress.clock(), self.progress.phases
        elapsed = now - self.progress.started
        self._due = now + min(MOST, max(LEAST, SHARE * elapsed))
        head = f"{clock(elapsed):>8}  {phases.index(phase) + 1}/{len(phases)}  {phase.planned.title}"
        print("   ".join([head, *filter(None, parts)]), file=sys.stderr, flush=True)
