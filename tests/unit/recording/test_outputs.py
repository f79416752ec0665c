"""The run directory: nothing is lost silently, files are whole, secrets stay out, a saved model loads again."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lit_unlearn.errors import UserError
from lit_unlearn.files import write_json, write_text
from lit_unlearn.recording.environment import HIDDEN, environment, without_secrets
from lit_unlearn.recording.export.saved_model import save_model
from lit_unlearn.recording.outputs import open_run

KEY = "0123456789abcdef" * 2


def a_run(path):
    (path / "checkpoints").mkdir(parents=True)
    for name in ["config.yaml", "environment.json", "checkpoints/last.ckpt"]:
        (path / name).write_text("x")
    return path


def opened(path, resume: bool = False, overwrite: bool = False) -> list[str]:
    """What an opened run directory holds, but for its lock."""
    with open_run(str(path), resume, overwrite) as run_dir:
        assert run_dir == path
        return [name for name in files(path) if name != ".lock"]


def files(path):
    return sorted(str(file.relative_to(path)) for file in path.rglob("*"))


def test_a_new_and_an_empty_directory_are_opened(tmp_path):
    for _ in range(2):
        assert opened(tmp_path / "deep" / "run") == []
        assert files(tmp_path) == ["deep", "deep/run"]


def test_a_used_directory_is_refused_with_the_three_ways_out(tmp_path):
    before = files(a_run(tmp_path / "run"))
    with pytest.raises(UserError, match=r"not empty.*another output_dir=.*resume=true.*overwrite=true"):
        opened(tmp_path / "run")
    assert files(tmp_path / "run") == before


def test_resume_needs_an_earlier_start_and_keeps_everything(tmp_path):
    before = files(a_run(tmp_path / "run"))
    assert opened(tmp_path / "run", resume=True) == before
    with pytest.raises(UserError, match=r"no run was started there"):
        opened(tmp_path / "absent", resume=True)
    assert not (tmp_path / "absent").exists()


def test_what_a_killed_run_left_half_written_is_swept_up(tmp_path):
    before = files(a_run(tmp_path / "run"))
    (tmp_path / "run" / "checkpoints" / ".step-00000004.ckpt.77.tmp").write_text("x")
    (tmp_path / "run" / ".metrics.json.77.tmp").write_text("x")
    assert opened(tmp_path / "run", resume=True) == before


def test_a_start_that_was_killed_before_it_was_written_down_is_started_again(tmp_path):
    for name in ("environment.json", ".config.yaml.77.tmp"):
        (tmp_path / name).write_text("{}")
    assert opened(tmp_path) == ["environment.json"]
    (tmp_path / "config.yaml").write_text("x")  # alone it might be anybody's
    (tmp_path / "environment.json").unlink()
    with pytest.raises(UserError, match="not empty"):
        opened(tmp_path)


def test_overwrite_empties_a_run_and_nothing_behind_its_links(tmp_path):
    run, elsewhere = a_run(tmp_path / "run"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "thesis.tex").write_text("x")
    (run / "link").symlink_to(elsewhere)
    assert opened(run, overwrite=True) == []
    assert files(run) == []
    assert files(elsewhere) == ["thesis.tex"]


def test_overwrite_never_removes_a_folder_that_is_not_a_run(tmp_path):
    (tmp_path / "config.yaml").write_text("x")
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"no environment\.json"):
        opened(tmp_path, overwrite=True)
    assert files(tmp_path) == ["config.yaml", "thesis.tex"]


def test_contradictions_and_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="choose one"):
        opened(tmp_path, resume=True, overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        opened(tmp_path / "file", overwrite=True)


def test_other_ranks_do_not_stumble_over_what_the_first_wrote(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with open_run(str(a_run(tmp_path / "run")), resume=False, overwrite=False) as run_dir:
        assert run_dir == tmp_path / "run"
        assert ".lock" not in files(run_dir)


def test_json_is_valid_sorted_and_exact(tmp_path):
    write_json(tmp_path / "a.json", {"b": [float("nan"), float("-inf"), 0.1 + 0.2], "a": {"x": (1, "\u00e9", None)}})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": {"x": [1, "\u00e9", None]},
        "b": [None, None, 0.1 + 0.2],
    }
    assert text.index('"a"') < text.index('"b"')


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "new \ud800")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert files(tmp_path) == ["a.txt"]


def test_environment_tells_versions_and_command_but_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", KEY)
    monkeypatch.setattr(
        sys, "argv", ["train", "wandb.api_key=abc", f"note=my {KEY}", "beliefs.max_new_tokens=8", "seed=1"]
    )
    write_json(tmp_path / "environment.json", environment())
    text = (tmp_path / "environment.json").read_text()
    told = json.loads(text)
    assert told["packages"]["torch"] == torch.__version__
    assert told["cpu"]["count"] >= 1
    assert told["command"] == ["train", f"wandb.api_key={HIDDEN}", HIDDEN, "beliefs.max_new_tokens=8", "seed=1"]
    assert KEY not in text


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("a={api_key: s3cret, n: {token: [s3cret], m: 3}}", "a={api_key: <hidden>, n: {token: <hidden>, m: 3}}"),
        ("a=[{b: {hf_token: s3cret}}]", "a=[{b: {hf_token: <hidden>}}]"),
        ('a={"password": "s3cret with blanks", "b": 1}', "a={password: <hidden>, b: 1}"),
        ("a={password: 5310}", "a={password: <hidden>}"),
        ("a='{api_key: s3cret}'", "a={api_key: <hidden>}"),
        ("a={api_key: s3cret", "a=<hidden>"),
        ("a={api_key: {value: s3cret}}", "a={api_key: <hidden>}"),
        ("beliefs={max_new_tokens: 8, num_samples: 2}", "beliefs={max_new_tokens: 8, num_samples: 2}"),
        ("terms.forget={weight:  .5}", "terms.forget={weight:  .5}"),
    ],
)  # fmt: skip
def test_a_secret_is_hidden_at_any_depth_of_an_argument(argument, told, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", argument])
    assert environment()["command"] == ["train", told]


def test_a_secret_is_hidden_at_any_depth_of_the_settings():
    settings = {"a": {"b": [{"api_key": "s3cret"}, "{token: s3cret}"], "pin": {"password": 5310}, "keys": 3}}
    told = {"a": {"b": [{"api_key": HIDDEN}, HIDDEN], "pin": {"password": HIDDEN}, "keys": 3}}
    assert without_secrets(settings) == told


def test_secrets_are_hidden_and_hyperparameters_are_not(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    config = {
        "wandb": {"api_key": "abc", "password": "b", "token": None, "urls": [f"https://{KEY}@host"]},
        "beliefs": {"max_new_tokens": 8, "reduction": "token_mean"},
        "tokenizer": "llama",
    }
    assert without_secrets(config) == {
        "wandb": {"api_key": HIDDEN, "password": HIDDEN, "token": None, "urls": [HIDDEN]},
        "beliefs": {"max_new_tokens": 8, "reduction": "token_mean"},
        "tokenizer": "llama",
    }


class NoTokenizer:
    def save_pretrained(self, directory):
        (directory / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_model_is_float32_and_loads_equal(tmp_path, tied):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    policy = LlamaForCausalLM(config).bfloat16()
    assert policy.generation_config is not None
    policy.generation_config.do_sample, policy.generation_config.temperature = False, 0.6  # as many hub models have it
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "stale.bin").write_text("x")

    save_model(policy, NoTokenizer(), tmp_path / "model")  # pyright: ignore[reportArgumentType]

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    saved = dict(policy.named_parameters())
    assert all(torch.equal(saved[name].float(), parameter) for name, parameter in loaded.named_parameters())
    assert files(tmp_path / "model") == ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    assert files(tmp_path)[0] == "model"
    assert not (tmp_path / "model.tmp").exists()
    assert policy.dtype == torch.bfloat16
    assert policy.generation_config.temperature == 0.6
