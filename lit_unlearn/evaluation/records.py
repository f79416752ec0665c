"""Recorded answers on disk, one JSON-lines file per probe, and how answers to the same example meet."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote, unquote

from lit_unlearn.errors import UserError
from lit_unlearn.evaluation.base import Record, Records
from lit_unlearn.schemas import RECORDS, check_schema

COMPLETE = "complete"
"""File that is there once all of a directory's records are; it holds the number of their format."""


def write_records(directory: Path, records: Records) -> None:
    """Write each probe to ``<set>-<answer kind>.jsonl``, then ``complete``; a file is there whole or not at all.

    NaN and infinite log-probs of a diverged model are kept, as the tokens ``NaN`` and ``-Infinity`` of Python's json.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / COMPLETE).unlink(missing_ok=True)  # of the same questions asked before
    for probe, rows in records.items():
        _write(directory / _file_name(probe), (json.dumps(asdict(row)) + "\n" for row in rows))
    _write(directory / COMPLETE, [json.dumps({"schema": RECORDS}) + "\n"])


def are_complete(directory: Path) -> bool:
    return (directory / COMPLETE).is_file()


def read_records(directory: Path) -> Records:
    """Read what ``write_records`` wrote, now or in an earlier version.

    Raises:
        UserError: there are none, a line is no record, or a newer version wrote them.
    """
    paths = sorted(directory.glob("*.jsonl"))
    if not paths:
        raise UserError(f"no records in {directory}: expected files like forget-answer.jsonl; run the evaluation first")
    _check_schema(directory / COMPLETE)
    return {_probe_name(path): _read(path) for path in paths}


def pair_by_id(correct: Sequence[Record], wrong: Sequence[Record]) -> list[tuple[Record, list[Record]]]:
    """Each right answer with the wrong answers to the same example, in the order of the ids.

    They meet by id, never by position: records come from several ranks in any order.
    """
    wrong_of: defaultdict[int, list[Record]] = defaultdict(list)
    for record in wrong:
        wrong_of[record.id].append(record)
    correct_of = {record.id: record for record in correct}
    if len(correct_of) < len(correct):
        raise UserError(f"{len(correct) - len(correct_of)} of {len(correct)} right answers repeat an example id")
    if alone := sorted(correct_of.keys() ^ wrong_of.keys()):
        raise UserError(f"{len(alone)} examples lack a right or a wrong answer, the first has id {alone[0]}")
    return [(correct_of[example], wrong_of[example]) for example in sorted(correct_of)]


def _write(path: Path, lines: Iterable[str]) -> None:
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("w", encoding="utf-8") as file:
        file.writelines(lines)
    os.replace(unfinished, path)


def _check_schema(mark: Path) -> None:
    """Before there were numbers the mark was empty, or not there."""
    text = mark.read_bytes() if mark.is_file() else b""
    try:
        found = json.loads(text)["schema"] if text else None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{mark}: holds no schema number; the file is cut or was edited") from error
    check_schema(found, RECORDS, str(mark))


def _file_name(probe: str) -> str:
    # A dash of the name itself is escaped, so that every dash of the file name stands for a slash.
    return quote(probe, safe="/").replace("-", "%2D").replace("/", "-") + ".jsonl"


def _probe_name(path: Path) -> str:
    return unquote(path.stem.replace("-", "/"))


def _read(path: Path) -> list[Record]:
    with path.open("rb") as file:
        return [_parse(line, f"{path}:{number}") for number, line in enumerate(file, start=1)]


def _parse(line: bytes, where: str) -> Record:
    try:
        fields = json.loads(line)
        logps = tuple(float(logp) for logp in fields.pop("logps"))
        greedy = tuple(bool(hit) for hit in fields.pop("greedy"))
        record = Record(logps=logps, greedy=greedy, **fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{where}: not a record ({error}); the file is cut or was edited") from error
    if not logps or len(logps) != len(greedy):
        raise UserError(f"{where}: {len(logps)} log-probs, {len(greedy)} greedy marks; every token needs one of each")
    return record
