"""The numbers a person watches, picked out of everything that is logged."""

from __future__ import annotations

from collections.abc import Mapping

Group = tuple[str, list[tuple[str, str]]]
"""Heading, then (name, value as text) each."""
_EVALUATION = ("agg", "mem", "utility")
_SQUEEZE = {"squeeze/index": "index", "squeeze/retain_index": "control"}


class Numbers:
    """The last value of each watched number."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._evaluated = 0
        """Step of the last evaluation."""

    def take(self, numbers: Mapping[str, float], step: int) -> None:
        """Keep what is watched of ``numbers``, whose names are those of ``history.csv``."""
        self._last |= {name: value for name, value in numbers.items() if _watched(name)}
        if any(f"eval/{name}" in numbers for name in _EVALUATION):
            self._evaluated = step

    def forget_training(self) -> None:
        """Before another model is trained."""
        self._last = {name: value for name, value in self._last.items() if not name.startswith("train/")}

    def groups(self) -> list[Group]:
        """Losses by term, mean token log-probs (nats) by role, the squeeze indices, the last evaluation."""
        losses, logps = self._of("train/", "_loss"), self._of("train/", "_logp")
        found = [("loss", losses), ("log-prob", logps)]
        indices = [(label, f"{self._last[key]:+.3f}") for key, label in _SQUEEZE.items() if key in self._last]
        found.append(("squeeze", indices))
        scores = [(name, _text(self._last[key])) for name in _EVALUATION if (key := f"eval/{name}") in self._last]
        found.append(("evaluation", [*scores, ("at step", str(self._evaluated))] if scores else []))
        return [group for group in found if group[1]]

    def _of(self, start: str, end: str) -> list[tuple[str, str]]:
        return [
            (name.removeprefix(start).removesuffix(end), _text(value))
            for name, value in self._last.items()
            if name.startswith(start) and name.endswith(end)
        ]


def _watched(name: str) -> bool:
    of_step = name.startswith("train/") and name.endswith(("_loss", "_logp"))
    return of_step or name in _SQUEEZE or name in {f"eval/{score}" for score in _EVALUATION}


def _text(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1e4 else f"{value:.2e}"
