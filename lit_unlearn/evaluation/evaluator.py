"""One benchmark's questions and metrics, ready to be put to any model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lit_unlearn.benchmarks.base import Benchmark
from lit_unlearn.data.tokenize import Encoder
from lit_unlearn.display.screen import phase
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.errors import UserError
from lit_unlearn.evaluation.base import Metric, Records
from lit_unlearn.evaluation.choice.split import Split
from lit_unlearn.evaluation.collect import Asking, EncodedProbe, collect, encode_probe
from lit_unlearn.evaluation.report import report

ASKING = "asking"
"""Kind of the display's phases in which all questions are put to a model."""


def asking_title(name: str) -> str:
    return f"ask the {name.removesuffix('_model').replace('_', ' ')} model"


@dataclass
class Evaluator:
    """Asks the probes, keeps the answers, reports the metrics."""

    benchmark: Benchmark
    encoder: Encoder
    probes: Sequence[EncodedProbe]
    metrics: Mapping[str, Metric]
    asking: Asking
    retain_model: Records | None = None
    split: Split | None = None
    """None: whatever chooses sees what is reported."""

    @classmethod
    def of(cls, benchmark: Benchmark, encoder: Encoder, metrics: Mapping[str, Metric], asking: Asking) -> Evaluator:
        probes = [encode_probe(encoder, probe) for probe in benchmark.probes()]
        return cls(benchmark, encoder, probes, metrics, asking)

    def in_tokens_of(self, encoder: Encoder) -> Evaluator:
        """The same questions for a model with a tokenizer of its own: its ids mean nothing to another's."""
        return replace(self.of(self.benchmark, encoder, self.metrics, self.asking), split=self.split)

    def know_retain_model(self, records: Records) -> None:
        """Take the retain model's answers from an earlier run.

        Raises:
            UserError: they answer other questions than this benchmark's.
        """
        self.check_asked(records, "retain")
        self.retain_model = records

    def check_asked(self, records: Records, kind: str) -> None:
        """Raises UserError for ``evaluation.KIND_records`` that answer other questions than this benchmark's."""
        for probe in self.probes:
            asked = {(row.id, choice) for row, choice in zip(probe.rows, probe.choices, strict=True)}
            if {(record.id, record.choice) for record in records.get(probe.name, ())} != asked:
                raise UserError(
                    f"evaluation.{kind}_records: probe {probe.name} was recorded on other questions than this run "
                    "asks; use records of the same benchmark, split and max_probe, or null to have the model asked"
                )

    def ask(self, engine: ScoringEngine, name: str) -> Records:
        """Records of a model; ``name``: what the display calls it."""
        with phase(asking_title(name), kind=ASKING):
            return collect(engine, self.encoder, self.probes, self.asking)

    def report(self, records: Records) -> dict[str, float]:
        """Every number of these records, of the report half where there are two.

        Forget quality only once ``retain_model`` is known.
        """
        if self.split is None:
            return report(records, self.metrics, self.retain_model)
        retain = None if self.retain_model is None else self.split.report(self.retain_model)
        return report(self.split.report(records), self.metrics, retain)

    def select(self, records: Records) -> dict[str, float]:
        """The same of the selection half; nothing where there is none."""
        if self.split is None:
            return {}
        retain = None if self.retain_model is None else self.split.selection(self.retain_model)
        return report(self.split.selection(records), self.metrics, retain)
