"""TOFU's splits, from the Hub or from a folder in the Hub's layout; a fault names file and line and quotes no row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from lit_unlearn.benchmarks.tofu_rows import Row, Rows
from lit_unlearn.errors import UserError

HUB_ID = "locuslab/TOFU"


@cache
def read_split(root: str | None, split: str) -> Rows:
    """All rows of a split, read once per process; the mapping is shared, so do not change it.

    Raises:
        UserError: The Hub or the file cannot be read, or a row is not in TOFU's schema.
    """
    records = _hub_records(split) if root is None else _file_records(root, split)
    rows = {i: _row(record, split, where_is(root, split, i)) for i, record in enumerate(records)}
    if not rows:
        raise UserError(f"{where_is(root, split, 0)}: the split holds no rows")
    return rows


def where_is(root: str | None, split: str, position: int) -> str:
    """A row's place as the user can find it: ``file:line``, or split and row on the Hub, counted from 1."""
    return f"{HUB_ID}/{split}:{position + 1}" if root is None else f"{_path(root, split)}:{position + 1}"


def _path(root: str, split: str) -> Path:
    return Path(root).expanduser() / f"{split}.json"


def _hub_records(split: str) -> Iterable[object]:
    from datasets import load_dataset  # most of a second, which a wrong key would have to wait for

    try:
        return load_dataset(HUB_ID, split, split="train")
    except Exception as error:  # datasets, the Hub's client and its http client each raise families of their own
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{HUB_ID} ({split}) could not be read from the Hub: {cause}; data.benchmark.root=DIR reads a local copy"
        ) from error


def _file_records(root: str, split: str) -> Iterator[object]:
    path = _path(root, split)
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; data.benchmark.root={root} must be a folder in the layout of {HUB_ID} on the Hub: "
            f"{path.name} with one JSON object a line"
        )
    with path.open("rb") as lines:  # bytes: a text's own line separators must not end a row
        for position, line in enumerate(lines):
            try:
                yield json.loads(line)
            except ValueError as error:  # not JSON, or not UTF-8
                where = where_is(root, split, position)
                raise UserError(f"{where}: not JSON ({error}); write one JSON object a line") from error


def _row(record: object, split: str, where: str) -> Row:
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected one JSON object a line, got a {type(record).__name__}")
    about_authors = split.startswith(("forget", "retain"))
    perturbed = split.endswith("_perturbed")
    return Row(
        question=_text(record, "question", where),
        answer=_text(record, "answer", where),
        paraphrased_answer=_text(record, "paraphrased_answer", where) if perturbed and about_authors else "",
        perturbed_answer=_texts(record, "perturbed_answer", where) if perturbed else (),
    )


def _field(record: dict, name: str, where: str) -> object:
    if name not in record:
        raise UserError(f"{where}: no field '{name}' among {len(record)}; take the file as it is on {HUB_ID}")
    return record[name]


def _text(record: dict, name: str, where: str) -> str:
    value = _field(record, name, where)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {name} is of type {type(value).__name__}; it must be a text that is not empty")
    return value


def _texts(record: dict, name: str, where: str) -> tuple[str, ...]:
    values = _field(record, name, where)
    if not isinstance(values, list) or not values or not all(isinstance(v, str) and v.strip() for v in values):
        raise UserError(
            f"{where}: {name} is of type {type(values).__name__}; it must be a list, not empty, of texts that are not "
            "empty"
        )
    return tuple(values)
