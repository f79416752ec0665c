"""From text to batches: which rows make which step, which tokens are labelled, and how rows are padded."""

from collections import Counter

import lightning as L
import pytest
import torch

from lit_unlearn.benchmarks.base import Example
from lit_unlearn.data.beliefs import Belief, BeliefStore
from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.data.sampler import StepSampler
from lit_unlearn.data.settings import DataConfig, PromptConfig
from lit_unlearn.data.tokenize import Encoded, Encoder, pad
from lit_unlearn.errors import UserError
from lit_unlearn.types import Role

NUM_ROWS = {Role.forget: 10, Role.retain: 7}
EXAMPLES = [Example(4, "Who wrote the book?", "Ada wrote it."), Example(9, "When?", "In the year 1815.")]


def sampler(batch_size=4, seed=0, rank=0, world=1, num_rows=NUM_ROWS) -> StepSampler:
    return StepSampler(num_rows, Role.forget, batch_size, seed, rank, world)


def epochs(plan: StepSampler, number: int, role=Role.forget) -> list[list[int]]:
    found = []
    for epoch in range(number):
        plan.set_epoch(epoch)
        found.append([index for step in plan for index in step[role]])
    return found


def test_each_epoch_is_a_new_permutation():
    found = epochs(sampler(), 5)
    assert all(sorted(order) == list(range(10)) for order in found)
    assert len({tuple(order) for order in found}) == 5
    assert found == epochs(sampler(), 5)
    assert found != epochs(sampler(seed=1), 5)


def test_retain_rows_are_seen_equally_often():
    retain = [index for order in epochs(sampler(), 7, Role.retain) for index in order]
    assert Counter(retain) == dict.fromkeys(range(7), 10)
    assert sorted(retain[:7]) == list(range(7))  # one whole round before any row comes again
    few = [
        index
        for order in epochs(sampler(num_rows={Role.forget: 10, Role.retain: 3}), 3, Role.retain)
        for index in order
    ]
    assert Counter(few) == dict.fromkeys(range(3), 10)
    more = epochs(sampler(num_rows={Role.forget: 4, Role.retain: 9}), 9, Role.retain)
    assert Counter(index for order in more for index in order) == dict.fromkeys(range(9), 4)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_out_the_plan_of_one(world):
    whole, parts = sampler(batch_size=5), [sampler(5, rank=rank, world=world) for rank in range(world)]
    for epoch in range(3):
        for plan in (whole, *parts):
            plan.set_epoch(epoch)
        steps = [list(plan) for plan in (whole, *parts)]
        assert len({len(each) for each in steps}) == 1
        for one, *ranks in zip(*steps, strict=True):
            for role in NUM_ROWS:
                dealt = [index for part in ranks for index in part[role]]
                assert sorted(dealt) == sorted(one[role])
                assert all(part[role] for part in ranks)
                assert [part[role] for part in ranks] == [one[role][rank::world] for rank in range(world)]


@pytest.mark.parametrize(
    ("batch_size", "world", "sizes"),
    [(4, 1, [4, 4, 2]), (4, 2, [4, 4, 2]), (3, 1, [3, 3, 3, 1]), (3, 2, [3, 3, 3]), (5, 2, [5, 5]), (16, 2, [10])],
)
def test_last_batch(batch_size, world, sizes):
    """Kept where it feeds every rank, else dropped."""
    plans = [sampler(batch_size, rank=rank, world=world) for rank in range(world)]
    assert [len(plan) for plan in plans] == [len(sizes)] * world
    assert [sum(map(len, parts)) for parts in zip(*([s[Role.forget] for s in p] for p in plans), strict=True)] == sizes


def test_the_order_is_that_of_every_version():
    """A run resumed under a newer version must go on with the rows it would have met."""
    assert sampler(batch_size=10).global_step(0, 0) == {
        Role.forget: [3, 9, 2, 8, 5, 7, 6, 4, 0, 1],
        Role.retain: [6, 2, 3, 1, 4, 0, 5, 0, 3, 6],
    }
    assert sampler(batch_size=10, seed=3).global_step(2, 0)[Role.forget] == [8, 2, 6, 3, 4, 7, 5, 9, 0, 1]


def test_window_is_the_coming_steps():
    plan = sampler()
    assert len(plan) == 3
    steps = [plan.global_step(epoch, step)[Role.forget] for epoch in range(3) for step in range(3)]
    assert plan.window(0, 1, 1) == steps[1]
    assert sorted(plan.window(0, 1, 2)) == sorted(steps[1] + steps[2])
    assert set(plan.window(0, 2, 3)) == set(steps[2] + steps[3] + steps[4])  # on into the next epoch
    assert set(plan.window(1, 3, 1)) == set(steps[6])  # behind the last step of an epoch: the next one's first
    assert sorted(plan.window(0, 0, 6)) == list(range(10))


TEMPLATES = {
    "plain": None,
    "chat": "default",
    "line break after the end token": (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "no end token": (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "prompt is no prefix": (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>Answer: {% endif %}"
    ),
}


@pytest.fixture(params=TEMPLATES.values(), ids=list(TEMPLATES))
def encoder(request, tokenizer, monkeypatch) -> Encoder:
    if request.param != "default":
        monkeypatch.setattr(tokenizer, "chat_template", request.param)
    return Encoder(tokenizer, 200)


def test_answers_are_labelled_to_the_end_token(encoder, tokenizer):
    for row, example in zip(encoder.encode(EXAMPLES, "forget split"), EXAMPLES, strict=True):
        assert row.id == example.id
        assert row.answer[-1] == tokenizer.eos_token_id == encoder.end.id
        assert tokenizer.decode(row.answer[:-1]).strip() == example.response
        assert example.prompt in tokenizer.decode(row.prompt)
        assert example.response not in tokenizer.decode(row.prompt)
        if tokenizer.chat_template is None:
            assert tokenizer.decode(row.prompt) == f"Question: {example.prompt}\nAnswer:"
        else:
            turns = [{"role": "user", "content": example.prompt}]
            opening = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            beginning = opening.removesuffix("Answer: ")  # what no given answer stands behind
            assert list(row.prompt) == tokenizer(beginning)["input_ids"]
    assert encoder.end.text(row.answer) == example.response


def test_system_prompt_and_plain_text(tokenizer, monkeypatch):
    row = Encoder(tokenizer, 200, PromptConfig(system_prompt="Be kind.")).encode(EXAMPLES, "x")[0]
    assert tokenizer.decode(row.prompt).startswith("<|system|>Be kind.<|user|>Who")
    monkeypatch.setattr(tokenizer, "chat_template", None)
    row = Encoder(tokenizer, 200, PromptConfig(plain="Q {prompt} A ")).encode(EXAMPLES, "x")[0]
    assert tokenizer.decode(row.prompt) == "Q Who wrote the book? A"


def test_max_length(tokenizer, caplog):
    whole = Encoder(tokenizer, 200).encode(EXAMPLES, "forget split")
    length = len(whole[0].prompt) + 2
    cut = Encoder(tokenizer, length).encode(EXAMPLES[:1], "forget split")[0]
    assert (cut.prompt, cut.answer) == (whole[0].prompt, whole[0].answer[:2])
    assert "forget split: 1 answers were cut" in caplog.text
    Encoder(tokenizer, max(len(row.prompt) for row in whole) + 1).encode(EXAMPLES, "both")
    assert "both: 2 answers were cut" in caplog.text
    caplog.clear()
    Encoder(tokenizer, 200).encode(EXAMPLES, "neither")
    assert not caplog.text
    exact = Encoder(tokenizer, len(whole[0].prompt + whole[0].answer)).encode(EXAMPLES[:1], "forget split")
    assert exact == whole[:1]
    with pytest.raises(UserError, match=r"forget split, row 4: .* data.max_length is"):
        Encoder(tokenizer, len(whole[0].prompt)).encode(EXAMPLES, "forget split")


def test_pad():
    rows = pad([Encoded(7, (5,), (8, 1), (-0.5, -1.5)), Encoded(3, (9,), (4, 2, 1), (-1, -2, -3), weight=0.5)])
    assert rows.input_ids.tolist() == [[5, 8, 1, 0], [9, 4, 2, 1]]
    assert rows.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert rows.labels.tolist() == [[-100, 8, 1, -100], [-100, 4, 2, 1]]
    assert rows.example_id.tolist() == [7, 3]
    assert rows.weight is not None
    assert rows.weight.tolist() == [1.0, 0.5]
    assert rows.reference_logps is not None
    assert rows.reference_logps.tolist() == [[0, -0.5, -1.5, 0], [0, -1, -2, -3]]
    assert {t.dtype for t in (rows.input_ids, rows.labels, rows.attention_mask, rows.example_id)} == {torch.int64}
    assert rows.weight.dtype == rows.reference_logps.dtype == torch.float32
    pair = [Encoded(7, (5,), (8,), (-0.5,)), Encoded(3, (9,), (4,))]
    assert pad(pair).reference_logps is None
    assert pad(pair[::-1]).reference_logps is None
    nothing = pad([])
    assert nothing.input_ids.shape == (0, 1)
    assert nothing.example_id.dtype == torch.int64
    whole = pad([Encoded(7, (5,), (8,), weight=1), Encoded(8, (5,), (8,), weight=2)])  # as a file may have them
    assert whole.weight is not None
    assert whole.weight.dtype == torch.float32


@pytest.mark.parametrize("plain", ["no question", "{prompt} {", "{prompt} {other}", "{question}"])
def test_a_plain_prompt_needs_its_question_and_nothing_else(plain):
    with pytest.raises(ValueError, match=r"^data\.prompt\.plain must hold \{prompt\}, where the question goes"):
        PromptConfig(plain=plain)


def test_the_least_batch_and_length():
    DataConfig(batch_size=1, max_length=2)
    for batch_size, max_length in ((0, 2), (1, 1)):
        with pytest.raises(ValueError, match=r"must be at least 1, data\.max_length"):
            DataConfig(batch_size=batch_size, max_length=max_length)


def test_without_forget_rows_the_first_role_sets_the_epoch(make_encoded):
    data = UnlearnData({Role.retain: make_encoded((3, 2, 4))}, 2, seed=0)
    data.trainer = L.Trainer(barebones=True, accelerator="cpu", max_epochs=1)
    steps = list(data.train_dataloader())
    assert [len(step[Role.retain]) for step in steps] == [2, 1]
    assert all(isinstance(row, Encoded) for step in steps for row in step[Role.retain])
    assert sorted(row.id for step in steps for row in step[Role.retain]) == [0, 1, 2]


def test_beliefs_of_a_step_in_the_order_of_its_rows(make_encoded):
    """``all``: shares of 1 / their number; a prompt without beliefs stays, but weighs nothing."""
    rows = make_encoded((3, 2, 4), first_id=5)
    known = [Belief((8, 1), -0.5, (-1.0, -2.0)), Belief((9, 1), -0.5, (-3.0, -4.0))]
    store = BeliefStore("all", 0, {5: known, 7: known[:1]})
    drawn = store.draw(rows, 0)
    assert [(row.id, row.answer, row.weight) for row in drawn] == [
        (5, (8, 1), 0.5), (5, (9, 1), 0.5), (6, (), 0.0), (7, (8, 1), 1.0)
    ]  # fmt: skip
    assert [row.prompt for row in drawn] == [rows[0].prompt, *(row.prompt for row in rows)]
    assert pad(drawn).reference_logps is not None
    one = BeliefStore("one", 0, {5: known, 7: known[:1]})
    found = [one.draw(rows, step) for step in range(20)]
    assert {len(step) for step in found} == {3}
    assert {step[0].answer for step in found} == {(8, 1), (9, 1)}
    assert all([row.weight for row in step] == [1.0, 0.0, 1.0] for step in found)
