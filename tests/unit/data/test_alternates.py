"""Alternate answers: drawn by seed and id, read with every fault named, paired with the forget rows by id."""

import json
from collections import Counter
from pathlib import Path

import lightning as L
import pytest

from lit_unlearn.alternates.__main__ import main
from lit_unlearn.benchmarks.authors import Authors
from lit_unlearn.benchmarks.base import Example
from lit_unlearn.benchmarks.tofu import Tofu
from lit_unlearn.callbacks.reference_cache import ReferenceCache
from lit_unlearn.command.arguments import parse
from lit_unlearn.data.alternates import (
    REFUSALS,
    Pairing,
    alternates_of,
    new_answers,
    read_alternates,
    refusals_of,
    requests_for,
)
from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.data.tokenize import Encoded
from lit_unlearn.engine.answers import score_answers
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.errors import UserError
from lit_unlearn.objectives import OBJECTIVES
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.training.settings import OptimConfig
from lit_unlearn.types import Role, Term
from tests.configs import load

FORGET = [Example(id, f"question {id}?", f"answer {id}") for id in range(40)]


def write(path: Path, *lines: object) -> Path:
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)) + "\n" for line in lines)
    )
    return path


def test_our_refusals_are_many_and_distinct():
    assert len(set(REFUSALS)) == len(REFUSALS) >= 20


def test_refusals_depend_on_seed_and_id_only():
    draw = lambda rows, seed: {row.prompt: row.response for row in alternates_of(rows, "refusals", Authors(), seed)[0]}  # noqa: E731
    drawn = draw(FORGET, 0)
    assert drawn.keys() == {row.prompt for row in FORGET}
    assert set(drawn.values()) <= set(REFUSALS)
    assert draw(FORGET[::-1], 0) == drawn
    assert draw(FORGET[7:9], 0) == {row.prompt: drawn[row.prompt] for row in FORGET[7:9]}
    assert draw(FORGET, 1) != drawn
    assert len(set(drawn.values())) > 10


def test_a_local_tofu_brings_its_own_refusals(tmp_path: Path):
    benchmark = Tofu("forget10", root=str(tmp_path))
    assert refusals_of(benchmark) == refusals_of(Tofu("forget10")) == REFUSALS
    write(tmp_path / "idontknow.jsonl", "No idea.", "", " Who knows? ")
    assert refusals_of(benchmark) == ["No idea.", "Who knows?"]
    drawn = {row.response for row in alternates_of(FORGET, "refusals", benchmark, 0)[0]}
    assert drawn == {"No idea.", "Who knows?"}
    (tmp_path / "idontknow.jsonl").write_bytes(b"No idea.\nWho kn\xffws?\n")
    with pytest.raises(UserError, match=r"idontknow\.jsonl:2: not UTF-8"):
        refusals_of(benchmark)
    write(tmp_path / "idontknow.jsonl", "")
    with pytest.raises(UserError, match=r"idontknow\.jsonl: holds no refusals"):
        refusals_of(benchmark)


def test_a_file_makes_one_row_an_alternate(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", {"id": 1, "alternates": ["c"]}, {"id": 0, "alternates": ["a", "b\u2028b"]})
    rows, pairing = alternates_of(FORGET[:2], str(path), Authors(), 0)
    assert [(row.id, row.prompt, row.response) for row in rows] == [
        (0, "question 0?", "a"), (1, "question 0?", "b\u2028b"), (2, "question 1?", "c")
    ]  # fmt: skip
    assert [row.choice for row in rows] == [0, 1, 0]
    assert {id: list(positions) for id, positions in pairing.positions.items()} == {0: [0, 1], 1: [2]}


GOOD = {"id": 0, "alternates": ["a"]}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([GOOD, "{"], r"a\.jsonl:2: not JSON"),
        ([GOOD, []], r"a\.jsonl:2: expected \{\"id\": int"),
        ([GOOD, {"id": 1}], r"a\.jsonl:2: expected"),
        ([GOOD, {"id": "1", "alternates": ["b"]}], r"a\.jsonl:2: id is of type str"),
        ([GOOD, {"id": True, "alternates": ["b"]}], r"a\.jsonl:2: id is of type bool"),
        ([GOOD, {"id": 1, "alternates": []}], r"a\.jsonl:2: alternates is of type list"),
        ([GOOD, {"id": 1, "alternates": ["b", " "]}], r"a\.jsonl:2: alternates is of type list"),
        ([GOOD, {"id": 1, "alternates": "b"}], r"a\.jsonl:2: alternates is of type str"),
        ([GOOD, "", GOOD], r"a\.jsonl:3: id 0 was on an earlier line"),
        ([GOOD], r"a\.jsonl: no alternates for 1 of 2 forget rows, the first has id 1; every forget row needs one"),
        ([GOOD, {"id": 1, "alternates": ["b"]}, {"id": 7, "alternates": ["b"]}], r"id 7 is no forget row"),
    ],
)
def test_a_fault_names_file_and_line(tmp_path: Path, lines, message: str):
    with pytest.raises(UserError, match=message):
        read_alternates(write(tmp_path / "a.jsonl", *lines), [0, 1])


def test_a_missing_file_says_how_to_write_it(tmp_path: Path):
    with pytest.raises(
        UserError,
        match=r"no such file; write it with python -m lit_unlearn\.alternates, or set data\.alternates=refusals",
    ):
        alternates_of(FORGET, str(tmp_path / "none.jsonl"), Authors(), 0)


def test_each_alternate_is_met_once_in_a_round_whatever_the_ranks():
    forget = [Encoded(id, (9,), (8, 1)) for id in range(30)]
    alternates = [Encoded(i, (9,), (i, 1)) for i in range(150)]
    pairing = Pairing({id: range(5 * id, 5 * id + 5) for id in range(30)}, seed=3)
    rounds = [[row.answer[0] for row in pairing.choose(forget, alternates, epoch)] for epoch in range(10)]
    assert Counter(answer for chosen in rounds for answer in chosen) == dict.fromkeys(range(150), 2)
    assert rounds[5:] == rounds[:5]
    assert len({answer % 5 for answer in rounds[0]}) == 5  # questions do not march in step
    parts = [pairing.choose(forget[r::2], alternates, 1) for r in range(2)]
    assert [row.answer[0] for row in parts[0]] == rounds[1][0::2]
    assert [row.answer[0] for row in parts[1]] == rounds[1][1::2]
    assert [row.id for row in parts[1]] == list(range(1, 30, 2))


def test_dpo_pairs_by_id_with_the_reference_of_the_very_alternate(make_model, make_encoded, fit, tmp_path):
    """Two epochs, three alternates for even ids and one for odd: each row's pair, and its cached log-probs."""
    forget = make_encoded((5, 2, 9, 3, 4, 7), first_id=100)
    positions, alternates = {}, []
    for row in forget[::-1]:  # in another order than the forget rows
        count = 1 if row.id % 2 else 3
        positions[row.id] = range(len(alternates), len(alternates) + count)
        answers = make_encoded([3 + n for n in range(count)], seed=row.id)
        alternates += [Encoded(len(alternates) + n, row.prompt, answers[n].answer) for n in range(count)]
    engine = ScoringEngine(make_model())
    expected = [list(answer.logps) for answer in score_answers(engine, alternates, 4)]
    pairing = Pairing(positions)
    data = UnlearnData({Role.forget: forget, Role.alternate: alternates}, 4, 0, pairing=pairing)
    module = UnlearnModule(engine, {"forget": Term(1.0, OBJECTIVES["dpo"]())}, OptimConfig(lr=1e-3, warmup_epochs=0))
    seen: list[tuple[int, int, int]] = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            ours, theirs = batch[Role.forget], batch[Role.alternate]
            assert theirs.example_id.tolist() == ours.example_id.tolist()
            for i, id in enumerate(ours.example_id.tolist()):
                labelled = theirs.labels[i] != -100
                answer = tuple(theirs.labels[i][labelled].tolist())
                prompt = tuple(theirs.input_ids[i][: int(labelled.nonzero()[0])].tolist())
                assert prompt == next(row.prompt for row in forget if row.id == id)
                found = next(p for p in positions[id] if alternates[p].answer == answer)
                known = theirs.reference_logps[i][labelled].tolist()
                assert known == pytest.approx(expected[found], abs=1e-4)
                seen.append((trainer.current_epoch, id, found))

    cache = ReferenceCache(data, module.needs.reference, 4, tmp_path, module.engine)
    steps = fit(module, data, [cache, Watch()], max_epochs=2)
    assert data.sampler is not None
    assert set(data.sampler.num_rows) == {Role.forget}  # alternates are not sampled on their own
    assert steps[0]["train/forget_loss"] == pytest.approx(2 / 0.1 * 0.6931472, rel=1e-3)  # the policy is the reference
    assert steps[-1]["train/forget_loss"] < steps[0]["train/forget_loss"]
    assert sorted((epoch, id) for epoch, id, _ in seen) == [(epoch, row.id) for epoch in range(2) for row in forget]
    by_id = {id: [found for _, other, found in seen if other == id] for id in positions}
    assert all(len(set(found)) == (1 if id % 2 else 2) for id, found in by_id.items())


def test_a_byte_order_mark_is_no_part_of_a_refusal(tmp_path: Path):
    (tmp_path / "idontknow.jsonl").write_bytes("\ufeffNo idea.\nI cannot say.\n".encode())
    assert list(refusals_of(Tofu("forget01", str(tmp_path)))) == ["No idea.", "I cannot say."]


def test_alternates_that_nothing_reads_are_refused():
    assert load(["conf=quickstart", "terms.forget.objective.name=idk_nll", "data.alternates=a.jsonl"])
    with pytest.raises(UserError, match=r"data\.alternates is set, but no term has role: alternate"):
        load(["conf=quickstart", "data.alternates=a.jsonl"])


def test_a_request_shows_question_and_answer():
    asked = requests_for([Example(4, "Where was he born?", "In {Oslo}.")])
    assert [(row.id, row.response) for row in asked] == [(4, "")]
    shown, wanted = asked[0].prompt.split("\n\n")[1:]
    assert shown == "Question: Where was he born?\nAnswer: In {Oslo}."
    assert "with different facts" in wanted


def test_only_new_answers_are_kept_and_the_others_counted():
    dropped: Counter[str] = Counter()
    samples = ["Born in Oslo.", " ", "born  in oslo.", "Born in Lima.", "BORN IN CORK.", ""]
    assert new_answers(samples, "Born in Cork.", dropped) == ["Born in Oslo.", "Born in Lima."]
    assert dropped == {"empty": 2, "repeated": 1, "true answer": 1}


@pytest.mark.parametrize("written", ["0", "-1", "five", "2.5"])
def test_a_wrong_number_is_refused(written: str):
    with pytest.raises(UserError, match=rf"num(={written} must be at least 1|: Value '{written}')"):
        main.load(parse(["conf=quickstart", f"num={written}"]))
