"""The history of a run: every logged number in one CSV that survives interruption."""

from __future__ import annotations

import csv
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from lit_unlearn.recording.keys import key_of_today

HEADER = ("step", "metric", "value")
Curves = Mapping[str, Sequence[tuple[int, float]]]
"""Metric name to its (step, value) points, by step."""

SQUEEZE_CURVES = {
    "squeeze/target": "target answer",
    "squeeze/high": "likely responses",
    "squeeze/mid": "middling responses",
    "squeeze/low": "unlikely responses",
    "squeeze/argmax": "most likely token",
}
"""Mean token log-probs of the squeezing probe at forget prompts, and what a legend calls them."""
SQUEEZE_INDICES = {"squeeze/index": "forget prompts", "squeeze/retain_index": "retain prompts (control)"}
"""Change since the start of the likely responses' mean token log-prob minus that of the target answers'."""


class History(Logger):
    """Long-format, append-only CSV: a resumed run goes on in the same file and repeats the steps after its checkpoint.

    Args:
        run_dir: gets ``history.csv``.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self.path = run_dir / "history.csv"
        self._opened = False

    @property
    def name(self) -> str:
        return ""  # with an empty version: what Lightning saves by itself lands in run_dir, not in a folder below

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        assert step is not None, f"a row of the history needs a step: {sorted(metrics)}"
        if not self._opened:
            self._open()
        with self.path.open("a", encoding="utf-8", newline="") as file:  # closed at once: flushed, nothing to lose
            rows = ((step, metric, repr(float(value))) for metric, value in metrics.items())
            csv.writer(file, lineterminator="\n").writerows(rows)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run directory keeps the whole config beside the history."""

    def _open(self) -> None:
        """Start the file, or cut the line that an interruption tore, so that the next one starts on its own."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            whole = self.path.read_bytes().rfind(b"\n") + 1
            os.truncate(self.path, whole)
        if not self.path.exists() or self.path.stat().st_size == 0:
            self.path.write_text(",".join(HEADER) + "\n", encoding="utf-8")
        self._opened = True


def read_history(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Metric name to its points sorted by step; of a step logged twice the later value counts.

    Earlier versions' names of the evaluations' numbers are read as today's.
    """
    text = path.read_text(encoding="utf-8")
    whole_lines = text[: text.rfind("\n") + 1].splitlines()  # a torn last line may read as a wrong number
    points: dict[str, dict[int, float]] = {}
    rows = csv.reader(whole_lines)
    assert tuple(next(rows, HEADER)) == HEADER, path
    for step, metric, value in rows:  # not DictReader, three times as slow: the file is read at each evaluation
        points.setdefault(key_of_today(metric), {})[int(step)] = float(value)
    return {metric: sorted(values.items()) for metric, values in points.items()}
