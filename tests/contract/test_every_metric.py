"""The same questions to every metric in the table."""

import math
import random

import pytest

from lit_unlearn.errors import UserError
from lit_unlearn.evaluation.base import Record
from lit_unlearn.evaluation.metrics import METRICS
from lit_unlearn.evaluation.records import read_records, write_records
from lit_unlearn.evaluation.report import report, table
from lit_unlearn.evaluation.text_scores import without_text

SETS = ("forget", "retain", "holdout", "real_authors", "world_facts")


def make_records(seed: int, num_examples: int = 12) -> dict[str, list[Record]]:
    dice = random.Random(seed)

    def record(example: int, choice: int) -> Record:
        length = dice.randint(1, 8)
        logps = tuple(-3 * dice.random() for _ in range(length))
        greedy = tuple(dice.random() < 0.6 for _ in range(length))
        target, text = (" ".join(dice.choices("abcde", k=6)) for _ in range(2))
        return Record(example, choice, logps, greedy, target, text)

    return {
        f"{subset}/{kind}": [record(i, j) for i in range(num_examples) for j in range(5 if kind == "perturbed" else 1)]
        for subset in SETS
        for kind in ("answer", "paraphrase", "perturbed")
    }


RECORDS, RETAIN_MODEL = make_records(0), make_records(1)


@pytest.fixture(params=METRICS)
def metric(request):
    return METRICS[request.param]()


def test_there_are_metrics():
    assert len(METRICS) >= 8


def test_values_are_finite_floats(metric):
    numbers = metric(RECORDS, RETAIN_MODEL)
    assert numbers
    assert all(type(value) is float and math.isfinite(value) for value in numbers.values())


def test_collapsed_model_gives_finite_numbers(metric):
    records = {
        probe: [Record(row.id, row.choice, (-900.0,), (False,), row.target, "") for row in rows]
        for probe, rows in RECORDS.items()
    }
    assert all(math.isfinite(value) for value in metric(records, RETAIN_MODEL).values())


def test_order_of_records_does_not_matter(metric):
    dice = random.Random(2)
    shuffled, retain_model = (
        {probe: dice.sample(rows, len(rows)) for probe, rows in records.items()} for records in (RECORDS, RETAIN_MODEL)
    )
    assert metric(shuffled, retain_model) == metric(RECORDS, RETAIN_MODEL)


def test_unknown_probes_are_ignored(metric):
    more = {**RECORDS, "elsewhere/question": RECORDS["forget/perturbed"][:3]}
    assert metric(more, RETAIN_MODEL) == metric(RECORDS, RETAIN_MODEL)


def test_what_it_reads_is_enough(metric):
    """Fed exactly its probes it gives the numbers it gives among all of them."""
    everything = metric(RECORDS, RETAIN_MODEL)
    numbers = metric(*({probe: records[probe] for probe in metric.reads} for records in (RECORDS, RETAIN_MODEL)))
    assert numbers
    assert numbers.items() <= everything.items()


def test_what_it_reads_is_needed(metric):
    assert metric.reads
    for probe in metric.reads:
        rest = {name: rows for name, rows in RECORDS.items() if name != probe}
        with pytest.raises(UserError, match=probe):
            report(rest, {"it": metric}, RETAIN_MODEL)


def test_records_without_text_give_the_same_numbers(metric, tmp_path):
    """Exactly, and from the disk: every number of a text is kept where the text is not."""
    silent = Record(99, 0, (-1.0,), (True,), "a b", " ")
    records = RECORDS | {"forget/answer": [*RECORDS["forget/answer"], silent]}
    hashed = {probe: [without_text(row) for row in rows] for probe, rows in records.items()}
    write_records(tmp_path, hashed)
    back = read_records(tmp_path)
    assert back == hashed
    assert metric(back, RETAIN_MODEL) == metric(records, RETAIN_MODEL)


def test_inputs_and_metric_are_left_alone(metric):
    before = repr(RECORDS), hash(metric)
    metric(RECORDS, None)
    assert (repr(RECORDS), hash(metric)) == before
    assert metric.higher_is_better in (True, False, None)


def test_no_two_metrics_report_one_name():
    metrics = {name: metric() for name, metric in METRICS.items()}
    numbers = report(RECORDS, metrics, RETAIN_MODEL)  # raises if two do
    assert {"mem", "utility", "agg"} <= numbers.keys()
    text = table({"original": numbers, "unlearned": numbers})
    assert "agg" in text
    assert len(text.splitlines()) > 15
