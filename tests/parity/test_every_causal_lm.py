"""Every class of causal LMs: loss, gradient and greedy answers of the plain forward, row by row, or refused by name."""

import random
import time

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging as library

from lit_unlearn import step_loss
from lit_unlearn.engine.trial import can_pack
from lit_unlearn.errors import UserError
from lit_unlearn.generation.generate import Prompt, generate
from tests.causal_lms import CANNOT_BE_BUILT, build, classes

library.set_verbosity_error()

FAST = ["LlamaForCausalLM", "GPT2LMHeadModel", "OPTForCausalLM", "CohereForCausalLM", "GraniteForCausalLM"]
FAST += ["Gemma2ForCausalLM", "Gemma3ForConditionalGeneration", "ApertusForCausalLM", "BloomForCausalLM"]
FAST += ["MambaForCausalLM", "FalconH1ForCausalLM", "RecurrentGemmaForCausalLM", "NemotronForCausalLM"]
FAST += ["Qwen3MoeForCausalLM", "ModernBertDecoderForCausalLM", "HrmTextForCausalLM"]
REFUSED: dict[str, str] = {
    "CpmAntForCausalLM": "depends on later tokens or on other rows",
    "ProphetNetForCausalLM": "its body and head cannot be run apart",
    "XLNetLMHeadModel": "depends on later tokens or on other rows",
}
"""Classes that cannot be scored rightly, and what is said of them."""
TRAINING_ONLY = {"ReformerModelWithLMHead"}
"""Classes that give no gradient in evaluation mode; dropout is 0."""
SECONDS = 15.0
"""A class may take this long, two models built and everything compared."""
EVERY = [
    pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
    for name in classes()
    if name not in CANNOT_BE_BUILT
]
PROMPT, ANSWER = (3, 7, 2), (5, 1, 4)
"""Tokens of three rows; they begin alike."""


_ids = random.Random("prompts").choices
PROMPTS = [Prompt(tuple(_ids(range(8, 89), k=length))) for length in (3, 6, 4, 6)]


def rows(seed: int) -> dict[str, Tensor]:
    """Three rows of different lengths, the last padded on the left, the others on the right."""
    draw, length = random.Random(seed), max(map(sum, zip(PROMPT, ANSWER, strict=True))) + 1
    begin = [draw.randrange(8, 89) for _ in range(2)]
    block = {name: torch.full((3, length), fill) for name, fill in (("input_ids", 0), ("labels", -100))}
    block["attention_mask"] = torch.zeros(3, length, dtype=torch.int64)
    for row, (prompt, answer) in enumerate(zip(PROMPT, ANSWER, strict=True)):
        ids = torch.tensor(begin + [draw.randrange(8, 89) for _ in range(prompt + answer - 2)])
        place = slice(length - len(ids), length) if row == 2 else slice(0, len(ids))
        block["input_ids"][row, place], block["attention_mask"][row, place] = ids, 1
        block["labels"][row, place] = torch.cat([torch.full((prompt,), -100), ids[prompt:]])
    return block


def plain_logps(model: PreTrainedModel, block: dict[str, Tensor]) -> list[Tensor]:
    """Of each row's answer tokens, the row alone and without padding."""
    found = []
    for ids, mask, labels in zip(block["input_ids"], block["attention_mask"], block["labels"], strict=True):
        ids, labels = ids[mask.bool()], labels[mask.bool()]
        logits = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None], use_cache=False).logits[0]
        logps = logits.float().log_softmax(-1)[:-1].gather(-1, ids[1:, None]).squeeze(-1)
        found.append(logps[labels[1:] != -100])
    return found


def plain_loss(policy: PreTrainedModel, reference: PreTrainedModel, batch: dict[str, dict[str, Tensor]]) -> Tensor:
    """NPO with beta = 0.1 on forget, the mean over tokens of the negative log-prob on retain."""
    with torch.no_grad():
        start = torch.stack([logps.sum() for logps in plain_logps(reference, batch["forget"])])
    now = torch.stack([logps.sum() for logps in plain_logps(policy, batch["forget"])])
    npo = -2 / 0.1 * torch.nn.functional.logsigmoid(-0.1 * (now - start))
    return npo.mean() - torch.cat(plain_logps(policy, batch["retain"])).mean()


TERMS = {
    "forget": {"objective": {"name": "npo", "beta": 0.1}},
    "retain": {"objective": {"name": "nll", "reduction": "token_mean"}},
}


@pytest.mark.parametrize("name", EVERY)
def test_loss_and_gradient_are_the_plain_forward_s(name, record_property):
    began = time.monotonic()
    policy, twin, reference = build(name), build(name), build(name, 1)
    if name in TRAINING_ONLY:
        policy.train()
        twin.train()
    batch = {"forget": rows(0), "retain": rows(1)}
    if name in REFUSED:
        with pytest.raises(UserError, match=f"^{name} cannot be scored rightly: .*{REFUSED[name]}"):
            step_loss(policy, reference, batch, TERMS)
        return
    step = step_loss(policy, reference, batch, TERMS)["loss"]
    step.backward()
    expected = plain_loss(twin, reference, batch)
    expected.backward()
    wanted = {name: weight.grad for name, weight in twin.named_parameters() if weight.grad is not None}
    found = {name: weight.grad for name, weight in policy.named_parameters() if weight.grad is not None}
    size = torch.stack([gradient.norm() for gradient in wanted.values()]).norm().item()
    error = max((found.get(key, 0) - wanted[key]).norm().item() for key in wanted) / size
    others = sum(float(found[key].norm()) for key in found.keys() - wanted.keys())
    record_property("layout", "packed" if can_pack(policy) else "padded")
    record_property("errors", (abs(step.item() / expected.item() - 1), error))
    assert size > 1e-3
    assert step.item() == pytest.approx(expected.item(), rel=1e-5)
    assert error < 1e-5
    assert others == 0
    assert time.monotonic() - began < SECONDS


@pytest.mark.parametrize("name", [*FAST, "BertLMHeadModel"])
def test_greedy_answers_are_the_library_s(name):
    model, twin = build(name), build(name)
    found = generate(model, PROMPTS, [1], 6, 4)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt.ids])
        options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": 1}
        own = twin.generate(ids, attention_mask=torch.ones_like(ids), **options)  # type: ignore[operator]
        assert answer == tuple(own[0, len(prompt.ids) :].tolist()), prompt
    assert len(set(found)) > 1


@pytest.mark.parametrize("name", ["RobertaForCausalLM", "RwkvForCausalLM", "DiffLlamaForCausalLM", *FAST])
def test_greedy_answers_are_the_likeliest_tokens_of_whole_rows(name):
    """Also of classes for which the library's generation counts positions otherwise, or loses the state."""
    model, twin = build(name), build(name)
    for prompt, answer in zip(PROMPTS, generate(model, PROMPTS, [1], 6, 4), strict=True):
        row = torch.tensor([[*prompt.ids, *answer]])
        logits = twin(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits[0]
        assert logits.argmax(-1)[len(prompt.ids) - 1 : -1].tolist() == list(answer)


def test_the_classes_are_those_of_this_transformers():
    names = set(classes())
    assert len(names) > 100
    assert names >= set(FAST)
    assert not REFUSED.keys() & CANNOT_BE_BUILT.keys()
