"""Rows from files as people have them: every kind and quirk, and each fault with its place and no text."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lit_unlearn.benchmarks.file_rows import Columns, read_rows
from lit_unlearn.benchmarks.files import Files
from lit_unlearn.config.build import build
from lit_unlearn.errors import UserError
from lit_unlearn.types import Role

PAIRS = [("Who, me?", 'Yes,\n"you".'), ("Was\u2028it?", "\u00c9t\u00e9.")]
LINES = "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in PAIRS)
RAW = "".join(json.dumps({"prompt": q, "response": a}, ensure_ascii=False) + "\n\n" for q, a in PAIRS)
CSV = 'id,question,answer\r\n1,"Who, me?","Yes,\n""you""."\r\n\r\n2,Was\u2028it?,\u00c9t\u00e9.\r\n'


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte-order mark"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", LINES),
        ("a.jsonl", RAW),
        ("a.json", LINES),
        ("a.JSON", f"\n {json.dumps([json.loads(line) for line in LINES.splitlines()])}"),
        ("a.csv", CSV),
    ],
)
def test_the_same_rows_from_every_kind_of_file(tmp_path: Path, name: str, text: str, mark: str):
    (tmp_path / name).write_bytes((mark + text).encode())
    rows = read_rows(str(tmp_path / name), "forget", Columns())
    assert [(row.id, row.prompt, row.response) for row in rows] == [(i, *pair) for i, pair in enumerate(PAIRS)]
    assert [path.name for path in tmp_path.iterdir()] == [name]  # no cache beside it


def test_columns_by_name(tmp_path: Path):
    (tmp_path / "a.csv").write_text("question,wrong,truth,answer\nq,w,t,a\n")
    fields = {"name": "files", "forget": str(tmp_path / "a.csv"), "columns": {"response": "truth"}}
    (row,) = build(fields, {"files": Files}, "data.benchmark").train_split(Role.forget)
    assert (row.prompt, row.response) == ("q", "t")


ROW = '{"question": "secret q", "answer": "secret a"}\n'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", r"a\.jsonl: holds no rows; KEY needs at least one"),
        ("a.jsonl", ROW + "\n" + ROW, r"a\.jsonl:3: the same question and answer as .*a\.jsonl:1; remove"),
        ("a.jsonl", ROW + '{"question": "secret"', r"a\.jsonl:2: not JSON \(Expecting ',' delimiter\); write one JSON"),
        ("a.jsonl", ROW + '["secret"]', r"a\.jsonl:2: expected an object with a question and an answer, got a list"),
        (
            "a.jsonl",
            '{"ask": "secret", "answer": "a"}',
            r":1: no column question or prompt among 2; .*columns\.prompt=",
        ),
        (
            "a.jsonl",
            '{"question": "q", "answer": "a", "response": "a"}',
            r":1: both answer and response; say by .*NAME",
        ),
        ("a.jsonl", ROW + '{"question": "secret"}', r"a\.jsonl:2: no 'answer' among its 1 columns"),
        ("a.jsonl", ROW + '{"question": "q", "answer": 3}', r"a\.jsonl:2: answer is of type int; write a text"),
        ("a.jsonl", ROW + '{"question": "q", "answer": " "}', r"a\.jsonl:2: answer is empty; fill it in or remove"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl:1: not JSON \(RecursionError\)"),
        ("a.json", '[{"question": "q",\n secret}]', r"a\.json, line 2: not JSON \(.*\); write a list of objects"),
        ("a.json", '[{"question": "q", "answer": ""}]', r"a\.json, row 1: answer is empty"),
        ("a.csv", 'question,answer\n"a\nb",c\n\nsecret,\n', r"a\.csv:5: answer is empty"),
        ("a.csv", "question,answer\nsecret,b,c\n", r"a\.csv:2: 3 cells where the first line names 2 columns; put"),
        ("a.csv", 'question,answer\n"secret" q,b\n', r"a\.csv:2: not CSV .*double quotes"),
        ("a.csv", "question;answer\na;b\n", r"a\.csv:2: no column question or prompt among 1; say by"),
        ("a.csv", "answer,answer\na,b\n", r"a\.csv:1: two columns have the same name"),
        ("a.csv", "question,answer\n", r"a\.csv: holds no rows"),
        ("a.txt", ROW, r"a\.txt: unknown kind '\.txt'; give a file that ends in \.jsonl, \.json, \.csv"),
        ("b.csv", "", r"KEY=.*/a\.csv: no such file; give a file of one of the kinds \.jsonl"),
    ],
)
def test_a_fault_is_told_with_its_place_and_no_text(tmp_path: Path, name: str, text: str, message: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_rows(str(tmp_path / name.replace("b", "a")), "KEY", Columns())
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_not_utf_8(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(b"question,answer\nq,a\nq,\xe9t\xe9\n")
    with pytest.raises(UserError, match=r"a\.csv:3: not UTF-8 \(.*\); save the file as UTF-8"):
        read_rows(str(tmp_path / "a.csv"), "KEY", Columns())


@pytest.fixture
def forget(tmp_path: Path) -> str:
    (tmp_path / "forget.jsonl").write_text(LINES)
    return str(tmp_path / "forget.jsonl")


def test_without_rows_to_keep(forget: str):
    files = Files(forget)
    assert [probe.name for probe in files.probes()] == ["forget/answer"]
    assert len(files.finetune_split("target")) == 2
    with pytest.raises(UserError, match=r"data\.benchmark\.retain names no file: give one .*or set terms\.retain=null"):
        files.train_split(Role.retain)
    with pytest.raises(UserError, match=r"finetune makes a retain model"):
        files.finetune_split("retain")


def test_large_files_are_asked_in_part_and_trained_on_whole(forget: str, tmp_path: Path):
    (tmp_path / "keep.csv").write_text("question,answer\n" + "".join(f"q{i},a{i}\n" for i in range(300)))
    files = Files(forget, str(tmp_path / "keep.csv"))
    assert len(files.train_split(Role.retain)) == 300
    asked = {probe.name: probe.examples for probe in files.probes()}
    assert len(asked["retain/answer"]) == 100
    assert max(row.id for row in asked["retain/answer"]) > 290
    assert len(Files(forget, str(tmp_path / "keep.csv"), max_probe=None).probes()[1].examples) == 300
    with pytest.raises(UserError, match=r"max_probe=0: must be 1 or more"):
        Files(forget, max_probe=0)


@pytest.mark.parametrize("name", ["retain", "holdout"])
def test_a_row_to_forget_is_in_no_other_file(forget: str, tmp_path: Path, name: str):
    (tmp_path / "other.jsonl").write_text(RAW.split("\n")[0])
    with pytest.raises(UserError, match=rf"data\.benchmark\.{name}: row 1 is also row 1 of data\.benchmark\.forget"):
        replace(Files(forget), **{name: str(tmp_path / "other.jsonl")})
