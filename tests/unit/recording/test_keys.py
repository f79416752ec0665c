"""The sections of the W&B page: every number lands in one, under a key of its own."""

import pytest

from lit_unlearn.evaluation.report import ROWS
from lit_unlearn.recording.keys import evaluation_key


@pytest.mark.parametrize(
    ("number", "key"),
    [
        ("agg", "eval/agg"),
        ("mem", "eval/mem"),
        ("utility", "eval/utility"),
        ("model_utility", "eval/model_utility"),
        ("forget_quality", "eval_forget/quality"),
        ("forget_probability", "eval_forget/probability"),
        ("retain_rougeL_recall", "eval_retain/rougeL_recall"),
        ("real_authors_truth_ratio", "eval_real_authors/truth_ratio"),
        ("world_facts_probability", "eval_world_facts/probability"),
        ("holdout_extraction_strength", "eval_holdout/extraction_strength"),
        ("utility/retain_probability", "eval_utility/retain_probability"),
        ("forgetful", "eval/forgetful"),
        ("my_own_number", "eval/my_own_number"),
    ],
)
def test_sections(number, key):
    assert evaluation_key(number) == key


def test_no_two_numbers_share_a_key():
    numbers = [*ROWS, *(f"utility/{name}" for name in ROWS)]
    assert len(numbers) > 30
    assert len({evaluation_key(number) for number in numbers}) == len(numbers)
