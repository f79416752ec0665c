"""What is better: value, bounds and ratios, and numbers that are not there."""

import math

import pytest

from lit_unlearn.command.arguments import parse
from lit_unlearn.config.load import load
from lit_unlearn.evaluation.choice.rule import Rule
from lit_unlearn.evaluation.choice.settings import BoundConfig

ORIGINAL = {"agg": 0.0, "utility": 0.6, "mem": 0.1}


def rule_of(*settings: str) -> Rule:
    rule = Rule.of(load(parse(["conf=quickstart", *(f"evaluation.{setting}" for setting in settings)])).evaluation)
    assert rule is not None
    return rule


def test_as_written_in_a_config():
    rule = rule_of("keep_best={metric: agg, mode: max, constraints: {utility: {min_ratio: 0.95}}}")
    assert rule == Rule("agg", "max", {"utility": BoundConfig(min_ratio=0.95)})
    assert str(rule) == "max agg with utility min ratio 0.95"
    assert rule.value({"agg": 0.5, "utility": 0.57}, ORIGINAL) == 0.5  # 0.95 * 0.6, and a bound itself is kept to
    assert rule.value({"agg": 0.9, "utility": 0.5699}, ORIGINAL) is None
    assert rule.broken({"agg": 0.9, "utility": 0.5699}, ORIGINAL) == ["utility=0.5699 is below 0.57"]
    nested = rule_of("keep_best.metric=utility/retain_rougeL_recall", "keep_best.constraints.utility/x.max=0.5")
    assert nested.reads == ["utility/retain_rougeL_recall", "utility/x"]


def test_the_budget_of_disruption_is_a_bound_unless_there_is_one():
    budget = "disruption.max=0.02"
    assert rule_of("keep_best.metric=agg", budget).constraints == {"disruption": BoundConfig(max=0.02)}
    own = rule_of("keep_best={metric: agg, constraints: {disruption: {max: 0.1}}}", budget)
    assert own.constraints == {"disruption": BoundConfig(max=0.1)}
    config = load(parse(["conf=quickstart", f"evaluation.{budget}"])).evaluation
    assert Rule.of(config) is None
    assert config.selection is None


@pytest.mark.parametrize(
    ("bound", "inside", "outside"),
    [
        (BoundConfig(min=0.2), 0.2, 0.19),
        (BoundConfig(max=0.2), 0.2, 0.21),
        (BoundConfig(min_ratio=0.5), 0.3, 0.29),
        (BoundConfig(max_ratio=2.0), 1.2, 1.21),
        (BoundConfig(min=0.2, max=0.4), 0.3, 0.5),
    ],
)
def test_bounds(bound: BoundConfig, inside: float, outside: float):
    rule = Rule("agg", constraints={"utility": bound})
    assert rule.value({"agg": 1.0, "utility": inside}, ORIGINAL) == 1.0
    assert rule.value({"agg": 1.0, "utility": outside}, ORIGINAL) is None
    for missing in (None, math.nan):
        assert rule.value({"agg": 1.0, "utility": missing}, ORIGINAL) is None
    assert rule.value({"agg": 1.0}, ORIGINAL) is None


def test_what_is_not_there_is_never_chosen():
    rule = Rule("agg", constraints={"mem": BoundConfig(min_ratio=1.0)})
    assert [rule.value({"agg": agg, "mem": 1.0}, ORIGINAL) for agg in (None, math.nan, math.inf)] == [None] * 3
    assert rule.value({"mem": 1.0}, ORIGINAL) is None
    assert rule.value({"agg": 0.5, "mem": 1.0}, {"mem": None}) is None
    assert rule.broken({"mem": 1.0}, {}) == ["mem=1 is below unknown"]


def test_better():
    largest, smallest = Rule("agg"), Rule("agg", "min")
    assert [largest.better(*pair) for pair in ((2.0, 1.0), (1.0, 2.0), (1.0, 1.0))] == [True, False, False]
    assert [smallest.better(*pair) for pair in ((2.0, 1.0), (1.0, 2.0), (1.0, 1.0))] == [False, True, False]
    for rule in (largest, smallest):
        assert [rule.better(*pair) for pair in ((1.0, None), (None, 1.0), (None, None))] == [True, False, False]
