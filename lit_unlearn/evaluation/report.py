"""Records in, numbers out: all metrics and aggregates of one model, and the table that compares models."""

from __future__ import annotations

from collections.abc import Mapping

from lit_unlearn.errors import UserError
from lit_unlearn.evaluation.aggregate import FORMULAS, aggregates
from lit_unlearn.evaluation.base import Metric, Records

ROWS: dict[str, str] = {
    "agg": "^",
    "mem": "^",
    "utility": "^",
    "model_utility": "^",
    "forget_quality": "^",
    "forget_truth_ratio": "^",
    "forget_truth_ratio_prob_mean": "v",
    "forget_probability": "v",
    "forget_paraphrase_probability": "v",
    "forget_rougeL_recall": "v",
    "forget_extraction_strength": "v",
    "forget_exact_memorization": "v",
    "retain_probability": "^",
    "retain_rougeL_recall": "^",
    "retain_extraction_strength": "^",
    "forget_repetition": "v",
    "forget_empty_answers": "v",
}
"""The numbers a table shows, in order; ^: higher is better, v: lower is better."""


def report(records: Records, metrics: Mapping[str, Metric], retain_model: Records | None) -> dict[str, float]:
    """Every metric's numbers, then the aggregates.

    A metric's ``reads`` must be recorded; further sets it knows are reported where the benchmark has them, and an
    aggregate where all its parts are.
    """
    recorded = {probe: rows for probe, rows in records.items() if rows}
    numbers: dict[str, float] = {}
    for name, metric in metrics.items():
        if missing := sorted(metric.reads - recorded.keys()):
            raise UserError(
                f"metric {name} reads the probe {', '.join(missing)}, which was not recorded; "
                f"recorded: {', '.join(sorted(recorded)) or 'nothing'}"
            )
        values = metric(recorded, retain_model)
        if twice := sorted(numbers.keys() & values.keys()):
            raise UserError(
                f"metric {name} reports {twice[0]}, which another metric reported before; ask for one of them"
            )
        numbers.update(values)
    return {**numbers, **aggregates(numbers)}


def table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """The main numbers of several models side by side, one column each, the formulas of the aggregates beneath."""
    names = [name for name in ROWS if any(name in numbers for numbers in columns.values())]
    lines = [["", "", *columns]]
    lines += [[name, ROWS[name], *(cell(numbers.get(name)) for numbers in columns.values())] for name in names]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))])
        for first, *rest in lines
    ]
    notes = ["^ higher is better, v lower is better, - not measured; HM is the harmonic mean"]
    notes += [f"{name} = {formula}" for name, formula in FORMULAS.items() if name in names]
    return "\n".join([*text, "", *notes])


def cell(value: float | None) -> str:
    """A number as tables show it."""
    if value is None:
        return "-"
    return f"{value:.1e}" if 0.0 < abs(value) < 5e-4 else f"{value:.3f}"
