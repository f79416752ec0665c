"""Questions and answers from a file of the user's own; a fault names file and row and quotes no text.

Read by Python alone: ``datasets`` would leave a copy of every secret in its cache, and forgets on which line a row was.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from lit_unlearn.benchmarks.base import Example
from lit_unlearn.errors import UserError

Records = Iterator[tuple[str, object]]
"""Where a record stands, as the user can find it, and the record."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns of all files."""

    prompt: str | None = None
    """Null: ``question`` or ``prompt``, whichever the file has."""
    response: str | None = None
    """Null: ``answer`` or ``response``, whichever the file has."""


DEFAULTS = {"prompt": ("question", "prompt"), "response": ("answer", "response")}


def read_rows(file: str, key: str, columns: Columns) -> list[Example]:
    """The rows of a file, their ids counting from 0.

    Args:
        file: JSON lines (``.jsonl``), JSON lines or one list (``.json``), or CSV with a header (``.csv``); UTF-8, with
            or without a byte-order mark.
        key: the setting that names the file, for errors.

    Raises:
        UserError: the file cannot be read, holds no rows, or one of them lacks a text or stands there twice.
    """
    path = Path(file).expanduser()
    reader = _READERS.get(path.suffix.lower())
    if not path.is_file():
        raise UserError(f"{key}={file}: no such file; give a file of one of the kinds {', '.join(_READERS)}")
    if reader is None:
        raise UserError(f"{key}={file}: unknown kind {path.suffix!r}; give a file that ends in {', '.join(_READERS)}")
    rows: list[Example] = []
    places: dict[tuple[str, str], str] = {}
    names: dict[str, str] | None = None
    for where, record in reader(path):
        if not isinstance(record, dict):
            raise UserError(f"{where}: expected an object with a question and an answer, got a {type(record).__name__}")
        names = names or {role: _column(record, role, getattr(columns, role), where) for role in DEFAULTS}
        pair = _text(record, names["prompt"], where), _text(record, names["response"], where)
        if pair in places:
            raise UserError(f"{where}: the same question and answer as {places[pair]}; remove one of them")
        places[pair] = where
        rows.append(Example(len(rows), *pair))
    if not rows:
        raise UserError(f"{path}: holds no rows; {key} needs at least one question with its answer")
    return rows


def _column(record: Mapping[str, object], role: str, chosen: str | None, where: str) -> str:
    """The column that holds the role's text, seen on the first row."""
    candidates = DEFAULTS[role] if chosen is None else (chosen,)
    found = [name for name in candidates if name in record]
    if len(found) == 1:
        return found[0]
    fault = f"no column {' or '.join(candidates)} among {len(record)}" if not found else f"both {' and '.join(found)}"
    raise UserError(f"{where}: {fault}; say by data.benchmark.columns.{role}=NAME which column holds the {role}")


def _text(record: Mapping[str, object], name: str, where: str) -> str:
    if name not in record:
        raise UserError(f"{where}: no {name!r} among its {len(record)} columns; every row needs it")
    value = record[name]
    if not isinstance(value, str):
        raise UserError(f"{where}: {name} is of type {type(value).__name__}; write a text, in quotes")
    if not value.strip():
        raise UserError(f"{where}: {name} is empty; fill it in or remove the row")
    return value


def _content(path: Path) -> str:
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1  # pyright: ignore[reportPossiblyUnboundVariable]
        raise UserError(f"{path}:{line}: not UTF-8 ({error.reason}); save the file as UTF-8") from error


def _json_lines(path: Path) -> Records:
    for number, line in enumerate(_content(path).split("\n"), 1):  # a text's own line separators must not end a row
        if line.strip():
            yield f"{path}:{number}", _parsed(line, f"{path}:{number}", "write one JSON object a line")


def _json(path: Path) -> Records:
    """One list, or lines as in the Hub's layout."""
    content = _content(path)
    if not content.lstrip().startswith("["):
        yield from _json_lines(path)
        return
    for number, record in enumerate(_parsed(content, str(path), "write a list of objects"), 1):
        yield f"{path}, row {number}", record


def _parsed(text: str, where: str, advice: str):
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        place = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) and "\n" in text else ""
        raise UserError(f"{where}{place}: not JSON ({reason}); {advice}") from error


def _csv(path: Path) -> Records:
    lines = csv.reader(StringIO(_content(path), newline=""), strict=True)
    header, begin = None, 1
    try:
        for cells in lines:
            where, begin = f"{path}:{begin}", lines.line_num + 1  # a text in quotes may take several lines
            if not cells:
                continue
            if header is None:
                header = cells
                if len(set(header)) < len(header):
                    raise UserError(f"{where}: two columns have the same name; the first line names the columns")
                continue
            if len(cells) != len(header):
                raise UserError(
                    f"{where}: {len(cells)} cells where the first line names {len(header)} columns; put texts with "
                    "commas into double quotes"
                )
            yield where, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}:{begin}: not CSV ({error}); separate by commas, texts in double quotes") from error


_READERS: dict[str, Callable[[Path], Records]] = {".jsonl": _json_lines, ".json": _json, ".csv": _csv}
