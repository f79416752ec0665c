"""Adapters: off they are not there, folded in they are the model's own weights, and nothing else is trained."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.errors import UserError
from lit_unlearn.models.adapters.lora import (
    adapters_off,
    add_adapters,
    check_lora_installed,
    has_adapters,
    merged_weights,
)
from lit_unlearn.models.settings import LoraConfig
from lit_unlearn.objectives import OBJECTIVES
from lit_unlearn.recording.export.saved_model import save_model
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.training.optimizers import hold_weights
from lit_unlearn.training.settings import OptimConfig
from lit_unlearn.types import LOGPS, Role, Term
from tests.configs import load

TERMS = {"retain": Term(1.0, OBJECTIVES["nll"]())}


def tied(model: PreTrainedModel) -> PreTrainedModel:
    model.config.tie_word_embeddings = True
    model.tie_weights()
    return model


def gpt2() -> PreTrainedModel:
    """Its linear layers hold their weights transposed, and its embedding is tied."""
    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=160, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1)
    return GPT2LMHeadModel(shape).eval()


@pytest.fixture(params=["llama", "llama, tied", "gpt2"])
def model(request, make_model) -> PreTrainedModel:
    if request.param == "gpt2":
        return gpt2()
    return tied(make_model()) if request.param == "llama, tied" else make_model()


@pytest.fixture
def batch(make_rows):
    return {Role.forget: make_rows()}


@pytest.fixture
def train(fit, make_encoded):
    """Fit the adapters for a few steps; returns the losses."""

    def run(model: PreTrainedModel, name: str = "adamw", **options) -> list[float]:
        optim = OptimConfig(name=name, lr=1e-2, warmup_epochs=0, schedule="constant")  # type: ignore[arg-type]
        data = UnlearnData({Role.retain: make_encoded((5, 3, 9, 4))}, 4, seed=0)
        steps = fit(UnlearnModule(ScoringEngine(model), TERMS, optim), data, max_epochs=8, **options)
        model.eval()
        return [step["train/retain_loss"] for step in steps]

    return run


def logps(model: PreTrainedModel, batch) -> torch.Tensor:
    with torch.no_grad():
        return ScoringEngine(model).score(batch, {Role.forget: LOGPS})[Role.forget].logps


def head_of(model: PreTrainedModel) -> torch.nn.Parameter:
    return model.get_output_embeddings().weight  # type: ignore[union-attr, return-value]


def test_adapters_off_are_the_start_bit_for_bit(model, batch, train):
    start = logps(model, batch)
    assert not has_adapters(model)
    same = model
    add_adapters(model, LoraConfig(rank=4))
    assert same is model
    assert has_adapters(model)
    assert not head_of(model).requires_grad
    with adapters_off(model):
        assert torch.equal(logps(model, batch), start)
    losses = train(model)
    assert losses[-1] < losses[0] - 0.1
    assert not torch.allclose(logps(model, batch), start, atol=1e-2)
    with adapters_off(model):
        assert torch.equal(logps(model, batch), start)
    assert not head_of(model).requires_grad


def test_only_adapters_of_the_blocks_are_trained(model):
    before = {id(weight) for weight in model.parameters()}
    add_adapters(model, LoraConfig(rank=4))
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained
    assert all("lora_" in name and (".layers." in name or ".h." in name) for name in trained)
    assert all(not weight.requires_grad for weight in model.parameters() if id(weight) in before)
    layers = {name.rpartition(".lora_")[0] for name in trained}
    assert len(layers) == (8 if isinstance(model, GPT2LMHeadModel) else 4 * 7)


def test_targets_are_the_layers_named(make_model):
    model = make_model(num_layers=2)
    add_adapters(model, LoraConfig(rank=2, alpha=8, targets=["q_proj", "down_proj"]))
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    assert adapted == {f"model.layers.{i}.{name}" for i in (0, 1) for name in ("self_attn.q_proj", "mlp.down_proj")}
    assert model.model.layers[0].self_attn.q_proj.scaling == {"default": 4.0}


def test_one_update_is_low_rank_and_scaled(make_model):
    """W + alpha / rank * B A, in plain numbers."""
    model = make_model(num_layers=1)
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    add_adapters(model, LoraConfig(rank=2, alpha=8))
    layer = model.model.layers[0].mlp.up_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.nn.init.normal_(b)
    merged = merged_weights(model)
    assert merged.keys() == start.keys()
    expected = start["model.layers.0.mlp.up_proj.weight"] + 8 / 2 * b @ a
    assert torch.allclose(merged["model.layers.0.mlp.up_proj.weight"], expected, atol=1e-6)
    unmoved = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(merged[unmoved], start[unmoved])


def test_saved_model_needs_no_peft(model, batch, train, tokenizer, tmp_path: Path):
    add_adapters(model, LoraConfig(rank=4))
    train(model)
    expected = logps(model, batch)
    save_model(model, tokenizer, tmp_path / "model")
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)  # type: ignore[misc]
    assert not any(report.values())
    assert not has_adapters(loaded)
    assert torch.allclose(logps(loaded.eval(), batch), expected, atol=1e-5)
    assert has_adapters(model)  # saving has folded nothing into the model itself
    assert torch.equal(logps(model, batch), expected)


def test_a_fault_inside_puts_the_adapters_back_as_they_were(make_model, batch):
    model = make_model()
    add_adapters(model, LoraConfig(rank=4))
    frozen = next(weight for name, weight in model.named_parameters() if "layers.1" in name and "lora_A" in name)
    frozen.requires_grad_(False)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    before = {name: weight.requires_grad for name, weight in model.named_parameters()}
    scores = logps(model, batch)

    def failing() -> None:
        with adapters_off(model):
            assert not any(weight.requires_grad for weight in model.parameters())
            raise RuntimeError("the power went out")

    with pytest.raises(RuntimeError, match="the power"):
        failing()
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == before
    assert torch.equal(logps(model, batch), scores)


def test_adapters_off_between_steps_changes_no_step(make_model, batch, train, monkeypatch: pytest.MonkeyPatch):
    """Also where the weights move inside the backward, by hooks on the adapters."""
    ends, step = [], UnlearnModule.training_step

    def after_a_reference_forward(self: UnlearnModule, batch, batch_idx: int):
        with torch.no_grad(), adapters_off(self.engine.model):
            self.engine.model(batch[Role.retain].input_ids)
        return step(self, batch, batch_idx)

    other = after_a_reference_forward
    for name, used in (("adamw", step), ("adamw", other), ("adamw_in_backward", other)):
        monkeypatch.setattr(UnlearnModule, "training_step", used)
        model = make_model()
        torch.manual_seed(0)
        add_adapters(model, LoraConfig(rank=4))
        start = logps(model, batch)
        train(model, name)
        ends.append(logps(model, batch))
        assert not torch.equal(ends[-1], start)
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def test_beside_bf16_weights_the_adapters_are_float32(make_model, batch, train):
    model = make_model()
    hold_weights(model, "adamw_8bit")
    add_adapters(model, LoraConfig(rank=4))
    kinds = {weight.dtype for weight in model.parameters() if weight.requires_grad}
    assert kinds == {torch.float32}
    losses = train(model, precision="bf16-mixed")
    assert losses[-1] < 0.9 * losses[0]
    merged = merged_weights(model)
    assert merged["model.layers.0.mlp.up_proj.weight"].dtype == torch.float32


def test_faults_in_one_line(make_model, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"model\.lora\.targets: lm_head is no linear layer of the blocks; .*up_proj"):
        add_adapters(make_model(), LoraConfig(targets=["q_proj", "lm_head"]))
    with pytest.raises(UserError, match=r"model\.lora: rank=0 must be at least 1"):
        load(["conf=quickstart", "model.lora.rank=0"])
    assert load(["conf=quickstart", "model.lora.rank=4"]).model.lora == LoraConfig(rank=4)
    check_lora_installed()
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"needs the extra lora: pip install -e '\.\[lora\]'"):
        check_lora_installed()
