"""The display on a terminal: the phases as a list, a bar, the times, the numbers; drawn anew in its place."""

from __future__ import annotations

import threading

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lit_unlearn.display.numbers import Numbers
from lit_unlearn.display.phases import Phase, State
from lit_unlearn.display.progress import Progress
from lit_unlearn.display.words import clock, to_come

_MARKS = {State.waiting: "\u00b7", State.running: "\u25b8", State.done: "\u2713", State.skipped: "\u2013"}
_PLAIN = {State.waiting: ".", State.running: ">", State.done: "+", State.skipped: "-"}
"""Where the terminal cannot show the others."""
_STOPPED = "x"
_WIDTH = 96
_AROUND = 12
"""Lines of the frame beside those of the phases."""


class Terminal:
    """Redrawn by a thread of rich's; what is printed or logged meanwhile appears above it."""

    def __init__(self, title: str, progress: Progress, numbers: Numbers, lock: threading.RLock, console: Console):
        self.title, self.progress, self.numbers = title, progress, numbers
        self.lock, self.console = lock, console
        self.over = False
        self.live = Live(get_renderable=self.frame, console=console, refresh_per_second=2)
        self.live.start()

    def changed(self) -> None:
        """The thread will see it."""

    def ended(self, phase: Phase) -> None:
        """The thread will see it."""

    def close(self) -> None:
        """Leaves the list of phases with their times."""
        self.over = True
        self.live.stop()

    def frame(self) -> RenderableType:
        with self.lock:
            shown = [self._head(), "", self._phases()]
            if not self.over and (groups := self.numbers.groups()):
                shown += ["", self._watched(groups)]
            return Group("", *shown, "")

    def _head(self) -> Text:
        run = self.progress
        elapsed = clock(run.clock() - run.started)
        text = Text(f"  {self.title}", style="bold")
        if self.over:
            stopped = any(phase.state is State.stopped for phase in run.phases)
            return text.append(f"   {'stopped after' if stopped else 'done in'} {elapsed}", style="not bold dim")
        current = run.phases.index(run.open[0]) + 1 if run.open else None
        where = f"   phase {current} of {len(run.phases)}" if current else ""
        times = "   ".join(filter(None, [elapsed, to_come(run.left_of_run())]))
        return text.append(where, style="not bold").append(f"   {times}", style="not bold cyan")

    def _phases(self) -> Table:
        """All of them; on a low terminal those that run."""
        table = Table.grid(padding=(0, 2, 0, 0))
        titles = max(len(phase.planned.title) for phase in self.progress.phases)
        left, right = (3, titles), (4, 8, 15)  # mark, title; share, time, time left
        bar = max(10, min(self.console.width, _WIDTH) - sum(left) - sum(right) - 10)
        for width in (*left, bar):
            table.add_column(no_wrap=True, width=width, overflow="ellipsis")
        for width in right:
            table.add_column(justify="right", no_wrap=True, width=width)
        room = self.console.height > len(self.progress.phases) + _AROUND
        for phase in self.progress.phases:
            if phase.state is State.running:
                self._running(table, phase)
            elif room or self.over:
                style = {State.waiting: "dim", State.skipped: "dim", State.stopped: "red"}.get(phase.state, "")
                known = phase.state in (State.done, State.stopped)
                spent = Text(clock(self.progress.elapsed(phase)) if known else "", style="dim")
                table.add_row(self._mark(phase), Text(phase.planned.title, style=style), "", "", spent)
        return table

    def _running(self, table: Table, phase: Phase) -> None:
        run = self.progress
        fraction, left = run.fraction(phase), Text(to_come(run.left(phase)), style="cyan")
        bar = ProgressBar(total=1.0, completed=fraction, complete_style="cyan", finished_style="cyan")
        title = Text(phase.planned.title, style="bold")
        table.add_row(self._mark(phase), title, bar, f"{fraction:.0%}", clock(run.elapsed(phase)), left)
        table.add_row("", "", Text(_doing(phase, run.open[1:]), style="dim"))

    def _mark(self, phase: Phase) -> Text:
        marks = _PLAIN if self.console.options.ascii_only else _MARKS
        style = {State.done: "green", State.running: "cyan", State.stopped: "red"}.get(phase.state, "dim")
        return Text(f"  {marks.get(phase.state, _STOPPED)}", style=style)

    def _watched(self, groups: list[tuple[str, list[tuple[str, str]]]]) -> Table:
        table = Table.grid(padding=(0, 2, 0, 0))
        names = max(len(name) for _, numbers in groups for name, _ in numbers)
        values = max(len(value) for _, numbers in groups for _, value in numbers)
        for heading, numbers in groups:
            cells = [Text(f"{name:<{names}} ").append(f"{value:>{values}}", style="bold") for name, value in numbers]
            table.add_row(Text(f"    {heading}", style="dim"), *cells)
        return table


def _doing(phase: Phase, inside: list[Phase]) -> str:
    """The innermost of what goes on in a phase, in a few words."""
    running = inside[-1] if inside else phase
    words = [running.planned.kind or running.planned.title] if inside else []
    if running.parts and running.parts[-1].seconds is None:
        return ", ".join([*words, f"{running.parts[-1].title} {running.parts[-1].done}/{running.parts[-1].total}"])
    return running.note or ", ".join(words)
