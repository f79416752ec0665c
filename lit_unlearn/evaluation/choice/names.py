"""Which numbers an evaluation will report, known before any model is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from lit_unlearn.errors import UserError
from lit_unlearn.evaluation.base import Metric, Record
from lit_unlearn.evaluation.choice.rule import DISRUPTION, Rule
from lit_unlearn.evaluation.collect import EncodedProbe
from lit_unlearn.evaluation.report import ROWS, report
from lit_unlearn.evaluation.settings import EvaluationConfig


def check_names(
    config: EvaluationConfig, probes: Sequence[EncodedProbe], metrics: Mapping[str, Metric], knows_retain_model: bool
) -> None:
    """Raises UserError where ``keep_best`` reads a number that will not be reported; names the main ones that will."""
    rule = Rule.of(config)
    if rule is None:
        return
    known = reported_names(probes, metrics, knows_retain_model)
    known += [DISRUPTION] if config.disruption is not None else []
    for name in rule.reads:
        if name not in known:
            key = "metric" if name == rule.metric else "constraints"
            shown = [number for number in known if number in (*ROWS, DISRUPTION)]
            near = [number for number in get_close_matches(name, known) if number not in shown]
            raise UserError(
                f"evaluation.keep_best.{key}: {name} is not reported here; choose among {', '.join([*near, *shown])}, "
                "or another name in metrics.json"
            )


def reported_names(
    probes: Sequence[EncodedProbe], metrics: Mapping[str, Metric], knows_retain_model: bool
) -> list[str]:
    """Those of a model that answers the first example of each probe as it should."""
    records = {probe.name: _perfect(probe) for probe in probes if probe.rows}
    return list(report(records, metrics, records if knows_retain_model else None))


def _perfect(probe: EncodedProbe) -> list[Record]:
    return [
        Record(row.id, choice, (-1.0,) * len(row.answer), (True,) * len(row.answer), target, target)
        for row, choice, target in zip(probe.rows, probe.choices, probe.targets, strict=True)
        if row.id == probe.rows[0].id
    ]
