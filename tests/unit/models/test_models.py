"""Loading models: float32 whatever is on disk, safetensors only, and faults in one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, CohereConfig, Gemma2Config, GraniteConfig

from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.errors import UserError
from lit_unlearn.models.load import check_path, load_model, load_pretrained, named_ends
from lit_unlearn.models.settings import ModelConfig, TinyConfig
from lit_unlearn.models.smollm2 import smollm2_directory
from lit_unlearn.models.tiny import train_tokenizer
from lit_unlearn.types import LOGPS, Role

SHAPE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def test_bf16_weights_become_float32_masters(make_model, tokenizer, tmp_path: Path):
    make_model(vocabulary=len(tokenizer)).to(torch.bfloat16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, loaded = load_pretrained(str(tmp_path), ModelConfig())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert loaded.chat_template == tokenizer.chat_template
    assert named_ends(model) == (1,)
    model.generation_config.eos_token_id = [1, 5]  # type: ignore[union-attr]
    assert named_ends(model) == (1, 5)


def test_a_name_beside_other_runs_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match="no such directory"):
        check_path("runs/typo", False)


def test_tiny_is_the_same_from_the_same_seed():
    config = ModelConfig(name="tiny", tiny=TinyConfig(vocab_size=300, hidden_size=16, num_layers=1, num_heads=2))
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(load_model(config, ["some text to learn from"])[0])
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_tiny_tokenizer_round_trips_any_text():
    tokenizer = train_tokenizer(["only ascii here"], 300)
    text = "Zo\u00eb wrote 'One' in 1999; \u4f60\u597d!"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


WIDE = SHAPE | {"vocab_size": 300, "num_key_value_heads": 2, "initializer_range": 0.2}
HEADS = {
    "a soft cap": Gemma2Config(final_logit_softcapping=0.5, head_dim=8, **WIDE),
    "a scale": CohereConfig(logit_scale=0.0625, **WIDE),
    "a divisor": GraniteConfig(logits_scaling=8.0, **WIDE),
}


@pytest.mark.parametrize("config", HEADS.values(), ids=list(HEADS))
def test_what_follows_the_output_matrix_is_applied(config, tokenizer, make_rows, tmp_path: Path):
    """Loaded at defaults; scoring the raw product would be silently wrong."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = load_pretrained(str(tmp_path), ModelConfig())
    rows = make_rows()
    found = ScoringEngine(model).score({Role.forget: rows}, {Role.forget: LOGPS})[Role.forget].logps
    model.eval()
    hidden = model.base_model(rows.input_ids, attention_mask=rows.attention_mask).last_hidden_state
    logits = model(rows.input_ids, attention_mask=rows.attention_mask).logits
    kept = rows.labels[:, 1:] != -100
    own, raw = (
        scores.log_softmax(-1)[:, :-1].gather(-1, rows.labels[:, 1:].clamp(min=0)[..., None]).squeeze(-1)[kept]
        for scores in (logits, model.lm_head(hidden))
    )
    assert torch.allclose(found, own, atol=1e-5)
    assert not torch.allclose(raw, own, atol=1e-2)


def test_a_class_without_sdpa_runs_with_eager_attention(tokenizer, tmp_path: Path, caplog):
    AutoModelForCausalLM.from_config(BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4)).save_pretrained(
        tmp_path
    )
    tokenizer.save_pretrained(tmp_path)
    with caplog.at_level("INFO"):
        model, _ = load_pretrained(str(tmp_path), ModelConfig())
    assert model.config._attn_implementation == "eager"
    assert "BloomForCausalLM has no sdpa attention: it runs with model.attention=eager" in caplog.text


def test_smollm2_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("lit_unlearn.models.smollm2.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the extra smollm: pip install -e '\.\[smollm\]'"):
        smollm2_directory()
    assert not list(tmp_path.iterdir())
