"""One loss of models that come with something around or inside them."""

import copy

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn

from lit_unlearn import step_loss
from lit_unlearn.errors import UserError

TERMS = {"forget": {"objective": {"name": "npo"}}}


@pytest.fixture
def batch(make_rows):
    rows = make_rows()
    return {"forget": {name: getattr(rows, name) for name in ("input_ids", "attention_mask", "labels")}}


@pytest.mark.filterwarnings("ignore")
def test_adapters_of_peft_learn(policy, reference, batch):
    """The loss of the model with its adapters folded in, and gradients of the adapters alone."""
    torch.manual_seed(0)
    wrapped = get_peft_model(
        copy.deepcopy(policy), LoraConfig(r=2, init_lora_weights=False, target_modules="all-linear")
    )  # type: ignore[arg-type]
    loss = step_loss(wrapped, reference, batch, TERMS)["loss"]
    loss.backward()
    trained = {name for name, weight in wrapped.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert trained == {name for name, _ in wrapped.named_parameters() if "lora_" in name}
    folded = copy.deepcopy(wrapped).merge_and_unload()  # type: ignore[operator]
    assert loss.item() == pytest.approx(step_loss(folded, reference, batch, TERMS)["loss"].item(), rel=1e-5)
    assert abs(loss.item() - step_loss(policy, reference, batch, TERMS)["loss"].item()) > 1e-2


@pytest.mark.filterwarnings("ignore")
def test_what_is_no_plain_causal_lm_is_refused(policy, reference, batch):
    learned = get_peft_model(policy, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="a prompt that is learned"):
        step_loss(learned, reference, batch, TERMS)
    with pytest.raises(UserError, match="Sequential is no causal LM"):
        step_loss(nn.Sequential(policy), reference, batch, TERMS)
