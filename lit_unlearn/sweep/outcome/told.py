"""The points of a sweep and what has become of them, as text."""

from __future__ import annotations

import shlex

from lit_unlearn.sweep.plan import Sweep


def tell_points(sweep: Sweep) -> None:
    """Number, run directory and what the point is."""
    for point in sweep.points:
        print(f"{point.number}  {sweep.run_dir(point.number)}  {shlex.join(point.arguments())}")
