"""What is tried before a model is scored: wrong attention and wrong logits show, rounding does not."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from lit_unlearn.engine import trial
from lit_unlearn.engine.attention import NAME
from lit_unlearn.engine.body import decoder_blocks
from lit_unlearn.engine.packing import Packing
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.engine.trial import TOLERANCE, can_pack, differs
from lit_unlearn.errors import UserError
from tests.causal_lms import build

DTYPES = (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [1.0, 1.02])
def test_packed_attention_that_is_slightly_wrong_is_not_used(policy, monkeypatch, dtype, factor):
    """Of every position's values 2 % too much, which once passed for rounding; bf16 weights are tried in float32."""
    policy.to(dtype)
    before = [weight.data_ptr() for weight in policy.parameters()]
    attend = Packing.attend
    monkeypatch.setattr(Packing, "attend", lambda self, *args: factor * attend(self, *args))
    assert can_pack(policy) == (factor == 1)
    assert policy.config._attn_implementation == (NAME if factor == 1 else "sdpa")
    assert [weight.data_ptr() for weight in policy.parameters()] == before
    assert {weight.dtype for weight in policy.parameters()} == {dtype}


def test_differences_above_rounding(policy):
    logits = policy(torch.tensor([[5, 9, 7, 4]])).logits.detach()
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)) * logits.std()
    assert not differs(logits, logits + 3.0)  # no distribution changes
    assert not differs(logits, logits + 0.3 * TOLERANCE * noise)
    assert differs(logits, logits + 3 * TOLERANCE * noise)
    assert differs(logits, 1.01 * logits)
    one = logits.clone()
    one[0, 2] += 3 * TOLERANCE * noise[0, 2]
    assert differs(logits, one)  # at one position of four
    assert differs(logits, torch.full_like(logits, torch.nan))


class Positional(LlamaForCausalLM):
    """Scales its logits by the number of the token, which no head that sees kept positions alone can follow."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        assert output.logits is not None
        output.logits = output.logits * torch.arange(1, output.logits.shape[1] + 1)[:, None]
        return output


class Broken(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        raise RuntimeError("needs an image\nin this way")


def test_what_cannot_be_followed_is_refused_in_one_line(policy):
    policy.__class__ = Positional
    with pytest.raises(UserError, match=r"^Positional cannot be scored rightly: its logits are not a function of .*$"):
        ScoringEngine(policy)
    policy.__class__ = Broken
    with pytest.raises(UserError, match=r"own forward fails on plain tokens \(RuntimeError: needs an image\); choose"):
        ScoringEngine(policy)


def test_a_row_that_hangs_on_what_pads_it_is_refused(policy, monkeypatch):
    """A body that ignores its mask and sees later tokens."""
    forward = type(policy.model).forward

    def leaking(self, input_ids: Tensor, **kwargs):
        output = forward(self, input_ids=input_ids, **kwargs)
        output.last_hidden_state = output.last_hidden_state + self.embed_tokens(input_ids[:, -1:])
        return output

    monkeypatch.setattr(type(policy.model), "forward", leaking)
    with pytest.raises(UserError, match="depends on later tokens or on other rows"):
        can_pack(policy)


@pytest.mark.parametrize("more", [{"sliding_window": 4096}, {"chunk": 4096}])
def test_a_layer_that_asks_for_more_than_is_tried_is_not_packed(policy, more):
    """Windows beyond the rows tried, by any name."""
    hook = lambda module, args, kwargs: (args, kwargs | more)  # noqa: E731
    policy.model.layers[2].self_attn.register_forward_pre_hook(hook, with_kwargs=True)
    assert not can_pack(policy)
    assert policy.config._attn_implementation == "sdpa"


def test_a_model_is_tried_once_for_each_attention(policy, monkeypatch):
    policy.set_attn_implementation("eager")
    calls, tried = [], trial._tried
    monkeypatch.setattr(trial, "_tried", lambda *args: calls.append(args[1]) or tried(*args))
    assert [can_pack(policy), can_pack(policy)] == [False, False]
    assert calls == [False]
    policy.set_attn_implementation("sdpa")
    assert [can_pack(policy), can_pack(policy)] == [True, True]
    assert calls == [False, False, True]


@pytest.mark.parametrize("name", ["OPTForCausalLM", "Gemma3ForConditionalGeneration", "BartForCausalLM"])
def test_blocks_are_found_wherever_they_are(name):
    """The last one's output, normed where the model does, is the body's."""
    model, seen = build(name), []
    blocks = decoder_blocks(model)
    assert len(blocks) == 2
    for block in blocks:
        block.register_forward_hook(lambda module, args, output: seen.append(module))
    ids = torch.tensor([[9, 10, 11]])
    model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    assert seen == list(blocks)


def test_a_deep_copy_is_tried_as_it_is(policy):
    assert can_pack(copy.deepcopy(policy))
    assert policy.config._attn_implementation == "sdpa"
