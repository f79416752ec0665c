"""Aggregates against the papers' rows, the report's names and refusals, the table."""

import math

import pytest

from lit_unlearn.errors import UserError
from lit_unlearn.evaluation.aggregate import FORMULAS, REMEMBERED, aggregates, harmonic_mean
from lit_unlearn.evaluation.base import Record
from lit_unlearn.evaluation.metrics import METRICS, ExtractionStrength, ModelUtility, Probability, TruthRatio
from lit_unlearn.evaluation.report import report, table


def full_records() -> dict[str, list[Record]]:
    """Every probe of a TOFU-like benchmark, two examples each, two wrong answers."""
    return {
        f"{subset}/{kind}": [
            Record(example, choice, (math.log(0.5),) * 2, (True, True), target="x y z", text="x y")
            for example in range(2)
            for choice in range(2 if kind == "perturbed" else 1)
        ]
        for subset in ("forget", "retain", "real_authors", "world_facts")
        for kind in ("answer", "paraphrase", "perturbed")
    }


def test_harmonic_mean():
    assert harmonic_mean([1.0, 0.5, 0.25]) == pytest.approx(3 / 7)
    assert harmonic_mean([0.5, 0.0]) == 0.0
    assert harmonic_mean([0.5, -0.1]) == 0.0


@pytest.mark.parametrize(
    ("mem", "utility", "agg"),
    [(0.58, 0.71, 0.64), (0.09, 0.71, 0.16), (0.57, 0.75, 0.65), (0.59, 0.63, 0.61), (0.28, 0.74, 0.41)],
)
def test_agg_of_the_paper(mem, utility, agg):
    """Rows of table 1 of the bootstrapping paper (2510.19422), TOFU forget10."""
    values = aggregates({**{name: 1 - mem for name in REMEMBERED}, "model_utility": utility})
    assert values == pytest.approx({"mem": mem, "utility": utility, "agg": agg}, abs=0.005)


def test_mem_by_hand():
    parts = {
        "forget_extraction_strength": 0.2,
        "forget_exact_memorization": 0.6,
        "forget_paraphrase_probability": 0.5,
        "forget_truth_ratio_prob_mean": 0.75,
    }
    assert aggregates(parts) == pytest.approx({"mem": 4 / (1 / 0.8 + 1 / 0.4 + 1 / 0.5 + 1 / 0.25)})
    assert aggregates({**parts, "forget_extraction_strength": 1.0}) == {"mem": 0.0}
    assert aggregates({"model_utility": 0.4}) == {"utility": 0.4}


def test_report_has_the_stable_numbers():
    records = full_records()
    numbers = report(records, {name: metric() for name, metric in METRICS.items()}, retain_model=records)
    stable = (
        "forget_probability forget_rougeL_recall forget_truth_ratio forget_extraction_strength "
        "forget_exact_memorization forget_quality retain_extraction_strength model_utility mem utility agg"
    )
    assert set(stable.split()) <= numbers.keys()
    assert numbers["forget_quality"] == 1.0
    assert numbers["mem"] == 0.0  # greedy is right everywhere


def test_report_names_the_missing_probe():
    records = full_records()
    del records["world_facts/perturbed"]
    records["forget/perturbed"] = []
    with pytest.raises(UserError, match="metric model_utility reads the probe world_facts/perturbed, which was not"):
        report(records, {"model_utility": ModelUtility()}, None)
    with pytest.raises(UserError, match="metric truth_ratio reads the probe forget/perturbed"):
        report(records, {"truth_ratio": TruthRatio()}, None)
    assert "world_facts_probability" not in report(records, {"probability": Probability()}, None)


def test_report_refuses_one_name_for_two_numbers():
    metrics = {"es": ExtractionStrength(), "es_peer": ExtractionStrength("one_over_length")}
    with pytest.raises(UserError, match=r"metric es_peer reports \w+_extraction_strength, which another metric"):
        report(full_records(), metrics, None)


def test_table():
    text = table({"original": {"agg": 0.16, "mem": 0.09}, "unlearned": {"agg": 0.61, "forget_quality": 1.8e-21}})
    lines = text.splitlines()
    assert lines[0].split() == ["original", "unlearned"]
    assert lines[1].split() == ["agg", "^", "0.160", "0.610"]
    assert lines[2].split() == ["mem", "^", "0.090", "-"]
    assert lines[3].split() == ["forget_quality", "^", "-", "1.8e-21"]
    assert len({len(line) for line in lines[:4]}) == 1
    assert f"agg = {FORMULAS['agg']}" in lines
    assert text.isascii()
