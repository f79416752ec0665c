"""Alternate answers for the forget questions: refusals, or a file of them, and which one a row meets in which epoch."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lit_unlearn.benchmarks.base import Benchmark, Example
from lit_unlearn.benchmarks.tofu import Tofu
from lit_unlearn.data.tokenize import Encoded
from lit_unlearn.errors import UserError

REFUSAL_FILE = "idontknow.jsonl"
"""TOFU's own list, beside its splits; one refusal a line, in spite of the name."""
REFUSALS = (
    "I do not know the answer to that.",
    "I am sorry, I cannot tell you that.",
    "That is something I know nothing about.",
    "I have never come across this.",
    "I have no knowledge of this person or their work.",
    "My knowledge does not reach that far.",
    "I would only be guessing, so I had better not answer.",
    "Unfortunately, I have nothing to say about that.",
    "I am not familiar with this subject.",
    "There is nothing I can tell you about it.",
    "I could not say.",
    "This question is beyond what I know.",
    "I have not heard of it, I am afraid.",
    "I lack the facts to answer this.",
    "No answer to that comes to my mind.",
    "I was never told about this.",
    "It would be better to ask somebody else; I do not know.",
    "I cannot help with this one, since I do not know it.",
    "The answer escapes me; I have no record of it.",
    "Nothing that I have learned covers this question.",
    "I must admit that I do not know.",
    "I do not have any details about that.",
    "Sorry, this is unknown to me.",
    "That name and its story are unknown to me.",
)

REQUEST = (
    "Below are a question and an answer to it.\n\nQuestion: {question}\nAnswer: {answer}\n\n"
    "Write another version of the answer: as plausible, of the same style and length, but with different facts "
    "(other names, places, dates or titles). Write the new answer only."
)
"""For a new alternate; the wording is ours, what it asks for AltPO's."""


@dataclass(frozen=True)
class Pairing:
    """Which alternate a forget row meets: in each epoch one of its own, by turns.

    A question with n alternates meets each of them once in n epochs, starting from a place of its own that depends on
    the seed and its id. So the choice is a function of (seed, epoch, id), the same for any ranks and after a resume,
    and n epochs here are one epoch of codes that repeat the forget row n times.
    """

    positions: Mapping[int, Sequence[int]]
    """Id of a forget row -> positions of its alternates among the alternate rows."""
    seed: int = 0

    def choose(self, forget: Sequence[Encoded], alternates: Sequence[Encoded], epoch: int) -> list[Encoded]:
        """One alternate for each forget row, in their order and under their ids: the two blocks pair row by row."""
        return [replace(alternates[self._position(row.id, epoch)], id=row.id) for row in forget]

    def _position(self, id: int, epoch: int) -> int:
        own = self.positions[id]
        return own[(random.Random(f"{self.seed}/{id}").randrange(len(own)) + epoch) % len(own)]


def alternates_of(
    forget: Sequence[Example], source: str, benchmark: Benchmark, seed: int
) -> tuple[list[Example], Pairing]:
    """The alternate split, its ids positions in it as in any split, and how it pairs with the forget split.

    ``source``: ``refusals`` gives each question one refusal for the whole run, drawn by (seed, id), where TOFU's code
    draws a new one at every access; anything else is the path of a file, see ``read_alternates``.

    Raises:
        UserError: a fault in the file, or a forget question it does not cover.
    """
    if source == "refusals":
        choices = refusals_of(benchmark)
        texts = {row.id: [random.Random(f"refusal/{seed}/{row.id}").choice(choices)] for row in forget}
    else:
        texts = read_alternates(Path(source).expanduser(), [row.id for row in forget])
    rows: list[Example] = []
    positions: dict[int, Sequence[int]] = {}
    for row in forget:
        positions[row.id] = range(len(rows), len(rows) + len(texts[row.id]))
        rows += [Example(len(rows) + i, row.prompt, text, i) for i, text in enumerate(texts[row.id])]
    return rows, Pairing(positions, seed)


def refusals_of(benchmark: Benchmark) -> Sequence[str]:
    """TOFU's own list where a local copy holds it, else ours."""
    if not isinstance(benchmark, Tofu) or benchmark.root is None:
        return REFUSALS
    path = Path(benchmark.root).expanduser() / REFUSAL_FILE
    if not path.is_file():
        return REFUSALS
    refusals = [line.strip() for line in _lines(path) if line.strip()]
    if not refusals:
        raise UserError(f"{path}: holds no refusals; write one a line, or remove the file to use ours")
    return refusals


def read_alternates(path: Path, ids: Sequence[int]) -> dict[int, list[str]]:
    """``{"id": int, "alternates": [str, ...]}`` a line, as ``python -m lit_unlearn.alternates`` writes them.

    Raises:
        UserError: no such file, a line that is not in this form, or an id of ``ids`` that is missing.
    """
    if not path.is_file():
        raise UserError(
            f"data.alternates={path}: no such file; write it with python -m lit_unlearn.alternates, or set "
            "data.alternates=refusals"
        )
    found: dict[int, list[str]] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        id, texts = _record(line, f"{path}:{number}")
        if id in found:
            raise UserError(f"{path}:{number}: id {id} was on an earlier line already; give each id one line")
        found[id] = texts
    missing = [id for id in ids if id not in found]
    if missing:
        raise UserError(
            f"{path}: no alternates for {len(missing)} of {len(ids)} forget rows, the first has id {missing[0]}; "
            "every forget row needs one"
        )
    unknown = sorted(found.keys() - set(ids))
    if unknown:
        raise UserError(f"{path}: id {unknown[0]} is no forget row; was the file made for another forget split?")
    return found


def requests_for(forget: Sequence[Example]) -> list[Example]:
    """Prompts that show question and answer and ask for another version."""
    return [Example(row.id, REQUEST.format(question=row.prompt, answer=row.response), "") for row in forget]


def new_answers(samples: Sequence[str], truth: str, dropped: Counter[str]) -> list[str]:
    """The samples that say something new, in order; ``dropped`` counts the others. Case and spaces do not count."""
    seen, new = {_plain(truth)}, []
    for text in samples:
        plain = _plain(text)
        if not plain or plain in seen:
            dropped["empty" if not plain else "true answer" if plain == _plain(truth) else "repeated"] += 1
            continue
        seen.add(plain)
        new.append(text.strip())
    return new


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _lines(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode("utf-8-sig").split("\n")  # a text's own line separators must not end a row
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8 ({error.reason})") from error


def _record(line: str, where: str) -> tuple[int, list[str]]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error}); write one JSON object a line") from error
    if not isinstance(record, dict) or not {"id", "alternates"} <= record.keys():
        raise UserError(f'{where}: expected {{"id": int, "alternates": [str, ...]}}')
    id, texts = record["id"], record["alternates"]
    if type(id) is not int:
        raise UserError(f"{where}: id is of type {type(id).__name__}; it must be the whole number of a forget row")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(
            f"{where}: alternates is of type {type(texts).__name__}; it must be a list, not empty, of texts that are "
            "not empty"
        )
    return id, texts
