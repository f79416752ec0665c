"""The exported dtype: what is evaluated last is what is exported, and what rounding undoes is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from lit_unlearn.models.adapters.lora import adapted_layers, add_adapters, added_weight
from lit_unlearn.models.files import StartFiles, stored_dtype
from lit_unlearn.models.load import load_pretrained
from lit_unlearn.models.rounding import Rounding, round_weights
from lit_unlearn.models.settings import LoraConfig, ModelConfig
from lit_unlearn.recording.export.saved_model import Export, save_model

BF16, UP = torch.bfloat16, "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def saved(make_model, tokenizer, tmp_path: Path) -> Path:
    """A model whose files are bf16."""
    make_model(vocabulary=len(tokenizer), num_layers=2).to(BF16).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def loaded(path: Path) -> PreTrainedModel:
    return load_pretrained(str(path), ModelConfig())[0].eval()


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(2, 20)[None]).logits


def test_the_dtype_of_the_files(saved: Path, make_model):
    assert stored_dtype(loaded(saved), False) == BF16
    assert stored_dtype(make_model(), False) == torch.float32
    config = saved / "config.json"
    config.write_text(config.read_text().replace('"dtype": "bfloat16",', ""))
    assert "dtype" not in config.read_text()
    assert stored_dtype(loaded(saved), False) == BF16


def test_small_updates_are_undone_and_large_ones_are_not(saved: Path, tokenizer):
    """bf16 keeps 8 bits: a step of 2^-10 of the weight is lost, one of 2^-4 is kept."""
    model = loaded(saved)
    start, up = weights(model), model.get_parameter(UP)
    with torch.no_grad():
        up[:8] *= 1 + 2**-10
        up[8:10] *= 1 + 2**-4
    moved, rounded = weights(model), round_weights(model, BF16, "merged")
    assert rounded is not None
    lost, update = moved[UP] - up, moved[UP] - start[UP]
    assert rounded.undone_share == pytest.approx(8 / 10)
    assert torch.equal(up[:8], start[UP][:8])
    assert rounded.lost_norm == pytest.approx((lost.norm() / update.norm()).item(), rel=1e-4)
    assert rounded.compared_share == 1
    assert str(rounded).startswith("rounded to bfloat16: 80.0 % of the changed weights are as at the start again; of")
    expected = logits(model)
    save_model(model, tokenizer, saved.parent / "model", Export(BF16))
    again: Any = AutoModelForCausalLM.from_pretrained(saved.parent / "model")
    assert {weight.dtype for weight in again.parameters()} == {BF16}
    assert torch.equal(logits(again.float()), expected)
    assert round_weights(again.to(BF16), BF16, "merged") is None


def test_a_start_that_is_in_no_file_is_said_to_be_unknown(make_model, saved: Path):
    model = make_model()
    rounded = round_weights(model, BF16, "merged")
    assert rounded == Rounding("bfloat16", None, None, 0.0)
    assert "is not known" in str(rounded)
    assert all(torch.equal(weight, weight.bfloat16().float()) for weight in model.parameters())
    model, file = loaded(saved), saved / "model.safetensors"
    files = load_file(file)
    size = files.pop(UP).numel()
    save_file(files, file, metadata={"format": "pt"})
    rounded = round_weights(model, BF16, "merged")
    assert rounded is not None
    assert rounded.compared_share == pytest.approx(1 - size / model.num_parameters())
    assert "could not be compared" in str(rounded)


def test_files_of_a_bare_body_and_in_parts_are_found(tmp_path: Path):
    shape = GPT2Config(vocab_size=60, n_positions=8, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1)
    model = GPT2LMHeadModel(shape)
    model.transformer.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    start = StartFiles(GPT2LMHeadModel.from_pretrained(tmp_path))
    for name, weight in model.named_parameters():
        found = start.tensor(name, weight.shape)
        assert found is not None
        assert torch.equal(found, weight)
    assert start.tensor("transformer.wte.weight", torch.Size([3])) is None


@pytest.fixture
def adapted(saved: Path) -> PreTrainedModel:
    pytest.importorskip("peft")
    model = loaded(saved)
    add_adapters(model, LoraConfig(rank=2, targets=["up_proj", "q_proj"]))
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            layer.lora_B["default"].weight.normal_(std=0.02)
    return model


def test_adapters_are_folded_before_rounding(adapted: PreTrainedModel, saved: Path, tokenizer):
    before, start = logits(adapted), load_file(saved / "model.safetensors")[UP].float()
    whole = start + added_weight(adapted_layers(adapted)[UP.removesuffix(".weight")])
    rounded = round_weights(adapted, BF16, "merged")
    expected = logits(adapted)
    assert not torch.equal(expected, before)
    assert torch.allclose(expected, before, atol=0.2)
    assert rounded is not None
    assert rounded.undone_share is not None
    assert 0 < rounded.undone_share < 0.9
    save_model(adapted, tokenizer, saved.parent / "model", Export(BF16))
    again = AutoModelForCausalLM.from_pretrained(saved.parent / "model")
    assert torch.equal(again.get_parameter(UP), whole.bfloat16())
    assert torch.equal(logits(again.float()), expected)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_adapters_alone_are_written_as_peft_does(adapted: PreTrainedModel, saved: Path, tokenizer, dtype: torch.dtype):
    from peft import PeftModel

    added = {name: added_weight(layer).clone() for name, layer in adapted_layers(adapted).items()}
    rounded = round_weights(adapted, dtype, "adapter")
    if dtype == BF16:
        assert rounded is not None
        update = sum(weight.square().sum() for weight in added.values())
        layers = adapted_layers(adapted)
        lost = sum((weight - added_weight(layers[name])).square().sum() for name, weight in added.items())
        assert rounded.lost_norm == pytest.approx((lost / update).sqrt().item(), rel=1e-3)  # type: ignore[union-attr]
        assert rounded.compared_share == 1
    else:
        assert rounded is None
    directory = saved.parent / "model"
    save_model(adapted, tokenizer, directory, Export(dtype, "adapter", (1, 7)))
    assert {path.name for path in directory.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not (directory / "model.safetensors").exists()
    kinds = {weight.dtype for weight in load_file(directory / "adapter_model.safetensors").values()}
    assert kinds == {dtype}
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32), directory)
    assert again.peft_config["default"].base_model_name_or_path == str(saved)
    assert torch.equal(logits(again.eval()), logits(adapted))


def test_generation_of_the_export_stops_where_ours_does(make_model, tokenizer, tmp_path: Path):
    model = make_model()
    save_model(model, tokenizer, tmp_path / "model", Export(stops=(7, 1, 9)))
    assert model.generation_config.eos_token_id == 1  # type: ignore[union-attr]
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert again.generation_config.eos_token_id == [1, 7, 9]
    ids = torch.arange(2, 9)[None]
    said = int(model(ids).logits[0, -1].argmax())
    save_model(model, tokenizer, tmp_path / "model", Export(stops=(said,)))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert again.generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :].tolist() == [said]
