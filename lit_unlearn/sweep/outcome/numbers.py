"""What a point's run has written of its model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lit_unlearn.evaluation.choice.rule import Numbers
from lit_unlearn.sweep.plan import Sweep


def read_metrics(sweep: Sweep, number: int) -> dict[str, Any] | None:
    """``metrics.json``; None: the point has not finished."""
    path = sweep.run_dir(number) / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def choosing(metrics: Mapping[str, Any]) -> tuple[Numbers, Numbers]:
    """What a rule sees: the unlearned model's numbers and the original's, on the selection half where there is one."""
    seen = metrics.get("selection") or metrics
    return seen["unlearned"], seen["original"]
