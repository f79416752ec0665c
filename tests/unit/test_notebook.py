"""One loss without a trainer: the reference is the frozen start in evaluation mode, whatever mode it comes in."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from lit_unlearn import step_loss
from lit_unlearn.errors import UserError

NPO = {"forget": {"weight": 1.0, "objective": {"name": "npo"}}}
KL = {"retain": {"weight": 1.0, "objective": {"name": "kl"}}}


def noisy(seed: int) -> GPT2LMHeadModel:
    """A model half of whose numbers are dropped in training mode."""
    drops: dict[str, Any] = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GPT2LMHeadModel(GPT2Config(vocab_size=160, n_embd=32, n_layer=2, n_head=4, **drops))


@pytest.fixture
def batch(make_rows) -> dict[str, dict[str, torch.Tensor]]:
    rows = {"forget": make_rows((5, 3)), "retain": make_rows((4, 6), seed=1)}
    names = ("input_ids", "attention_mask", "labels")
    return {role: {name: getattr(block, name) for name in names} for role, block in rows.items()}


@pytest.mark.parametrize("terms", [NPO, KL], ids=["log-probs", "distributions"])
def test_the_reference_is_scored_without_dropout(batch, terms):
    policy, reference = noisy(0).eval(), noisy(1).eval()
    expected = step_loss(policy, reference, batch, terms)["terms"]
    reference.train()
    reference.transformer.h[0].eval()  # a mode of one part is the caller's too
    modes = [module.training for module in reference.modules()]
    found = step_loss(policy, reference, batch, terms)["terms"]
    assert found == pytest.approx(expected, rel=1e-6)
    assert [module.training for module in reference.modules()] == modes
    assert len(set(modes)) == 2
    policy.train()
    assert step_loss(policy, reference, batch, terms)["terms"] != pytest.approx(expected, rel=1e-3)  # the caller's mode


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: batch.pop("forget"), "the terms read the roles forget, which the batch does not hold"),
        (lambda batch: batch.update(forgotten={}), "the batch has no role 'forgotten'; choose among forget, retain"),
        (lambda batch: batch["forget"].pop("labels"), "the batch's forget rows lack labels"),
    ],
)
def test_a_wrong_batch_is_told(policy, reference, batch, change, message):
    change(batch)
    with pytest.raises(UserError, match=message):
        step_loss(policy, reference, batch, NPO)


def test_a_reference_that_is_read_must_be_there(policy, batch):
    with pytest.raises(UserError, match="the terms read the reference on forget; give one"):
        step_loss(policy, None, batch, NPO)


@pytest.mark.filterwarnings("ignore")
def test_adapters_of_peft_learn(policy, reference, batch):
    """The loss of the model with its adapters folded in, and gradients of the adapters alone."""
    torch.manual_seed(0)
    wrapped = get_peft_model(
        copy.deepcopy(policy), LoraConfig(r=2, init_lora_weights=False, target_modules="all-linear")
    )  # type: ignore[arg-type]
    loss = step_loss(wrapped, reference, batch, NPO)["loss"]
    loss.backward()
    trained = {name for name, weight in wrapped.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert trained == {name for name, _ in wrapped.named_parameters() if "lora_" in name}
    folded = copy.deepcopy(wrapped).merge_and_unload()  # type: ignore[operator]
    assert loss.item() == pytest.approx(step_loss(folded, reference, batch, NPO)["loss"].item(), rel=1e-5)
    assert abs(loss.item() - step_loss(policy, reference, batch, NPO)["loss"].item()) > 1e-2


@pytest.mark.filterwarnings("ignore")
def test_what_is_no_plain_causal_lm_is_refused(policy, reference, batch):
    learned = get_peft_model(policy, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="a prompt that is learned"):
        step_loss(learned, reference, batch, NPO)
    with pytest.raises(UserError, match="Sequential is no causal LM"):
        step_loss(nn.Sequential(policy), reference, batch, NPO)
