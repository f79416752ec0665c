"""A base in four bits: the layers of bitsandbytes, the adapters' gradients of a plain model, an export without it."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.errors import UserError
from lit_unlearn.memory.size import size_of
from lit_unlearn.models.adapters.lora import adapters_off, add_adapters, merged_weights
from lit_unlearn.models.adapters.nf4 import NF4Linear, check_nf4_installed, nf4_layers, quantize_base
from lit_unlearn.models.blocks import checkpoint_blocks
from lit_unlearn.models.rounding import round_weights
from lit_unlearn.models.settings import Checkpointing, LoraConfig
from lit_unlearn.objectives import OBJECTIVES
from lit_unlearn.recording.export.saved_model import Export, save_model
from lit_unlearn.training.optimizers import hold_weights
from lit_unlearn.types import LOGPS, Role, Term

NF4 = LoraConfig(rank=4, base="nf4", targets=["q_proj", "down_proj"])
TERMS = {"forget": Term(1.0, OBJECTIVES["grad_ascent"]())}


def quantized(model: PreTrainedModel) -> PreTrainedModel:
    """With adapters that add something."""
    quantize_base(model, NF4)
    torch.manual_seed(3)
    add_adapters(model, NF4)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    return model


def plain(model: PreTrainedModel) -> PreTrainedModel:
    """The same in float32: layers that hold what the four bits stand for."""
    twin = copy.deepcopy(model)
    for _, layer in nf4_layers(twin):
        layer.hold(layer.whole())
    return twin


def logps(model: PreTrainedModel, rows) -> Tensor:
    with torch.no_grad():
        return ScoringEngine(model.eval()).score({Role.forget: rows}, {Role.forget: LOGPS})[Role.forget].logps


def gradients(model: PreTrainedModel, rows) -> dict[str, Tensor]:
    model.zero_grad()
    ScoringEngine(model)({Role.forget: rows}, TERMS, {}).loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("low", [False, True], ids=["float32", "bf16"])
def test_a_layer_is_that_of_bitsandbytes(low: bool):
    torch.manual_seed(0)
    shape = (48, 96)
    layer, inputs = nn.Linear(*shape), torch.randn(7, shape[0])
    theirs = Linear4bit(*shape, compute_dtype=torch.bfloat16 if low else torch.float32, quant_type="nf4")
    theirs.weight = Params4bit(layer.weight.data.clone(), requires_grad=False, quant_type="nf4", module=theirs)  # type: ignore[call-arg]
    theirs.bias = copy.deepcopy(layer.bias)  # which it casts in place
    found = []
    for module in (theirs.to("cpu"), NF4Linear(layer)):
        read = inputs.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            output = module(read)
        output.float().square().sum().backward()
        found.append((output.float(), read.grad))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=2e-2 if low else 1e-6, atol=2e-2 if low else 1e-6)
    assert not torch.allclose(found[1][0], layer(inputs), atol=1e-2)  # four bits are few


def test_linear_layers_of_the_blocks_and_nothing_else(make_model):
    model = make_model(num_layers=2)
    size, before = size_of(model), {name: weight.clone() for name, weight in model.state_dict().items()}
    quantize_base(model, LoraConfig())
    assert not list(nf4_layers(model))
    quantize_base(model, NF4)
    names = {name for name, _ in nf4_layers(model)}
    assert names == {name.removesuffix(".weight") for name in before if "_proj" in name}
    kept = {name: weight for name, weight in model.state_dict().items() if name.rpartition(".")[0] not in names}
    assert kept.keys() == {name for name in before if "_proj" not in name}
    assert all(torch.equal(weight, before[name]) for name, weight in kept.items())
    held = [(layer.weight, layer.whole()) for _, layer in nf4_layers(model)]
    quantize_base(model, NF4)
    hold_weights(model, "adamw_8bit")
    for (_, layer), (weight, whole) in zip(nf4_layers(model), held, strict=True):
        assert layer.weight is weight
        assert torch.equal(layer.whole(), whole)
    now = size_of(model)
    assert (now.lora, now.hidden, now.largest) == (size.lora, size.hidden, size.largest)
    assert now.parameters == pytest.approx(size.parameters, rel=0.01)


@pytest.mark.parametrize("checkpointing", ["none", "full", "selective"])
def test_adapters_learn_as_beside_the_weights_it_stands_for(make_model, make_rows, checkpointing: Checkpointing):
    model = quantized(make_model(num_layers=2))
    expected, rows = plain(model).train(), make_rows()
    checkpoint_blocks(model, checkpointing)
    found, wanted = gradients(model.train(), rows), gradients(expected, rows)
    assert found.keys() == wanted.keys()
    assert all("lora_" in name for name in found)
    assert len(found) == 2 * 2 * 2
    assert all(torch.allclose(found[name], wanted[name], rtol=1e-4, atol=1e-6) for name in found)
    with adapters_off(model):
        start = logps(model, rows)
    fresh = make_model(num_layers=2)
    quantize_base(fresh, NF4)
    assert torch.equal(start, logps(fresh, rows))


def test_the_export_is_what_the_bits_stand_for_and_the_adapters(make_model, make_rows, tokenizer, tmp_path: Path):
    model, rows = quantized(make_model(vocabulary=len(tokenizer), num_layers=2)), make_rows()
    before, expected = {name: weight.clone() for name, weight in model.state_dict().items()}, logps(model, rows)
    layer = model.model.layers[1].mlp.down_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    merged = merged_weights(model)
    names = make_model(vocabulary=len(tokenizer), num_layers=2).state_dict().keys()
    assert merged.keys() == names
    folded = layer.base_layer.whole() + NF4.alpha / NF4.rank * b @ a
    assert torch.allclose(merged["model.layers.1.mlp.down_proj.weight"], folded, atol=1e-6)
    up = model.model.layers[1].mlp.up_proj.whole()  # quantized, without an adapter
    assert torch.equal(merged["model.layers.1.mlp.up_proj.weight"], up)
    save_model(model, tokenizer, tmp_path / "model")
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)  # type: ignore[misc]
    assert not any(report.values())
    assert torch.allclose(logps(loaded, rows), expected, atol=1e-4)
    assert torch.equal(logps(model, rows), expected)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_rounded_it_is_the_export(make_model, make_rows, tokenizer, tmp_path: Path):
    """And what is lost is counted from the quantized start: the bits themselves are no update."""
    model, rows = quantized(make_model(vocabulary=len(tokenizer), num_layers=2)), make_rows()
    exact = merged_weights(model)
    rounded = round_weights(model, torch.bfloat16, "merged")
    assert rounded is not None
    assert 0 < rounded.lost_norm < 0.1  # type: ignore[operator]
    assert 0.4 < rounded.compared_share < 0.6  # embedding, head and norms were read from no file
    layer = model.model.layers[0].self_attn.q_proj
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(layer.base_layer.weight, exact[name].to(torch.bfloat16))
    expected = logps(model, rows)
    save_model(model, tokenizer, tmp_path / "model", Export(torch.bfloat16))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert {weight.dtype for weight in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(logps(loaded.float(), rows), expected)


def test_faults_in_one_line(monkeypatch: pytest.MonkeyPatch):
    shape = GPT2Config(vocab_size=40, n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1)
    with pytest.raises(UserError, match=r"blocks of GPT2LMHeadModel have no torch\.nn\.Linear; set it to full"):
        quantize_base(GPT2LMHeadModel(shape), NF4)
    check_nf4_installed()
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"extra lora: pip install -e '\.\[lora\]'"):
        check_nf4_installed()
