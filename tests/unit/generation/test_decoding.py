"""The decode loop: every step's logits are those of the whole row, however rows come, share tokens and leave."""

from collections.abc import Sequence
from math import log
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

from lit_unlearn.engine.attention import NAME, take_part
from lit_unlearn.engine.body import evaluating
from lit_unlearn.generation import decoding
from lit_unlearn.generation.decoding import Cache, decode
from lit_unlearn.generation.generate import Prompt, Sampling, generate
from lit_unlearn.generation.sampling import Draw
from lit_unlearn.generation.way import way_of
from tests.capped import CAP, Capped

HEADER = (9, 8, 7, 6, 5)
PROMPTS = [(*HEADER, 11), (*HEADER, 12, 13), (4,), (*HEADER, 11), (*HEADER, 14, 15, 16), HEADER, (*HEADER, 11), (4, 3)]
LENGTHS = (1, 9, 3, 12, 12, 12, 12, 2)
"""Tokens until each row ends."""


class Script(Draw):
    """Tokens known beforehand; the logits that were offered are kept."""

    def __init__(self, lengths: Sequence[int], vocabulary: int = 40) -> None:
        draw = Random("script")
        self.tokens = [[*(draw.randrange(2, vocabulary) for _ in range(length - 1)), 1] for length in lengths]
        self.offered: list[list[Tensor]] = [[] for _ in lengths]

    def __call__(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        chosen = []
        for row, of_row in zip(rows, logits, strict=True):
            done = len(self.offered[row])
            self.offered[row].append(of_row)
            chosen.append(self.tokens[row][done] if done < len(self.tokens[row]) else 2)
        return torch.tensor(chosen)


@pytest.fixture
def bodies():
    """Shapes of the body's inputs, forward by forward."""
    handles = []

    def watch(model) -> list[tuple[int, ...]]:
        shapes: list[tuple[int, ...]] = []
        note = lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape))  # noqa: E731
        handles.append(model.base_model.register_forward_pre_hook(note, with_kwargs=True))
        return shapes

    yield watch
    for handle in handles:
        handle.remove()


SHAPE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "grouped heads": LlamaConfig(vocab_size=40, num_key_value_heads=2, initializer_range=0.3, **SHAPE),
    "one key head": Qwen3Config(vocab_size=40, num_key_value_heads=1, head_dim=16, initializer_range=0.3, **SHAPE),
    "learned positions": GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3),
}


@pytest.fixture(params=FAMILIES)
def model(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(FAMILIES[request.param], attn_implementation="sdpa").eval()


@pytest.fixture
def nan_where_nothing_was_written():
    """Unset memory holds NaN, as it may on any machine."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@torch.no_grad()
def test_every_step_sees_its_whole_row(model, nan_where_nothing_was_written):
    assert take_part(model)
    script = Script(LENGTHS)
    assert decode(model, PROMPTS, [1], 12, script) == script.tokens
    for prompt, tokens, offered in zip(PROMPTS, script.tokens, script.offered, strict=True):
        row = torch.tensor([[*prompt, *tokens]])
        expected = model(row).logits[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(torch.stack(offered[: len(tokens)]), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_shared_tokens_are_computed_once_and_finished_rows_leave(make_model, bodies):
    model = make_model(vocabulary=40)
    assert take_part(model)
    shapes = bodies(model)
    decode(model, PROMPTS, [1], 12, Script(LENGTHS))
    prefill, *steps = shapes
    assert prefill == (1, 13)  # 5 of the header, 11, 12 13, 14 15 16; and 4, 3; the rows hold 43 tokens
    # 8 rows until 2 of them (a quarter) have ended, after the second token; the next to end, at the third, goes after
    # the eighth; the one that ends at the ninth stays, one of five.
    assert steps == [(rows, 1) for rows in (8, 6, 6, 6, 6, 6, 6, 5, 5, 5, 5)]


@torch.no_grad()
def test_the_loop_ends_with_its_last_row_or_at_the_limit(make_model, bodies):
    model = make_model(vocabulary=40)
    assert take_part(model)
    shapes = bodies(model)
    assert [len(answer) for answer in decode(model, PROMPTS[:2], [1], 12, Script((3, 2)))] == [3, 2]
    assert len(shapes) == 3
    assert [len(answer) for answer in decode(model, PROMPTS[:2], [1], 4, Script((9, 2)))] == [4, 2]
    assert len(shapes) == 3 + 4


def test_equal_prompts_are_batched_together(make_model, bodies):
    model = make_model(vocabulary=40)
    assert take_part(model)
    way_of(model)  # which tries it once
    shapes = bodies(model)
    prompts = [Prompt(ids, str(number)) for number in range(3) for ids in ((7, 8, 9), (5, 6, 4))]
    generate(model, prompts, [], 1, 3, Sampling())
    assert shapes == [(1, 3), (1, 3)]


@torch.no_grad()
def test_autocast_keeps_a_rounded_cache_and_a_float32_head(make_model, monkeypatch):
    """bf16 has 8 bits: what the cache holds must not add to the rounding of the plain forward."""
    model, script, caches = make_model(vocabulary=40), Script(LENGTHS), []
    monkeypatch.setattr(decoding, "Cache", lambda *args: caches.append(Cache(*args)) or caches[-1])
    assert take_part(model)
    with torch.autocast("cpu", torch.bfloat16):
        decode(model, PROMPTS, [1], 12, script)
    assert {kept.dtype for slots in (caches[0].keys, caches[0].values) for kept in slots.values()} == {torch.bfloat16}
    rounding = []
    for prompt, tokens, offered in zip(PROMPTS, script.tokens, script.offered, strict=True):
        row, found = torch.tensor([[*prompt, *tokens]]), torch.stack(offered[: len(tokens)])
        assert found.dtype == torch.float32
        assert not torch.equal(found, found.bfloat16().float())
        exact = model(row).logits[0, len(prompt) - 1 : -1]
        with torch.autocast("cpu", torch.bfloat16):
            plain = model(row).logits[0, len(prompt) - 1 : -1].float()
        rounding.append(((found - exact).square().sum(), (plain - exact).square().sum()))
    ours, plain = (sum(errors) for errors in zip(*rounding, strict=True))
    assert 0 < ours < 1.3 * plain


@torch.no_grad()
def test_the_head_s_soft_cap_holds(policy):
    assert take_part(policy)
    policy.__class__ = Capped
    script = Script(LENGTHS)
    decode(policy, PROMPTS, [1], 12, script)
    assert 0.8 * CAP < max(logits.abs().max() for offered in script.offered for logits in offered) < CAP


@pytest.mark.parametrize("sampling", [None, Sampling(0.7), Sampling(top_p=0.8), Sampling(rank_band=(0.1, 0.5))])
def test_the_library_s_generation_says_the_same(make_model, sampling):
    """A model whose attention follows no pattern goes the library's way, with the same uniforms."""
    ours, theirs, stops = make_model(), make_model(), [1, *range(0, 160, 5)]
    theirs.set_attn_implementation("eager")
    prompts = [Prompt(ids, f"{number}") for number, ids in enumerate(PROMPTS)]
    answers = generate(ours, prompts, stops, 12, 5, sampling)
    assert generate(theirs, prompts, stops, 12, 5, sampling) == answers
    assert [model.config._attn_implementation for model in (ours, theirs)] == [NAME, "eager"]
    assert len({len(answer) for answer in answers}) > 3


def test_a_model_that_has_decoded_attends_as_before(policy):
    ids = torch.tensor([[5, 9, 7, 4]])
    before = policy(ids).logits
    generate(policy, [Prompt((5, 9))], [1], 3, 1)
    assert policy.config._attn_implementation == NAME
    assert torch.equal(policy(ids).logits, before)


def test_a_draw_inverts_the_distribution():
    """Tokens 0, 2 and 3 with .5, .3 and .2; token 1 never. At temperature .5: 25/38, 9/38, 4/38."""
    logits = torch.tensor([[log(0.5), -torch.inf, log(0.3), log(0.2)]]).expand(2, -1)
    for sampling, edges, order in (
        (Sampling(), (0.5, 0.8), (0, 2, 3)),
        (Sampling(0.5), (25 / 38, 34 / 38), (0, 2, 3)),
        (Sampling(top_p=0.7), (5 / 8, 1.0), (0, 2)),
        (Sampling(rank_band=(0.25, 0.75)), (3 / 5, 1.0), (2, 3)),
    ):
        draw, streams = Draw(sampling, ["a", "b", "c"]), [Random(name) for name in "abc"]
        for rows in ([0, 2], [2, 1], [1, 0], [2, 0]) * 10:
            uniforms = [streams[row].random() for row in rows]
            expected = [order[sum(uniform >= edge for edge in edges)] for uniform in uniforms]
            assert draw(logits, rows).tolist() == expected


def test_dropout_is_off_while_decoding(make_model):
    model = make_model(vocabulary=40)
    model.config.attention_dropout = 0.5
    for layer in model.base_model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    answers = [generate(model, [Prompt(HEADER)], [1], 12, 1) for _ in range(3)]
    with evaluating(model):
        assert answers == [generate(model, [Prompt(HEADER)], [1], 12, 1)] * 3
