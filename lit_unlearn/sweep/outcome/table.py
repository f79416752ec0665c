"""One table of the numbers of all points that are done, the best first; means and spreads over seeds."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from lit_unlearn.files import write_text
from lit_unlearn.sweep.outcome.numbers import choosing, read_metrics
from lit_unlearn.sweep.outcome.states import states
from lit_unlearn.sweep.plan import Point, Sweep
from lit_unlearn.sweep.work.trials import settled

POINTS, TABLE = "points.jsonl", "table.csv"
_SHOWN = ("agg", "mem", "utility", "forget_quality")


@dataclass(frozen=True)
class Row:
    """Points that differ in their seed alone."""

    settings: Mapping[str, Any]
    """Those by which points differ, but for the seed."""
    points: Sequence[int]
    value: float | None
    """Mean of the rule's metric; None: a point breaks a constraint, or lacks the number."""
    numbers: Mapping[str, Sequence[float]]
    """Of the unlearned models by name, as they are reported."""


def collect(sweep: Sweep) -> None:
    """Write ``points.jsonl`` and ``table.csv`` and print the table; what is missing is named."""
    points = {point.number: settled(sweep, point) for point in sweep.points}
    found = {number: metrics for number in points if (metrics := read_metrics(sweep, number)) is not None}
    axes = _axes(points.values())
    lines = [
        {"point": number, "run": str(sweep.run_dir(number)), **_chosen(points[number], axes), **found[number]}
        for number in found
    ]
    write_text(sweep.directory / POINTS, "".join(json.dumps(line) + "\n" for line in lines))
    rows = sorted(_rows(sweep, points, found, axes), key=lambda row: _rank(sweep, row))
    write_text(sweep.directory / TABLE, _as_csv(rows))
    print(_as_text(sweep, rows))
    if found and not all("selection" in metrics for metrics in found.values()):
        print("ranked by the numbers that are reported: set evaluation.selection to choose on other questions")
    for state in states(sweep):
        if state.name != "done":
            print(f"missing: point {state.number}, {state.name}{': ' * bool(state.reason)}{state.reason}")
    print(f"written: {sweep.directory / POINTS}, {sweep.directory / TABLE}")


def _axes(points: Collection[Point]) -> list[str]:
    """Settings by which points differ, in the order in which they are written; ``conf`` is one where it differs."""
    all_settings = [{"conf": point.conf, **point.settings} for point in points]
    keys = dict.fromkeys(key for settings in all_settings for key in settings)
    return [key for key in keys if len({json.dumps(settings.get(key)) for settings in all_settings}) > 1]


def _chosen(point: Point, axes: Sequence[str]) -> dict[str, Any]:
    settings = {"conf": point.conf, **point.settings}
    return {key: settings.get(key) for key in axes}


def _rows(
    sweep: Sweep, points: Mapping[int, Point], found: Mapping[int, Mapping[str, Any]], axes: Sequence[str]
) -> Iterator[Row]:
    groups: dict[str, list[int]] = {}
    for number in found:
        settings = {key: value for key, value in _chosen(points[number], axes).items() if key != "seed"}
        groups.setdefault(json.dumps(settings), []).append(number)
    for settings, numbers in groups.items():
        values = [sweep.rule.value(*choosing(found[number])) for number in numbers]
        known = [value for value in values if value is not None]
        reported = [found[number]["unlearned"] for number in numbers]
        names = [name for name in reported[0] if all(one.get(name) is not None for one in reported)]
        by_name = {name: [one[name] for one in reported] for name in names}
        yield Row(json.loads(settings), numbers, mean(known) if len(known) == len(values) else None, by_name)


def _rank(sweep: Sweep, row: Row) -> tuple[bool, float]:
    """Ascending; rows that break a constraint go last."""
    sign = -1.0 if sweep.rule.mode == "max" else 1.0
    return row.value is None, 0.0 if row.value is None else sign * row.value


def _as_csv(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row.numbers))
    axes = list(rows[0].settings) if rows else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*axes, "points", "value", *(f"{name}{part}" for name in names for part in ("", "_std"))])
    for row in rows:
        cells = [number for name in names for number in _mean_and_spread(row.numbers.get(name, ()))]
        writer.writerow([*row.settings.values(), " ".join(map(str, row.points)), row.value, *cells])
    return text.getvalue()


def _as_text(sweep: Sweep, rows: Sequence[Row]) -> str:
    """Of the chosen numbers."""
    rule = sweep.rule
    shown = list(dict.fromkeys([*_SHOWN, *rule.reads]))
    shown = [name for name in shown if any(name in row.numbers for row in rows)]
    axes = list(rows[0].settings) if rows else []
    lines = [[*(key.rpartition(".")[2] for key in axes), "points", "rule", *shown]]
    for row in rows:
        value = "broken" if row.value is None else f"{row.value:.3f}"
        cells = [_cell(*_mean_and_spread(row.numbers.get(name, ()))) for name in shown]
        lines.append([*map(_short, row.settings.values()), ",".join(map(str, row.points)), value, *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*text, f"rule: {rule}; +- is the standard deviation over seeds"])


def _mean_and_spread(values: Sequence[float]) -> tuple[float | None, float | None]:
    return mean(values) if values else None, stdev(values) if len(values) > 1 else None


def _cell(center: float | None, spread: float | None) -> str:
    if center is None:
        return "-"
    return f"{center:.3f}" if spread is None else f"{center:.3f} +- {spread:.3f}"


def _short(value: Any) -> str:
    """Of an objective its name; of what a point leaves to the conf nothing."""
    if value is None:
        return "-"
    if isinstance(value, Mapping) and "name" in value:
        return str(value["name"])
    return value if isinstance(value, str) else json.dumps(value)
