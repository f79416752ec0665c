"""Under which key a number is logged: W&B folds its charts by what stands before the first slash."""

from __future__ import annotations

SETS = ("forget", "retain", "real_authors", "world_facts", "holdout")
"""Probe sets whose numbers have a section of their own, ``eval_<set>/``."""


def key_of_today(key: str) -> str:
    """Of a history: before there were sections every number of an evaluation stood under ``eval/``."""
    return evaluation_key(key.removeprefix("eval/")) if key.startswith("eval/") else key


def evaluation_key(number: str) -> str:
    """``forget_quality`` -> ``eval_forget/quality``, ``utility/x`` -> ``eval_utility/x``, ``mem`` -> ``eval/mem``.

    Only W&B and ``history.csv`` know these keys; ``metrics.json`` keeps the names the metrics report.
    """
    for name, separator in [*((name, "_") for name in SETS), ("utility", "/")]:
        if number.startswith(name + separator):
            return f"eval_{name}/{number.removeprefix(name + separator)}"
    return f"eval/{number}"


def selection_key(number: str) -> str:
    """The same number of the selection half: ``select_forget/quality``, ``select/mem``."""
    return "select" + evaluation_key(number).removeprefix("eval")
