"""Times as both displays write them."""

from __future__ import annotations

from lit_unlearn.display.costs import Left


def clock(seconds: float) -> str:
    """``0:07``, ``12:30``, ``3:04:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def to_come(left: Left) -> str:
    """``0:40 left``; ``> 0:40 left`` where it is at least that; nothing where nothing is known."""
    if left.exact:
        return f"{clock(left.seconds)} left"
    return f"> {clock(left.seconds)} left" if left.seconds >= 1 else ""
