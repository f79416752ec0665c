"""Settings of the evaluation, read before torch is."""

from __future__ import annotations

from dataclasses import dataclass, field

from lit_unlearn.evaluation.choice.settings import DisruptionConfig, EarlyStopConfig, KeepBestConfig, SelectionConfig


@dataclass
class EvaluationConfig:
    """What is measured, when, and against which retain model."""

    every_n_epochs: int = 5
    """Evaluate during training too; before and after is always done. 0: before and after only."""
    batch_size: int = 32
    max_new_tokens: int = 200
    """Longest greedy answer."""
    retain_model: str | None = None
    """Path or Hub id of the model trained without the forget set; forget quality needs it or its records."""
    retain_records: str | None = None
    """``records/retain_model`` of an earlier run: the retain model need not be asked again."""
    original_records: str | None = None
    """``records/original`` of an earlier run from the same model: it need not be asked again."""
    metrics: dict[str, dict] = field(default_factory=dict)
    """Fields of single metrics, e.g. ``{extraction_strength: {floor: one_over_length}}``; a name the benchmark does
    not report is added to the report."""
    selection: SelectionConfig | None = None
    """Cut every probe in a selection and a report half. Null: as by default under ``keep_best``, else not at all."""
    keep_best: KeepBestConfig | None = None
    """Save the weights of the best evaluation, as ``{metric: agg, constraints: {utility: {min_ratio: 0.95}}}``. Null:
    those of the last step."""
    early_stop: EarlyStopConfig | None = None
    disruption: DisruptionConfig | None = None
    """Null: nothing is held out and nothing measured."""

    def __post_init__(self) -> None:
        if self.every_n_epochs < 0 or min(self.batch_size, self.max_new_tokens) < 1:
            raise ValueError(
                "evaluation.every_n_epochs must not be negative, batch_size and max_new_tokens be at least 1"
            )
        if self.early_stop is not None and self.keep_best is None:
            raise ValueError("evaluation.early_stop needs a rule: set evaluation.keep_best, e.g. {metric: agg}")
        if self.keep_best is not None and self.every_n_epochs == 0:
            raise ValueError(
                "evaluation.keep_best chooses among the evaluations during training, and every_n_epochs=0 makes none: "
                "set every_n_epochs, or keep_best=null"
            )
        if self.keep_best is not None and self.selection is None:
            self.selection = SelectionConfig()
        if self.retain_model is not None and self.retain_records is not None:
            raise ValueError("evaluation.retain_model and retain_records both name the retain model; set one of them")
