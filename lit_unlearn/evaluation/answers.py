"""What a model says to the forget questions, side by side with what it should forget, as rows for a person to read."""

from __future__ import annotations

from math import exp

from lit_unlearn.evaluation.base import Records
from lit_unlearn.evaluation.evaluator import Evaluator
from lit_unlearn.evaluation.text_scores import rouge_l_recall

PROBE = "forget/answer"
COLUMNS = ("id", "question", "target", "original", "answer", "rougeL_recall", "probability", "retain_model")
"""``original``, ``answer`` and ``retain_model`` are greedy answers; ``probability`` is that of the target under the
model asked, exp of its mean token log-prob."""


def forget_answers(evaluator: Evaluator, records: Records, original: Records) -> list[tuple[object, ...]]:
    """A row of ``COLUMNS`` for each forget question, in the order of the ids; none where no answer was generated.

    Args:
        evaluator: knows the questions, and the retain model's answers where there is one (else the column is empty).
        records: of the model asked.
        original: the answers before unlearning.
    """
    questions = {
        row.id: question
        for probe in evaluator.probes
        if probe.name == PROBE
        for row, question in zip(probe.rows, probe.questions, strict=True)
    }
    before, retain = (
        {r.id: r.text for r in known.get(PROBE, ())} for known in (original, evaluator.retain_model or {})
    )
    return [
        (
            record.id,
            questions[record.id],
            record.target,
            before[record.id],
            record.text,
            rouge_l_recall(record.target, record.text),
            exp(record.mean_logp),
            retain.get(record.id),
        )
        for record in records.get(PROBE, ())
        if record.text is not None and record.target is not None
    ]
