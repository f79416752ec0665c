"""TOFU: splits and probes of a small copy, every fault of a local folder, and facts of the real data."""

import json
import os
from pathlib import Path

import pytest

from lit_unlearn.benchmarks import tofu_files
from lit_unlearn.benchmarks.tofu import Tofu
from lit_unlearn.benchmarks.tofu_rows import spread
from lit_unlearn.errors import UserError
from lit_unlearn.types import Role

NUM_RETAIN, NUM_PROBED, NUM_FORGET = 60, 20, 4


def rows(name: str, count: int, num_perturbed: int = 0) -> list[dict]:
    return [
        {"question": f"{name} question {i}?", "answer": f"{name} answer {i}."}
        | ({"paraphrased_answer": f"{name} reworded {i}."} if num_perturbed == 5 else {})
        | ({"perturbed_answer": [f"{name} wrong {i}.{k}" for k in range(num_perturbed)]} if num_perturbed else {})
        for i in range(count)
    ]


def write(root: Path, split: str, records: list[dict]) -> None:
    (root / f"{split}.json").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "forget05", rows("f", NUM_FORGET))
    write(tmp_path, "forget05_perturbed", rows("f", NUM_FORGET, 5))
    write(tmp_path, "retain95", rows("r", NUM_RETAIN))
    write(tmp_path, "retain_perturbed", rows("r", NUM_PROBED, 5))
    write(tmp_path, "holdout05", rows("h", NUM_FORGET))
    write(tmp_path, "real_authors_perturbed", rows("a", 6, 3))
    write(tmp_path, "world_facts_perturbed", rows("w", 7, 3))
    return tmp_path


def tofu(root: Path, max_retain: int | None = None, max_probe: int | None = None) -> Tofu:
    return Tofu("forget05", str(root), max_retain, max_probe)


def test_train_and_finetune_splits(root: Path) -> None:
    forget, retain = tofu(root).train_split(Role.forget), tofu(root).train_split(Role.retain)
    assert [(e.id, e.prompt, e.response) for e in forget] == [
        (i, f"f question {i}?", f"f answer {i}.") for i in range(NUM_FORGET)
    ]
    assert [e.prompt for e in retain] == [f"r question {i}?" for i in range(NUM_RETAIN)]
    target = tofu(root).finetune_split("target")
    assert [e.id for e in target] == list(range(NUM_RETAIN + NUM_FORGET))
    assert [e.prompt for e in target] == [e.prompt for e in [*retain, *forget]]
    assert [e.prompt for e in tofu(root).finetune_split("retain")] == [e.prompt for e in retain]


def test_probes_ask_the_question_for_every_kind_of_answer(root: Path) -> None:
    probes = {probe.name: probe for probe in tofu(root).probes()}
    counts = {name: len(probe.examples) for name, probe in probes.items()}
    assert counts == {
        "forget/answer": 4,
        "forget/paraphrase": 4,
        "forget/perturbed": 20,  # 4 x 5
        "retain/answer": 20,
        "retain/paraphrase": 20,
        "retain/perturbed": 100,
        "real_authors/answer": 6,
        "real_authors/perturbed": 18,  # 6 x 3
        "world_facts/answer": 7,
        "world_facts/perturbed": 21,
        "holdout/answer": 4,
    }
    assert {name for name, probe in probes.items() if probe.generate} == {
        f"{name}/answer" for name in ("forget", "retain", "real_authors", "world_facts")
    }
    wrong = probes["forget/perturbed"].examples[7]  # the third wrong answer of the second row
    assert (wrong.id, wrong.prompt, wrong.response, wrong.choice) == (1, "f question 1?", "f wrong 1.2", 2)
    assert probes["forget/paraphrase"].examples[1].prompt == "f question 1?"
    assert probes["forget/paraphrase"].examples[1].response == "f reworded 1."


def test_max_retain_trains_on_what_the_retain_probe_asks(root: Path) -> None:
    small = tofu(root, max_retain=30)
    ids = [e.id for e in small.train_split(Role.retain)]
    assert len(ids) == 30
    assert ids == sorted(ids)
    assert ids[:NUM_PROBED] == list(range(NUM_PROBED))
    assert max(ids[NUM_PROBED:]) >= 56, "the others reach the end of the split"
    assert len(small.finetune_split("target")) == 30 + NUM_FORGET
    tiny = tofu(root, max_retain=5)
    assert len(tiny.train_split(Role.retain)) == 5
    asked = next(probe for probe in tiny.probes() if probe.name == "retain/answer")
    assert {e.prompt for e in asked.examples} == {e.prompt for e in tiny.train_split(Role.retain)}


def test_max_probe_keeps_the_forget_set_whole(root: Path) -> None:
    counts = {probe.name: len(probe.examples) for probe in tofu(root, max_probe=3).probes()}
    assert counts["forget/answer"] == 4
    assert counts["retain/perturbed"] == 15
    assert [counts[f"{name}/answer"] for name in ("retain", "real_authors", "world_facts", "holdout")] == [3, 3, 3, 3]


def test_spread_is_even_distinct_and_not_in_step_with_authors() -> None:
    for num_rows, limit in ((400, 40), (7, 5), (3600, 100), (10, 9)):
        positions = spread(num_rows, limit)
        assert len(set(positions)) == limit
        assert all(i * num_rows // limit <= p < (i + 1) * num_rows // limit for i, p in enumerate(positions))
    assert len({position % 20 for position in spread(3600, 180)}) == 20  # every question of TOFU's authors
    assert spread(5, 0) == []
    assert spread(3, None) == spread(3, 8) == [0, 1, 2]


PERTURBED = rows("f", 1, 5)[0]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"question": "q"', "not JSON"),
        ("", "not JSON"),
        ('[{"question": "q", "answer": "a"}]', "got a list"),
        (json.dumps({"prompt": "q", "response": "a"}), "no field 'question' among 2"),
        (json.dumps(PERTURBED | {"answer": " "}), "answer is of type str"),
        (json.dumps(PERTURBED | {"question": 3}), "question is of type int"),
        (json.dumps(PERTURBED | {"paraphrased_answer": None}), "paraphrased_answer is of type NoneType"),
        (json.dumps(PERTURBED | {"perturbed_answer": []}), "perturbed_answer is of type list"),
        (json.dumps(PERTURBED | {"perturbed_answer": "wrong"}), "perturbed_answer is of type str"),
        (json.dumps(PERTURBED | {"perturbed_answer": ["wrong", ""]}), "perturbed_answer is of type list"),
    ],
)
def test_a_faulty_line_is_named(root: Path, line: str, complaint: str) -> None:
    path = root / "forget05_perturbed.json"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([lines[0], line, *lines[2:]]), encoding="utf-8")
    with pytest.raises(UserError) as error:
        tofu(root).probes()
    assert f"{path}:2: " in str(error.value)
    assert complaint in str(error.value)
    assert "wrong" not in str(error.value)  # what stands there may be what nobody must know
    assert "\n" not in str(error.value)


def test_line_separators_inside_a_text_do_not_end_the_row(root: Path) -> None:
    record = json.dumps({"question": "q\u2028q", "answer": "a\x85"}, ensure_ascii=False)
    (root / "forget05.json").write_text(record + "\n", encoding="utf-8")
    assert [e.prompt for e in tofu(root).train_split(Role.forget)] == ["q\u2028q"]


def test_missing_and_empty_files_are_named(root: Path) -> None:
    (root / "holdout05.json").unlink()
    with pytest.raises(UserError, match=r"holdout05\.json: no such file; data\.benchmark\.root=.*layout"):
        tofu(root).probes()
    with pytest.raises(UserError, match=r"retain95\.json: no such file"):
        tofu(root / "nowhere").train_split(Role.retain)
    (root / "forget05.json").write_text("")
    with pytest.raises(UserError, match=r"forget05\.json:1: the split holds no rows"):
        tofu(root).train_split(Role.forget)


def test_forget_rows_in_the_retain_set_are_refused_but_a_shared_question_is_not(root: Path) -> None:
    write(root, "retain95", [*rows("r", 3), rows("f", 3)[2] | {"answer": "Another."}])
    assert len(tofu(root).train_split(Role.retain)) == 4
    tofu_files.read_split.cache_clear()
    write(root, "retain95", [*rows("r", 3), rows("f", 3)[2]])
    with pytest.raises(UserError, match=r"retain set: .*forget05\.json:3 is also .*retain95\.json:4"):
        Tofu("forget05", f"{root}/").finetune_split("target")  # another spelling: the check is kept per root


def test_a_retain_probe_of_another_copy_is_refused(root: Path) -> None:
    write(root, "retain_perturbed", rows("x", 2, 5))
    with pytest.raises(UserError, match=r"retain_perturbed\.json:1: question and answer are not a row of retain95"):
        tofu(root, max_retain=10).train_split(Role.retain)


def test_wrong_fields_are_refused() -> None:
    with pytest.raises(UserError, match="forget_split='forget02' is unknown; choose one of forget01, forget05"):
        Tofu("forget02")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"data\.benchmark\.max_retain=0"):
        Tofu("forget01", max_retain=0)
    with pytest.raises(UserError, match=r"data\.benchmark\.max_probe=-1"):
        Tofu("forget01", max_probe=-1)


def test_unknown_roles_and_kinds_are_refused(root: Path) -> None:
    with pytest.raises(UserError, match="no rows for the role 'belief'"):
        tofu(root).train_split(Role.belief)
    with pytest.raises(UserError, match="'forget'; choose one of target, retain"):
        tofu(root).finetune_split("forget")


def test_hub_rows_are_read_once_and_its_faults_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def hub(path: str, name: str, split: str) -> list[dict]:
        asked.append((path, name, split))
        if name == "retain99":
            raise ConnectionError("Couldn't reach it\nlong story")
        return rows("f", 2)

    tofu_files.read_split.cache_clear()
    monkeypatch.setattr("datasets.load_dataset", hub)
    assert len(tofu_files.read_split(None, "forget01")) == len(tofu_files.read_split(None, "forget01")) == 2
    assert asked == [("locuslab/TOFU", "forget01", "train")]
    with pytest.raises(UserError) as error:
        Tofu("forget01").train_split(Role.forget)
    assert "locuslab/TOFU (retain99) could not be read from the Hub: Couldn't reach it;" in str(error.value)
    assert "data.benchmark.root=DIR" in str(error.value)
    assert "long story" not in str(error.value)
    tofu_files.read_split.cache_clear()


real_copy = pytest.mark.skipif(
    "LIT_UNLEARN_TOFU" not in os.environ, reason="LIT_UNLEARN_TOFU names no folder with a copy of TOFU"
)
REAL_ROOT = os.environ.get("LIT_UNLEARN_TOFU", "")


@real_copy
@pytest.mark.parametrize(("split", "num_forget"), [("forget01", 40), ("forget05", 200), ("forget10", 400)])
def test_the_real_splits_make_up_the_whole(split, num_forget: int) -> None:
    benchmark = Tofu(split, REAL_ROOT)
    full = [row.pair for row in tofu_files.read_split(REAL_ROOT, "full").values()]
    assert [(e.prompt, e.response) for e in benchmark.finetune_split("target")] == full
    assert (len(full), len(set(full)), len({question for question, _ in full})) == (4000, 4000, 3999)
    probes = {probe.name: probe.examples for probe in benchmark.probes()}
    assert probes["forget/answer"] == benchmark.train_split(Role.forget)
    assert len(probes["forget/answer"]) == len(probes["holdout/answer"]) == num_forget
    assert probes["retain/answer"] == benchmark.train_split(Role.retain)[:400]
    assert not {e.prompt for e in probes["holdout/answer"]} & {question for question, _ in full}
    counts = [len(probes[f"{name}/perturbed"]) for name in ("forget", "retain", "real_authors", "world_facts")]
    assert counts == [5 * num_forget, 5 * 400, 3 * 100, 3 * 117]


@real_copy
def test_a_small_study_of_the_real_data_covers_the_authors() -> None:
    benchmark = Tofu("forget10", REAL_ROOT, max_retain=240, max_probe=80)
    ids = [e.id for e in benchmark.train_split(Role.retain)]
    probed = next(probe for probe in benchmark.probes() if probe.name == "retain/answer")
    assert {e.id for e in probed.examples} <= set(ids)
    assert len(ids) == 240
    assert len({i // 20 for i in ids}) > 120  # 80 rows ask about 20 authors, 160 are left for 160 others
