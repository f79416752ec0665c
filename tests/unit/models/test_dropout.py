"""Dropout switched off: a model in training says what it says in evaluation, whichever way its class drops."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM, PretrainedConfig

from lit_unlearn.models.adapters.lora import add_adapters
from lit_unlearn.models.load import load_pretrained
from lit_unlearn.models.settings import LoraConfig, ModelConfig

GPT2 = GPT2Config(
    vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=4, attn_pdrop=0.5, embd_pdrop=0.5, resid_pdrop=0.5,
    bos_token_id=1, eos_token_id=1,
)  # fmt: skip
OPT = OPTConfig(
    vocab_size=300, max_position_embeddings=64, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
    word_embed_proj_dim=32, dropout=0.5, attention_dropout=0.5, layerdrop=0.5, bos_token_id=1, eos_token_id=1,
)  # fmt: skip


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("config", "kind"), [(GPT2, GPT2LMHeadModel), (OPT, OPTForCausalLM)])
def test_off_is_off_and_keep_keeps(config: PretrainedConfig, kind, attention: str, tokenizer, tmp_path: Path):
    kind(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ids = torch.arange(5, 25)[None]
    for dropout in ("keep", "none"):
        model, _ = load_pretrained(str(tmp_path), ModelConfig(dropout=dropout, attention=attention))  # type: ignore[arg-type]
        expected = model.eval()(ids).logits
        trained = [model.train()(ids).logits for _ in range(3)]
        assert all(torch.equal(logits, expected) for logits in trained) == (dropout == "none")
        dropped = [value for name, value in model.config.to_dict().items() if "drop" in name and value]
        assert bool(dropped) == (dropout == "keep")


def test_adapters_keep_their_own(tokenizer, tmp_path: Path):
    pytest.importorskip("peft")
    GPT2LMHeadModel(GPT2).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = load_pretrained(str(tmp_path), ModelConfig(dropout="none"))
    add_adapters(model, LoraConfig(rank=2, dropout=0.25))
    probabilities = {name: module.p for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    assert len(probabilities) > 8
    assert all(p == (0.25 if "lora_dropout" in name else 0) for name, p in probabilities.items())
