"""A model without its weights is what the whole load gives, but for the weights, whose parts are those of its files."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lit_unlearn.errors import UserError
from lit_unlearn.models.adapters.lora import add_adapters
from lit_unlearn.models.load import load_pretrained
from lit_unlearn.models.settings import LoraConfig, ModelConfig
from lit_unlearn.models.streamed.empty import stand_in
from lit_unlearn.models.streamed.skeleton import is_skeleton
from lit_unlearn.models.streamed.source import opened_in_order, places, reads_back
from lit_unlearn.reference.store import model_digest

SMALL: dict[str, Any] = {"vocab_size": 163, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def llama(tied: bool) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL, intermediate_size=48, num_key_value_heads=2, tie_word_embeddings=tied))


def saved(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, size: str = "12KB") -> str:
    model.save_pretrained(path, max_shard_size=size)
    tokenizer.save_pretrained(path)
    return str(path)


def one_file(path: Path) -> Path:
    return sorted(path.glob("*.safetensors"))[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_left_in_its_files_is_what_would_be_loaded(tied, dtype, tokenizer, tmp_path):
    path = saved(llama(tied).to(dtype), tokenizer, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    whole, empty = (load_pretrained(path, ModelConfig(), streamed)[0] for streamed in (False, True))
    assert is_skeleton(empty)
    assert not is_skeleton(whole)
    assert empty.config.to_dict() == whole.config.to_dict()
    assert empty.training == whole.training
    assert empty.generation_config.to_dict() == whole.generation_config.to_dict()  # type: ignore[union-attr]
    for (name, one), (other_name, other) in zip(whole.named_buffers(), empty.named_buffers(), strict=True):
        assert name == other_name
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
    assert model_digest(empty) == model_digest(whole)
    weights, at = dict(whole.named_parameters(remove_duplicate=False)), places(empty)[0]
    assert at.keys() == weights.keys()
    assert reads_back(empty)
    for name, stored in opened_in_order(at):
        expected = weights[name].detach().flatten()
        for begin, end in ((0, len(expected)), (3, len(expected) - 5), (len(expected), len(expected))):
            assert torch.equal(stored.part(begin, end).float(), expected[begin:end]), name


def test_adapters_beside_no_weights_are_those_beside_weights(tokenizer, tmp_path):
    path = saved(llama(False), tokenizer, tmp_path)
    found = []
    for streamed in (False, True):
        model, _ = load_pretrained(path, ModelConfig(), streamed)
        torch.manual_seed(1)
        add_adapters(model, LoraConfig(rank=2))
        found.append({name: weight for name, weight in model.named_parameters() if weight.requires_grad})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(weight, found[1][name]) for name, weight in found[0].items())


def test_a_narrow_model_of_its_kind_stands_in(tokenizer, tmp_path):
    path = saved(llama(True), tokenizer, tmp_path)
    before = torch.get_rng_state()
    empty, _ = load_pretrained(path, ModelConfig(gradient_checkpointing="full"), True)
    actor = stand_in(empty, ModelConfig(gradient_checkpointing="full"))
    assert torch.equal(before, torch.get_rng_state())
    assert not is_skeleton(actor)
    assert actor.is_gradient_checkpointing
    assert empty.is_gradient_checkpointing
    assert len(actor.model.layers) == 2
    assert actor.config.vocab_size == 163
    assert actor.config._attn_implementation == empty.config._attn_implementation == "lit_unlearn"


def test_files_without_a_weight_are_refused_by_its_name(tokenizer, tmp_path):
    path = saved(llama(False), tokenizer, tmp_path)
    file = one_file(tmp_path)
    weights = load_file(file)
    del weights[min(weights)]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"the files lack 1 of the weights that its config.json asks for, "):
        load_pretrained(path, ModelConfig(), True)


def test_a_file_that_is_cut_is_refused_by_its_name(tokenizer, tmp_path):
    path = saved(llama(False), tokenizer, tmp_path)
    file = one_file(tmp_path)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=file.name):
        load_pretrained(path, ModelConfig(), True)


def test_what_the_library_fuses_or_ties_otherwise_is_loaded_whole(tokenizer, tmp_path, caplog):
    experts = MixtralConfig(
        **SMALL, intermediate_size=48, num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1
    )
    path = saved(MixtralForCausalLM(experts), tokenizer, tmp_path / "experts")
    tied = saved(llama(True), tokenizer, tmp_path / "tied", "1GB")
    file = one_file(tmp_path / "tied")
    weights = load_file(file)
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"] + 1}, file, {"format": "pt"})
    for where, reason in ((path, "is another tensor in the model"), (tied, "are tied and stand in the files apart")):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "lit_unlearn"):
            model, _ = load_pretrained(where, ModelConfig(), True)
        assert not is_skeleton(model)
        assert reason in caplog.text


def test_files_of_a_bare_body_and_a_transposed_model(tokenizer, tmp_path):
    """GPT-2: its products are written the other way round, and its body's files lack the body's name."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=163, n_embd=32, n_layer=2, n_head=2, n_positions=64))
    saved(model, tokenizer, tmp_path / "whole")
    path = saved(model.transformer, tokenizer, tmp_path / "body")
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    (tmp_path / "body" / "config.json").write_text(json.dumps(config))
    empty, _ = load_pretrained(path, ModelConfig(), True)
    assert is_skeleton(empty)
    weights = dict(model.named_parameters(remove_duplicate=False))
    for name, stored in opened_in_order(places(empty)[0]):
        assert torch.equal(stored.part(0, weights[name].numel()), weights[name].detach().flatten()), name
