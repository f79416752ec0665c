"""Synthetic rows with the lengths of TOFU or MUSE."""

from __future__ import annotations

import random

from lit_unlearn.data.tokenize import Encoded
from lit_unlearn.speed.settings import Lengths
from lit_unlearn.types import Role

TOFU_HEADER = 38
"""System prompt, date and user tag of Llama-3's chat template, the same in every row."""
MUSE_LENGTH = 2048
END = 1


def step_rows(lengths: Lengths, num_rows: int, vocab: int, seed: int) -> dict[Role, list[Encoded]]:
    """Forget and retain rows, and one belief a prompt: the forget row's prompt with another answer."""
    draw = random.Random(f"benchmark/{seed}")
    header = _ids(draw, _sizes(lengths, draw)[0], vocab)
    rows = {role: [_row(draw, lengths, header, vocab, i) for i in range(num_rows)] for role in _ROLES}
    rows[Role.belief] = [Encoded(row.id, row.prompt, _answer(draw, lengths, vocab)) for row in rows[Role.forget]]
    return rows


_ROLES = (Role.forget, Role.retain)


def question_rows(lengths: Lengths, num_questions: int, num_answers: int, vocab: int, seed: int) -> list[list[Encoded]]:
    """``num_answers`` rows for each question; they share its prompt."""
    draw = random.Random(f"questions/{seed}")
    header = _ids(draw, _sizes(lengths, draw)[0], vocab)
    questions = []
    for index in range(num_questions):
        first = _row(draw, lengths, header, vocab, index)
        others = [Encoded(index, first.prompt, _answer(draw, lengths, vocab)) for _ in range(num_answers - 1)]
        questions.append([first, *others])
    return questions


def _row(draw: random.Random, lengths: Lengths, header: tuple[int, ...], vocab: int, index: int) -> Encoded:
    question = _ids(draw, _sizes(lengths, draw)[1], vocab)
    return Encoded(index, header + question, _answer(draw, lengths, vocab))


def _answer(draw: random.Random, lengths: Lengths, vocab: int) -> tuple[int, ...]:
    return (*_ids(draw, _sizes(lengths, draw)[2] - 1, vocab), END)


def _ids(draw: random.Random, count: int, vocab: int) -> tuple[int, ...]:
    return tuple(draw.randrange(2, vocab) for _ in range(count))


def _sizes(lengths: Lengths, draw: random.Random) -> tuple[int, int, int]:
    """(header, question, answer with its end token).

    TOFU: questions of 15 to 20 tokens, answers of mean 40, 90th percentile 60, at most 96, as counted in the logs that
    come with ``locuslab/tofu``. MUSE: packed text, one start token and the rest labelled.
    """
    if lengths == "tofu":
        answer = round(draw.gammavariate(7, 40 / 7))
        return TOFU_HEADER, draw.randint(15, 20), min(max(answer, 8), 96)
    if lengths == "muse":
        return 1, 0, MUSE_LENGTH - 1
    header, question, answer = map(int, lengths)
    return header, question, answer
