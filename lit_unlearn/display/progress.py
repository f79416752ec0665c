"""The phases of a run: which are over, which goes on, and how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from lit_unlearn.display.costs import Costs, Left
from lit_unlearn.display.phases import Part, Phase, Planned, State


class Progress:
    """All phases of a run, told of what happens by those who do it.

    Args:
        plan: the phases known beforehand, in order; one that was not planned finds its place when it begins.
        clock: seconds, from any start.
    """

    def __init__(self, plan: Sequence[Planned], clock: Callable[[], float] = time.monotonic) -> None:
        self.phases = [Phase(planned) for planned in plan]
        self.open: list[Phase] = []
        """The running phase and those inside it, outermost first."""
        self.clock, self.started, self.costs = clock, clock(), Costs()

    def begin(self, planned: Planned, total: int | None, first: int) -> Phase:
        """Waiting phases before it are skipped; inside another phase it is not listed."""
        phase = Phase(planned) if self.open else self._listed(planned)
        phase.total, phase.first, phase.done = total, first, first
        phase.state, phase.started = State.running, self.clock()
        self.open.append(phase)
        return phase

    def end(self, state: State = State.done) -> Phase:
        phase = self.open[-1]
        seconds = self.seconds(phase)
        self.open.pop()
        phase.state, phase.ended = state, self.clock()
        if phase.parts:
            self._end_part(phase.parts[-1])
        if self.open:
            outer, kind = self.open[-1], phase.planned.kind
            outer.seconds_inside += phase.ended - phase.started
            outer.inside[kind] = outer.inside.get(kind, 0.0) + phase.planned.amount
        if state is State.done:
            self.costs.measure(phase, seconds)
        return phase

    def begin_part(self, title: str, total: int) -> Part:
        phase = self.open[-1]
        if phase.parts:
            self._end_part(phase.parts[-1])
        phase.parts.append(Part(title, total, self.clock()))
        return phase.parts[-1]

    def advance_part(self, part: Part) -> None:
        part.done += 1
        if part.done == part.total:
            self._end_part(part)

    def _end_part(self, part: Part) -> None:
        if part.seconds is None:
            part.seconds = self.clock() - part.started

    def _listed(self, planned: Planned) -> Phase:
        waiting = [phase for phase in self.phases if phase.state is State.waiting]
        phase = next((phase for phase in waiting if phase.planned.title == planned.title), None)
        if phase is None:
            phase = Phase(planned)
            self.phases.insert(self.phases.index(waiting[0]) if waiting else len(self.phases), phase)
            return phase
        for before in waiting[: waiting.index(phase)]:
            before.state = State.skipped
        return phase

    def elapsed(self, phase: Phase) -> float:
        """Seconds since it began, with what ran inside."""
        return (self.clock() if phase.state is State.running else phase.ended) - phase.started

    def seconds(self, phase: Phase) -> float:
        """Its own seconds, without those of the phases inside."""
        inner = self.open[self.open.index(phase) + 1 :][:1] if phase in self.open else []
        return self.elapsed(phase) - phase.seconds_inside - sum(map(self.elapsed, inner))

    def fraction(self, phase: Phase) -> float:
        """Of its steps, or of its time where it counts none; from 0 to 1."""
        if phase.state is State.done:
            return 1.0
        if phase.total:
            return min(1.0, phase.done / phase.total)
        elapsed, left = self.elapsed(phase), self.left(phase)
        if left.exact:
            return elapsed / max(elapsed + left.seconds, 1e-9)
        return phase.parts[-1].done / max(1, phase.parts[-1].total) if phase.parts else 0.0

    def left(self, phase: Phase) -> Left:
        """Of a running phase."""
        own = self._left_of_steps(phase) if phase.total else self._left_of_parts(phase)
        now = {inner.planned.kind: inner for inner in self.open[self.open.index(phase) + 1 :][:1]}
        for kind, amount in phase.planned.within.items():
            running = now[kind].planned.amount if kind in now else 0.0
            own += self.costs.of(kind, max(0.0, amount * phase.share - phase.inside.get(kind, 0.0) - running))
        return sum(map(self.left, now.values()), own)

    def left_of_run(self) -> Left:
        """Of the running phase and all that wait."""
        left = Left(0.0, True)
        for phase in self.phases:
            if phase.state is State.running:
                left += self.left(phase)
            elif phase.state is State.waiting:
                for kind, amount in {phase.planned.kind: phase.planned.amount, **phase.planned.within}.items():
                    left += self.costs.of(kind, amount, self._running(kind))
        return left

    def _running(self, kind: str) -> list[tuple[float, float]]:
        """What the running phases of a kind have done of their steps: amount, seconds."""
        return [
            (phase.planned.amount * (phase.done - phase.first) / phase.total, self.seconds(phase))
            for phase in self.open
            if phase.planned.kind == kind and kind and phase.total
        ]

    def _left_of_steps(self, phase: Phase) -> Left:
        assert phase.total is not None
        taken, spent = phase.done - phase.first, self.seconds(phase)
        if not taken:
            return self.costs.of(phase.planned.kind, phase.planned.amount * phase.share).less(spent)
        return Left(max(0.0, (phase.total - phase.done) * spent / taken), True)

    def _left_of_parts(self, phase: Phase) -> Left:
        kind, amount = phase.planned.kind, phase.planned.amount
        if not phase.parts:
            return self.costs.of(kind, amount).less(self.seconds(phase))
        known, part = self.costs.of_parts(kind, amount), phase.parts[-1]
        spent = self.clock() - part.started if part.seconds is None else part.seconds
        now = known.get(part.title, 0.0) - spent
        if part.done:
            now = spent * (part.total - part.done) / part.done
        begun = {part.title for part in phase.parts}
        later = sum(seconds for title, seconds in known.items() if title not in begun)
        return Left(max(0.0, now) + later, bool(known))
