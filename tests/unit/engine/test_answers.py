"""Answers scored under a model: each distinct one once, in the order of the rows, however they are batched."""

import pytest
import torch

from lit_unlearn.data.tokenize import Encoded
from lit_unlearn.engine.answers import ScoredAnswer, score_answers
from lit_unlearn.engine.head import Head
from lit_unlearn.engine.scoring import ScoringEngine

PROMPT, OTHER = (9, 8, 7, 6, 5), (9, 8, 4)
ROWS = [
    Encoded(0, PROMPT, (20, 21, 22, 1)),
    Encoded(1, OTHER, (20, 21, 22, 1)),
    Encoded(2, PROMPT, (20, 30, 1)),
    Encoded(3, PROMPT, (20, 21, 22, 1), weight=3.0),
    Encoded(4, PROMPT, ()),
    Encoded(5, (*PROMPT, 20), (30, 1)),
    Encoded(6, OTHER, (40, 1)),
    Encoded(0, PROMPT, (20, 30, 1)),
]
DISTINCT = 4 + 4 + 3 + 0 + 2 + 2
"""Answer tokens of the rows that differ in prompt or answer."""


@pytest.fixture
def engine(make_model):
    return ScoringEngine(make_model(vocabulary=61))


def numbers(answers: list[ScoredAnswer]) -> list[float]:
    return [logp for answer in answers for logp in answer.logps]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_answers_are_those_of_a_plain_forward(batch_size, engine, make_model):
    plain = make_model(vocabulary=61)
    for row, found in zip(ROWS, score_answers(engine, ROWS, batch_size), strict=True):
        with torch.no_grad():
            logits = plain(torch.tensor([row.prompt + row.answer])).logits[0, len(row.prompt) - 1 : -1]
        logps, answer = logits.log_softmax(-1), torch.tensor(row.answer, dtype=torch.int64)
        assert len(found.logps) == len(found.greedy) == len(row.answer)
        expected = logps.gather(-1, answer[:, None]).squeeze(-1)
        torch.testing.assert_close(torch.tensor(found.logps), expected, rtol=1e-5, atol=1e-5)
        assert list(found.greedy) == (logps.argmax(-1) == answer).tolist()


def test_the_likeliest_token_is_greedy(engine, make_model):
    """The greedy continuation, and the same with one token changed."""
    ids, plain = list(PROMPT), make_model(vocabulary=61)
    with torch.no_grad():
        for _ in range(4):
            ids.append(int(plain(torch.tensor([ids])).logits[0, -1].argmax()))
    likely = tuple(ids[len(PROMPT) :])
    unlike = (*likely[:3], (likely[3] + 1) % 61)
    first, second = score_answers(engine, [Encoded(0, PROMPT, unlike), Encoded(1, PROMPT, likely)], 2)
    assert (first.greedy, second.greedy) == ((True, True, True, False), (True, True, True, True))
    assert first.logps[:3] == pytest.approx(second.logps[:3])


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_equal_answers_are_scored_once(batch_size, engine, monkeypatch):
    seen, call = [], Head.__call__
    monkeypatch.setattr(Head, "__call__", lambda head, hidden: seen.append(len(hidden)) or call(head, hidden))
    answers = score_answers(engine, ROWS, batch_size)
    assert sum(seen) == DISTINCT
    assert answers[0] == answers[3]
    assert answers[2] == answers[7]
    assert answers[0].logps != answers[1].logps


def test_answers_to_one_prompt_share_it(engine):
    """In batches of two: the equal prompts meet, whatever the order of the rows."""
    shapes = []
    note = lambda module, args, kwargs: shapes.append(kwargs["input_ids"].shape[1])  # noqa: E731
    engine.model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    prompts = (PROMPT, (4, *PROMPT))
    score_answers(engine, [Encoded(0, prompt, (number, 1)) for number in (20, 21) for prompt in prompts], 2)
    assert sorted(shapes) == [len(prompt) + 4 for prompt in prompts]


def test_order_and_batches_change_nothing(engine):
    expected = score_answers(engine, ROWS, 100)
    for batch_size in (1, 2, 3, 5):
        found = score_answers(engine, ROWS[::-1], batch_size)[::-1]
        assert numbers(found) == pytest.approx(numbers(expected), rel=1e-5, abs=1e-5)
        assert [answer.greedy for answer in found] == [answer.greedy for answer in expected]


def test_scoring_evaluates_and_gives_the_mode_back(engine):
    """Dropout would make two runs differ."""
    for block in engine.model.base_model.layers:
        block.self_attn.attention_dropout = 0.5
    engine.train()
    assert numbers(score_answers(engine, ROWS, 3)) == numbers(score_answers(engine, ROWS, 3))
    assert all(module.training for module in engine.modules())
    assert all(parameter.grad is None for parameter in engine.parameters())


def test_empty_answers_and_no_rows(engine):
    (answer,) = score_answers(engine, [Encoded(0, PROMPT, ())], 4)
    assert answer == ScoredAnswer((), ())
    assert answer.mean_logp == 0.0
    assert ScoredAnswer((-1.0, -2.0), (True, False)).mean_logp == -1.5
    assert score_answers(engine, [], 4) == []
