"""Metrics against frozen numbers: a small Llama's answers (OpenUnlearning d3d7cf9) and TOFU's shipped logs."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from lit_unlearn.evaluation.aggregate import harmonic_mean
from lit_unlearn.evaluation.base import Record
from lit_unlearn.evaluation.metrics import (
    ExactMemorization,
    ExtractionStrength,
    ForgetQuality,
    ModelUtility,
    Probability,
    TruthRatio,
)
from lit_unlearn.evaluation.metrics.forget_quality import ks_p_value
from lit_unlearn.evaluation.metrics.memorization import extraction_strength
from lit_unlearn.evaluation.metrics.probability import probability, probability_with_options
from lit_unlearn.evaluation.metrics.truth_ratio import closer_to_1_better, true_better, truth_ratios
from lit_unlearn.evaluation.text_scores import rouge_l_recall

GOLDEN = Path(__file__).parents[1] / "golden"
ITEMS = json.loads((GOLDEN / "metrics" / "items.json").read_text())
EXPECTED = json.loads((GOLDEN / "metrics" / "expected.json").read_text())
ROUGE_PAIRS = json.loads((GOLDEN / "metrics" / "rouge.json").read_text())["pairs"]
LOGS_EXPECTED = json.loads((GOLDEN / "tofu_logs" / "expected.json").read_text())
SETS = ("forget", "retain", "holdout")
MODELS = tuple(LOGS_EXPECTED["models"])
FROM_MODEL = 1e-5
"""Relative, a float32 forward; what is computed from stored numbers is right up to their rounding to 10 digits."""
ROUNDED = 2e-9


def score(model: LlamaForCausalLM, asked: list[tuple[list[int], list[int]]]) -> list[tuple[list[float], list[bool]]]:
    """Log-prob and argmax hit of each answer token; one right-padded forward, which causal attention does not see."""
    sequences = [torch.tensor(prompt + answer) for prompt, answer in asked]
    with torch.no_grad():
        logits = model(torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)).logits  # [B, T, V]
    scores = []
    for row, (prompt, answer) in zip(logits, asked, strict=True):
        predicted = row[len(prompt) - 1 : len(prompt) + len(answer) - 1]  # [answer, V]
        labels = torch.tensor(answer)
        logps = predicted.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
        scores.append((logps.tolist(), (predicted.argmax(-1) == labels).tolist()))
    return scores


def model_records(name: str) -> dict[str, list[Record]]:
    config = json.loads((GOLDEN / "objectives" / "config.json").read_text())
    model = LlamaForCausalLM(LlamaConfig(**config)).eval()
    model.load_state_dict(load_file(GOLDEN / "objectives" / f"{name}.safetensors"))
    answers = [
        (f"{subset}/{kind}", example, choice, item["prompt"], answer)
        for subset in SETS
        for example, item in enumerate(ITEMS[subset])
        for kind, choices in (
            ("answer", [item["answer"]]),
            ("paraphrase", [item["paraphrased_answer"]]),
            ("perturbed", item["perturbed_answers"]),
        )
        for choice, answer in enumerate(choices)
    ]
    records: dict[str, list[Record]] = {}
    scores = score(model, [(prompt, answer) for *_, prompt, answer in answers])
    for (probe, example, choice, _, answer), (logps, hits) in zip(answers, scores, strict=True):
        text = " ".join(map(str, answer))
        records.setdefault(probe, []).append(Record(example, choice, tuple(logps), tuple(hits), text))
    return records


@pytest.fixture(scope="module")
def policy():
    return model_records("policy")


@pytest.fixture(scope="module")
def reference():
    return model_records("reference")


def test_probability(policy):
    numbers = Probability()(policy, None)
    keys = {"forget_probability": "forget.answer", "retain_probability": "retain.answer"}
    keys["forget_paraphrase_probability"] = "forget.paraphrased_answer"
    assert numbers == pytest.approx(
        {key: EXPECTED["probability"][name]["agg_value"] for key, name in keys.items()}, rel=FROM_MODEL
    )
    for subset in SETS:
        losses = [-row.mean_logp for row in policy[f"{subset}/answer"]]
        assert losses == pytest.approx(EXPECTED["probability"][f"{subset}.answer"]["avg_loss"], rel=FROM_MODEL)


@pytest.mark.parametrize("subset", SETS)
def test_probability_with_options(policy, subset):
    value = probability_with_options(policy[f"{subset}/answer"], policy[f"{subset}/perturbed"])
    assert value == pytest.approx(EXPECTED["probability_w_options"][subset]["agg_value"], rel=FROM_MODEL)


@pytest.mark.parametrize("subset", SETS)
@pytest.mark.parametrize("kind", ["paraphrase", "answer"])
@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
def test_truth_ratio(policy, subset, kind, mean):
    name = {"paraphrase": "truth_ratio", "answer": "truth_ratio_answer"}[kind]
    expected = EXPECTED[name if mean == "geometric" else f"{name}_arithmetic"][subset]
    scores = list(truth_ratios(policy[f"{subset}/{kind}"], policy[f"{subset}/perturbed"], mean).values())
    ratios = [score.ratio for score in scores]
    assert ratios == pytest.approx(expected["score"], rel=FROM_MODEL)
    assert closer_to_1_better(ratios) == pytest.approx(expected["closer_to_1_better"], rel=FROM_MODEL)
    assert true_better(ratios) == pytest.approx(expected["true_better"], rel=FROM_MODEL)
    if mean == "geometric":
        assert [score.prob_mean for score in scores] == pytest.approx(expected["prob_mean_score"], rel=FROM_MODEL)


def test_truth_ratio_metric(policy):
    expected = EXPECTED["truth_ratio"]
    assert TruthRatio()(policy, None) == pytest.approx(
        {
            "forget_truth_ratio": expected["forget"]["closer_to_1_better"],
            "forget_truth_ratio_true_better": expected["forget"]["true_better"],
            "forget_truth_ratio_prob_mean": expected["forget"]["prob_mean"],
            "retain_truth_ratio": expected["retain"]["true_better"],
            "retain_truth_ratio_prob_mean": expected["retain"]["prob_mean"],
        },
        rel=FROM_MODEL,
    )


@pytest.mark.parametrize("subset", SETS)
@pytest.mark.parametrize(
    ("floor", "name"), [("zero", "extraction_strength_floor_zero"), ("one_over_length", "extraction_strength")]
)
def test_extraction_strength(policy, subset, floor, name):
    expected = EXPECTED[name][subset]
    scores = [extraction_strength(row, floor) for row in policy[f"{subset}/answer"]]
    assert scores == pytest.approx(expected["score"], rel=ROUNDED)
    numbers = ExtractionStrength(floor)(policy, None)
    assert numbers[f"{subset}_extraction_strength"] == pytest.approx(expected["agg_value"], rel=ROUNDED)


def test_exact_memorization(policy):
    expected = {f"{name}_exact_memorization": EXPECTED["exact_memorization"][name]["agg_value"] for name in SETS}
    assert ExactMemorization()(policy, None) == pytest.approx(expected, rel=1e-7)  # the peer divides in float32


def test_forget_quality(policy, reference):
    assert ForgetQuality()(policy, reference)["forget_quality"] == pytest.approx(
        EXPECTED["ks_test"]["pvalue"], rel=1e-9
    )
    cases = EXPECTED["ks_test_extra"]
    assert len(cases) == 4
    for case in cases:
        assert ks_p_value(case["first"], case["second"]) == pytest.approx(case["pvalue"], rel=1e-9)


def test_harmonic_mean():
    assert harmonic_mean(ITEMS["hm_values"]) == pytest.approx(EXPECTED["hm_aggregate"], rel=1e-9)


def test_rouge():
    assert len(ROUGE_PAIRS) == 20
    recalls = [rouge_l_recall(pair["ground_truth"], pair["generation"]) for pair in ROUGE_PAIRS]
    assert recalls == pytest.approx([pair["rougeL_recall"] for pair in ROUGE_PAIRS], abs=1e-10)


def text_of_recall(recall: float) -> tuple[str, str]:
    """A target and a text whose ROUGE-L recall is the stored number: 23 of 28 words for 0.8214285714."""
    share = Fraction(recall).limit_denominator(500)
    assert float(share) == pytest.approx(recall, abs=1e-10)
    return " ".join(["word"] * share.denominator), " ".join(["word"] * share.numerator)


def log_records(name: str, correct_key: str = "avg_gt_loss") -> dict[str, list[Record]]:
    """One-token records whose log-prob is minus the stored mean loss."""
    tasks = json.loads((GOLDEN / "tofu_logs" / f"{name}.json").read_text())["tasks"]
    records: dict[str, list[Record]] = {}
    for subset, log in tasks.items():
        columns = {
            "answer": [[loss] for loss in log[correct_key]],
            "paraphrase": [[loss] for loss in log["avg_paraphrased_loss"]],
            "perturbed": log["average_perturb_loss"],
        }
        texts = [text_of_recall(recall) for recall in log["rougeL_recall"]]
        for kind, losses in columns.items():
            records[f"{subset}/{kind}"] = [
                Record(example, choice, (-loss,), (False,), *texts[position])
                for position, example in enumerate(log["index"])
                for choice, loss in enumerate(losses[position])
            ]
    return records


COMPONENTS = {
    f"utility/{ours}_{part}": f"{theirs} {name}"
    for ours, theirs in {"retain": "Retain", "real_authors": "Real Authors", "world_facts": "Real World"}.items()
    for part, name in {"probability": "Probability", "rougeL_recall": "ROUGE", "truth_ratio": "Truth Ratio"}.items()
}


@pytest.mark.parametrize("name", MODELS)
def test_model_utility_of_open_unlearning(name):
    expected = LOGS_EXPECTED["models"][name]["open_unlearning"]
    numbers = ModelUtility("geometric")(log_records(name), None)
    assert numbers["model_utility"] == pytest.approx(expected["model_utility"], rel=ROUNDED)
    for ours, theirs in COMPONENTS.items():
        assert numbers[ours] == pytest.approx(expected["components"][theirs], rel=ROUNDED), ours


@pytest.mark.parametrize("name", MODELS)
def test_model_utility_of_tofu(name):
    """TOFU's truth ratio of the general sets takes the paraphrase column (same strings, other batch) as right."""
    expected = LOGS_EXPECTED["models"][name]["tofu_original"]
    probabilities = ModelUtility("arithmetic")(log_records(name), None)
    ratios = ModelUtility("arithmetic")(log_records(name, correct_key="avg_paraphrased_loss"), None)
    parts = {key: (ratios if key.endswith("truth_ratio") else probabilities)[key] for key in COMPONENTS}
    for ours, theirs in COMPONENTS.items():
        # TOFU's options have no 1e-10 in the denominator: 8e-9 on answers of probability 1e-4.
        assert parts[ours] == pytest.approx(expected["components"][theirs], rel=2e-8), ours
    assert harmonic_mean(parts.values()) == pytest.approx(expected["model_utility"], rel=ROUNDED * 2)


@pytest.mark.parametrize("name", MODELS)
def test_forget_numbers_of_the_logs(name):
    records = log_records(name)
    peer, tofu = (LOGS_EXPECTED["models"][name][source]["forget"] for source in ("open_unlearning", "tofu_original"))
    numbers = TruthRatio()(records, None)
    assert probability(records["forget/answer"]) == pytest.approx(peer["Probability"], rel=ROUNDED)
    assert numbers["forget_truth_ratio"] == pytest.approx(peer["Truth Ratio"]["closer_to_1_better"], rel=ROUNDED)
    assert numbers["forget_truth_ratio_true_better"] == pytest.approx(peer["Truth Ratio"]["true_better"], rel=ROUNDED)
    assert numbers["forget_truth_ratio_prob_mean"] == pytest.approx(peer["Truth Ratio"]["prob_mean"], rel=ROUNDED)
    arithmetic = TruthRatio("arithmetic")(records, None)["forget_truth_ratio"]
    assert arithmetic == pytest.approx(tofu["Truth Ratio"], rel=ROUNDED)


def test_forget_quality_of_the_logs():
    (pair,) = LOGS_EXPECTED["forget_quality"]
    numbers = ForgetQuality()(log_records(pair["unlearned"]), log_records(pair["retrained"]))
    assert numbers["forget_quality"] == pytest.approx(pair["open_unlearning_pvalue"], rel=1e-9)  # 1.83e-21
    assert numbers["forget_quality_log10"] == pytest.approx(-20.7366, abs=1e-4)
