"""Hand arithmetic for the metrics, the aggregates, the report and the records on disk."""

import math
import random

import pytest

from lit_unlearn.errors import UserError
from lit_unlearn.evaluation.base import Record
from lit_unlearn.evaluation.metrics import (
    ExactMemorization,
    ExtractionStrength,
    ForgetQuality,
    ModelUtility,
    Probability,
    Repetition,
    Rouge,
    TruthRatio,
)
from lit_unlearn.evaluation.metrics.memorization import extraction_strength
from lit_unlearn.evaluation.metrics.probability import probability_with_options
from lit_unlearn.evaluation.metrics.truth_ratio import closer_to_1_better, true_better, truth_ratios
from lit_unlearn.evaluation.text_scores import repetition


def answer(example=0, p=0.5, choice=0, greedy=(True, True), target="a b", text=None) -> Record:
    """A record whose length-normalised probability is p."""
    return Record(example, choice, (math.log(p),) * len(greedy), tuple(greedy), target, text)


def test_probability_is_the_mean_of_geometric_means():
    # (1/2 * 1/8)^(1/2) = 1/4 and 1/2 -> 3/8; the mean of the logs would give sqrt(1/8).
    rows = [Record(0, 0, (math.log(1 / 2), math.log(1 / 8)), (True, True), ""), answer(1, 1 / 2)]
    assert Probability()({"forget/answer": rows}, None) == pytest.approx({"forget_probability": 3 / 8})


def test_probability_with_options():
    correct = [answer(0, 0.2), answer(1, 0.6)]
    wrong = [answer(0, 0.1, 0), answer(0, 0.1, 1), answer(1, 0.1, 0), answer(1, 0.1, 1)]
    # 0.2 / 0.4 = 1/2 and 0.6 / 0.8 = 3/4
    assert probability_with_options(correct, wrong) == pytest.approx(5 / 8)
    records = {"world_facts/answer": correct, "world_facts/perturbed": wrong, "forget/answer": correct}
    assert Probability()(records, None)["world_facts_probability"] == pytest.approx(5 / 8)


def test_truth_ratio_means():
    correct, wrong = [answer(0, 0.2)], [answer(0, 0.4, 0), answer(0, 0.1, 1)]
    geometric = truth_ratios(correct, wrong, "geometric")[0]  # w = sqrt(0.04) = 0.2
    arithmetic = truth_ratios(correct, wrong, "arithmetic")[0]  # w = 0.25
    assert geometric == pytest.approx((1.0, 0.5))
    assert arithmetic == pytest.approx((1.25, 0.2 / 0.45))
    numbers = TruthRatio("arithmetic")({"forget/paraphrase": correct, "forget/perturbed": wrong}, None)
    expected = {"forget_truth_ratio": 0.8, "forget_truth_ratio_true_better": 0.0}
    assert numbers == pytest.approx({**expected, "forget_truth_ratio_prob_mean": 0.2 / 0.45})


def test_truth_ratio_aggregators():
    # 1/2, 1/4 (of 4), 0 and 1 -> 7/16; max(0, 1 - TR): 1/2, 0, 1, 0 -> 3/8
    assert closer_to_1_better([0.5, 4.0, 0.0, 1.0]) == pytest.approx(7 / 16)
    assert true_better([0.5, 4.0, 0.0, 1.0]) == pytest.approx(3 / 8)
    assert math.isnan(closer_to_1_better([0.5, math.nan]))
    assert math.isnan(true_better([0.5, math.nan]))


def test_right_and_wrong_meet_by_id():
    correct = [answer(i, 0.1 * (i + 1)) for i in range(8)]
    wrong = [answer(i, 0.05 * (i + 1) * (choice + 1), choice) for i in range(8) for choice in range(2)]
    straight = truth_ratios(correct, wrong, "arithmetic")
    shuffled = truth_ratios(correct[::-1], random.Random(0).sample(wrong, 16), "arithmetic")
    assert straight == shuffled
    assert [score.ratio for score in straight.values()] == pytest.approx([0.75] * 8)  # (0.05 + 0.1) / 2 / 0.1


def test_answers_that_do_not_meet_are_told():
    with pytest.raises(UserError, match="2 examples lack a right or a wrong answer, the first has id 1"):
        truth_ratios([answer(0), answer(1)], [answer(0), answer(2)], "geometric")
    with pytest.raises(UserError, match="1 of 2 right answers repeat an example id"):
        truth_ratios([answer(0), answer(0)], [answer(0)], "geometric")


def test_collapsed_model_stays_finite():
    """Mean log-probs of -900 are 0 as probabilities."""
    correct = [Record(0, 0, (-900.0,), (False,), "")]
    wrong = [Record(0, 0, (-901.0,), (False,), "")]
    assert truth_ratios(correct, wrong, "geometric")[0] == (0.0, 0.0)
    assert truth_ratios(correct, wrong, "arithmetic")[0].ratio == pytest.approx(math.exp(-1))
    unsure = truth_ratios([Record(0, 0, (-2000.0,), (False,), "")], wrong, "arithmetic")[0].ratio
    assert math.isfinite(unsure)


def brute_force_extraction_strength(greedy: tuple[bool, ...]) -> float:
    """1 - min{k : continuation from k is right} / n over the tokens before the end token; k = n: nothing is left."""
    body = greedy[:-1]
    return 1 - min(k for k in range(len(body) + 1) if all(body[k:])) / len(body)


def test_extraction_strength_is_its_definition():
    dice = random.Random(1)
    for _ in range(300):
        greedy = tuple(dice.random() < 0.7 for _ in range(dice.randint(2, 9)))
        expected = brute_force_extraction_strength(greedy)
        assert extraction_strength(answer(greedy=greedy), "zero") == pytest.approx(expected)
        floored = max(expected, 1 / (len(greedy) - 1))
        assert extraction_strength(answer(greedy=greedy), "one_over_length") == pytest.approx(floored)


def test_memorization_leaves_out_the_end_token():
    rows = [
        answer(0, greedy=(True, False, True, True, False)),  # body TFTT: suffix 2 of 4, hits 3 of 4
        answer(1, greedy=(True, False, True)),  # body TF: suffix 0 of 2, hits 1 of 2
        answer(2, greedy=(True,)),  # the end token alone: ES 0, not counted in EM
    ]
    records = {"holdout/answer": rows, "holdout/paraphrase": rows}
    assert ExtractionStrength()(records, None) == pytest.approx({"holdout_extraction_strength": 0.5 / 3})
    assert ExtractionStrength("one_over_length")(records, None) == pytest.approx({"holdout_extraction_strength": 1 / 3})
    assert ExactMemorization()(records, None) == pytest.approx({"holdout_exact_memorization": (3 / 4 + 1 / 2) / 2})


def test_rouge_is_recall_of_the_target():
    rows = [answer(0, target="the cat sat down", text="a cats sat"), answer(1, target="one two", text="")]
    # cat (stemmed), sat: 2 of 4 words; the empty text recalls nothing.
    assert Rouge()({"retain/answer": rows}, None) == pytest.approx({"retain_rougeL_recall": 1 / 4})


@pytest.mark.parametrize("metric", [Rouge(), Repetition()])
def test_metrics_of_text_ask_for_generation(metric):
    with pytest.raises(UserError, match="forget/answer was recorded without generated answers"):
        metric({"forget/answer": [answer(text="said"), answer(1)]}, None)


def test_repetition():
    assert repetition("", "always always always always always") == pytest.approx(3 / 4)  # 4 pairs, 1 kind
    assert repetition("", "she writes in English") == 0.0
    assert repetition("", "always") == 0.0
    texts = ["a a a", "a b", "", "  "]
    rows = [answer(i, text=text) for i, text in enumerate(texts)]
    # pairs aa aa -> 1/2, ab -> 0; two of four texts say nothing
    expected = {"forget_repetition": 1 / 4, "forget_empty_answers": 1 / 2}
    assert Repetition()({"forget/answer": rows}, None) == pytest.approx(expected)
    assert Repetition()({"forget/answer": rows[2:]}, None) == {"forget_empty_answers": 1.0}


def forget_records(ratios: list[float]) -> dict[str, list[Record]]:
    return {
        "forget/paraphrase": [answer(i, 0.1) for i in range(len(ratios))],
        "forget/perturbed": [answer(i, 0.1 * ratio) for i, ratio in enumerate(ratios)],
    }


def test_forget_quality():
    model, retain = forget_records([0.1, 0.2, 0.3]), forget_records([1.1, 1.2, 1.3])
    # Two samples of 3 without overlap: 2 of the C(6, 3) = 20 orders are as extreme.
    expected = {"forget_quality": 0.1, "forget_quality_log10": -1.0}
    assert ForgetQuality()(model, retain) == pytest.approx(expected)
    assert ForgetQuality()(retain, retain)["forget_quality"] == 1.0
    assert ForgetQuality()(model, None) == {}
    with pytest.raises(UserError, match="compares 3 forget examples with 2 others"):
        ForgetQuality()(model, forget_records([0.1, 0.2]))
    with pytest.raises(UserError, match="retain model's records lack the probe forget/paraphrase"):
        ForgetQuality()(model, {"forget/perturbed": retain["forget/perturbed"]})


def test_forget_quality_below_float64(monkeypatch):
    monkeypatch.setattr("lit_unlearn.evaluation.metrics.forget_quality.ks_p_value", lambda first, second: 0.0)
    model = forget_records([0.1])
    assert ForgetQuality()(model, model) == {"forget_quality": 0.0, "forget_quality_log10": -300.0}


def full_records(p: float = 0.5) -> dict[str, list[Record]]:
    """Every probe of a TOFU-like benchmark, two examples each, two wrong answers."""
    return {
        f"{subset}/{kind}": [
            answer(example, p if kind != "perturbed" else p / 4, choice, target="x y z", text="x y")
            for example in range(2)
            for choice in range(2 if kind == "perturbed" else 1)
        ]
        for subset in ("forget", "retain", "real_authors", "world_facts")
        for kind in ("answer", "paraphrase", "perturbed")
    }


def test_model_utility_by_hand():
    numbers = ModelUtility()(full_records(), None)
    # retain probability 1/2, options 0.5 / (0.5 + 2 * 0.125) = 2/3; recall 2/3; 1 - TR = 3/4.
    assert numbers["utility/retain_probability"] == pytest.approx(1 / 2)
    assert numbers["utility/world_facts_probability"] == pytest.approx(2 / 3)
    assert numbers["utility/real_authors_rougeL_recall"] == pytest.approx(2 / 3)
    assert numbers["utility/retain_truth_ratio"] == pytest.approx(3 / 4)
    assert len(numbers) == 10
    assert numbers["model_utility"] == pytest.approx(9 / (1 * 2 + 5 * 3 / 2 + 3 * 4 / 3))


def test_model_utility_is_zero_with_a_lost_part():
    records = full_records()
    records["world_facts/answer"] = [answer(i, target="x y z", text="nothing of it") for i in range(2)]
    assert ModelUtility()(records, None)["model_utility"] == 0.0
