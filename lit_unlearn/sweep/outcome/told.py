"""The points of a sweep and what has become of them, as text."""

from __future__ import annotations

import shlex
from collections import Counter

from lit_unlearn.sweep.outcome.states import states
from lit_unlearn.sweep.plan import Sweep


def tell_points(sweep: Sweep) -> None:
    """A line each: number, run directory, arguments."""
    for point in sweep.points:
        print(f"{point.number}  {sweep.run_dir(point.number)}  {shlex.join(point.arguments())}")
    search = sweep.config.search
    if search is not None:
        print(f"Optuna chooses for each: {', '.join(search.space)}")


def tell_states(sweep: Sweep) -> None:
    """A line for each point, and how many there are of each state."""
    found = states(sweep)
    for state in found:
        print(f"{state.number}  {state.name}{': ' * bool(state.reason)}{state.reason}")
    print(", ".join(f"{count} {name}" for name, count in Counter(state.name for state in found).items()))
