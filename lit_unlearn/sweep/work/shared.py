"""What points have in common and is made once."""

from __future__ import annotations

from lit_unlearn.sweep.plan import Point, Sweep


def with_shared(sweep: Sweep, point: Point) -> Point:
    return point
