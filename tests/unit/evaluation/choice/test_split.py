"""The two halves: by id, the same for all answers to one example; rows held out of training; names known beforehand."""

from collections.abc import Iterator

import pytest

from lit_unlearn.benchmarks.authors import Authors
from lit_unlearn.data.tokenize import Encoded, Encoder
from lit_unlearn.errors import UserError
from lit_unlearn.evaluation.base import Record, Records
from lit_unlearn.evaluation.choice.held_out import hold_out
from lit_unlearn.evaluation.choice.names import check_names, reported_names
from lit_unlearn.evaluation.choice.settings import DisruptionConfig, KeepBestConfig, SelectionConfig
from lit_unlearn.evaluation.choice.split import Split
from lit_unlearn.evaluation.collect import Asking, EncodedProbe
from lit_unlearn.evaluation.evaluator import Evaluator
from lit_unlearn.evaluation.metrics import METRICS
from lit_unlearn.evaluation.settings import EvaluationConfig
from lit_unlearn.types import Role

BENCHMARK = Authors(num_authors=6, num_forget_authors=2, questions_per_author=4, num_general=9)


@pytest.fixture
def evaluator(tokenizer) -> Evaluator:
    metrics = {name: METRICS[name]() for name in BENCHMARK.metrics}
    return Evaluator.of(BENCHMARK, Encoder(tokenizer, 900), metrics, Asking(4, 8))


def answers(probes: list[EncodedProbe]) -> Records:
    """Right and wrong tokens by the id, so that no two halves have the same numbers."""
    return {
        probe.name: [
            Record(row.id, choice, (-1.0 - row.id, -0.5), (row.id % 3 == 0, True), target, target[: 5 + row.id])
            for row, choice, target in zip(probe.rows, probe.choices, probe.targets, strict=True)
        ]
        for probe in probes
    }


def ids(records: Records) -> Iterator[tuple[str, set[int]]]:
    return ((probe.partition("/")[0], {record.id for record in rows}) for probe, rows in records.items())


def test_halves_are_by_id_and_seeded(evaluator):
    split, records = Split.of(evaluator.probes, SelectionConfig(), 3), answers(evaluator.probes)
    selection, report = split.selection(records), split.report(records)
    assert selection.keys() == report.keys() == {probe.name for probe in evaluator.probes}
    for probe, rows in records.items():
        assert sorted([*selection[probe], *report[probe]], key=lambda r: (r.id, r.choice)) == rows
    for name, found in ids(selection):
        assert found == split.selected[name]
    for name, found in ids(report):
        assert not found & split.selected[name]
    assert {name: len(chosen) for name, chosen in split.selected.items()}["forget"] == 4  # of 8
    assert Split.of(evaluator.probes[::-1], SelectionConfig(), 3) == split
    assert Split.of(evaluator.probes, SelectionConfig(seed=3), 0) == split  # of runs with seeds of their own
    assert Split.of(evaluator.probes, SelectionConfig(), 4) != split
    assert len(Split.of(evaluator.probes, SelectionConfig(share=0.3), 3).selected["forget"]) == 2


def test_each_half_is_reported_by_itself(evaluator):
    records = answers(evaluator.probes)
    evaluator.retain_model = records
    whole = evaluator.report(records)
    assert evaluator.select(records) == {}
    evaluator.split = Split.of(evaluator.probes, SelectionConfig(), 0)
    halves = evaluator.report(records), evaluator.select(records)
    assert [half.keys() for half in halves] == [whole.keys()] * 2
    assert [half["forget_quality"] for half in halves] == [1.0, 1.0]  # the retain model is cut in the same way
    name = "forget_exact_memorization"
    assert halves[0][name] != halves[1][name]
    assert sum(half[name] for half in halves) / 2 == pytest.approx(whole[name])
    assert evaluator.in_tokens_of(evaluator.encoder).split == evaluator.split


def test_a_probe_that_is_too_small_is_told(tokenizer):
    evaluator = Evaluator.of(
        Authors(num_authors=6, num_forget_authors=2, questions_per_author=4, num_general=3),
        Encoder(tokenizer, 900),
        {},
        Asking(4, 8),
    )
    with pytest.raises(UserError, match=r"cuts the probe real_authors/answer of 3 examples into 2 and 1, .* needs 2"):
        Split.of(evaluator.probes, SelectionConfig(), 0)


def test_names_are_known_before_a_model_is_asked(evaluator):
    records = answers(evaluator.probes)
    for retain_model in (None, records):
        evaluator.retain_model = retain_model
        assert set(reported_names(evaluator.probes, evaluator.metrics, retain_model is not None)) == set(
            evaluator.report(records)
        )
    config = EvaluationConfig(keep_best=KeepBestConfig("utility/retain_rougeL_recall"))
    check_names(config, evaluator.probes, evaluator.metrics, False)
    near = EvaluationConfig(keep_best=KeepBestConfig("utility/retain_rougeL"))
    with pytest.raises(UserError, match=r"choose among utility/retain_rougeL_recall, "):
        check_names(near, evaluator.probes, evaluator.metrics, False)
    for name in ("fluency", "forget_quality", "disruption"):
        config = EvaluationConfig(keep_best=KeepBestConfig(name))
        with pytest.raises(UserError, match=rf"metric: {name} is not reported here; choose .*, agg, or another"):
            check_names(config, evaluator.probes, evaluator.metrics, False)
    measured = EvaluationConfig(keep_best=KeepBestConfig("forget_quality"), disruption=DisruptionConfig())
    check_names(measured, evaluator.probes, evaluator.metrics, True)  # whose budget is a constraint


def test_held_out_rows_are_not_trained_on(tokenizer):
    encoder = Encoder(tokenizer, 900)

    def held(num_rows: int, seed: int = 0, world: int = 1) -> tuple[list[Encoded], list[Encoded]]:
        rows = {Role.retain: encoder.encode(BENCHMARK.train_split(Role.retain), "retain split")}
        before = list(rows[Role.retain])
        out = hold_out(DisruptionConfig(num_rows=num_rows), rows, BENCHMARK, encoder, seed, world, 4)
        assert sorted([*out, *rows[Role.retain]], key=lambda row: row.id) == before
        return out, rows[Role.retain]

    out, trained = held(5)
    assert (len(out), len(trained)) == (5, 29)
    assert not {row.id for row in out} & {row.id for row in trained}
    assert held(5) == (out, trained)
    assert held(5, seed=1) != (out, trained)
    assert len(hold_out(DisruptionConfig(num_rows=5), {}, BENCHMARK, encoder, 0, 1, 4)) == 5  # no retain term
    assert hold_out(None, {}, BENCHMARK, encoder, 0, 1, 4) == []
    for num_rows, world in ((31, 1), (2, 3)):
        with pytest.raises(UserError, match=rf"num_rows={num_rows} of the retain split's 34 rows"):
            held(num_rows, world=world)
