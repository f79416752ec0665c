"""Records on disk: what is written is read, and a broken line is named."""

import math

import pytest

from lit_unlearn.errors import UserError
from lit_unlearn.evaluation.base import Record
from lit_unlearn.evaluation.records import read_records, write_records


def answer(example: int = 0, text: str | None = None) -> Record:
    return Record(example, 0, (-0.5, -0.25), (True, False), "a b", text)


def test_records_survive_the_disk(tmp_path):
    odd = Record(7, 3, (-0.1, math.nan, -math.inf), (True, False, True), 'two\nlines \u2028 "quoted" \u00e9', None)
    records = {"forget/answer": [odd, answer(text="")], "new-set/odd answer-kind": [answer()], "empty/answer": []}
    write_records(tmp_path / "records", records)
    assert (tmp_path / "records" / "forget-answer.jsonl").exists()
    assert not list(tmp_path.rglob("*.tmp"))
    back = read_records(tmp_path / "records")
    assert back.keys() == records.keys()
    assert repr(back["forget/answer"]) == repr(records["forget/answer"])  # repr: NaN equals itself
    assert back["new-set/odd answer-kind"] == records["new-set/odd answer-kind"]


@pytest.mark.parametrize(
    "line",
    [
        b'{"id": 1, "choi',
        b"",
        b"[1]",
        b"\xff",
        b'{"id": 1, "choice": 0, "greedy": [true], "target": ""}',
        b'{"id": 1, "choice": 0, "logps": [], "greedy": [], "target": ""}',
        b'{"id": 1, "choice": 0, "logps": [-1], "greedy": [true, true], "target": ""}',
        b'{"id": 1, "choice": 0, "logps": [-1], "greedy": [true], "target": "", "loss": 1}',
    ],
)
def test_malformed_line_is_named(tmp_path, line):
    write_records(tmp_path, {"forget/answer": [answer(), answer(1)]})
    path = tmp_path / "forget-answer.jsonl"
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(UserError, match=r"forget-answer\.jsonl:3: "):
        read_records(tmp_path)


def test_no_records_is_told(tmp_path):
    with pytest.raises(UserError, match="no records in"):
        read_records(tmp_path / "nowhere")
