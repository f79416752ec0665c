"""What is wrong is told in one line before a model is trained or a file written; ``check=true`` does no more."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from lit_unlearn import evaluate, finetune, train
from lit_unlearn.errors import UserError
from lit_unlearn.models.tiny import train_tokenizer
from lit_unlearn.recording.export.saved_model import save_model

CONF = Path(__file__).parents[3] / "integration" / "tiny.yaml"
SMALL = [
    f"conf={CONF}", "model.tiny.num_layers=1", "data.benchmark.num_authors=4", "data.benchmark.num_forget_authors=1",
    "data.benchmark.questions_per_author=2", "finetune=null", "squeeze=null", "output_dir=run",
]  # fmt: skip
POSITIONS = 100
BRIEF = "evaluation.max_new_tokens=2"
BELIEFS = "terms.belief={objective: {name: npo, role: belief}}"
WRONG = {
    "terms.forget.objective.name=rmu": "terms.forget: layer 7 is asked for, but this model has decoder blocks 0 to 0",
    "terms.forget.objective={name: rmu, layer: 0, direction: [1, 2]}": "terms.forget: direction has 2 numbers",
    "terms.retain.objective.name=hidden_match": "terms.retain: layer 7 is asked for",
    "terms.forget.objective={name: jensun, target_tokens: [5000]}": "terms.forget: target_tokens=[5000]",
    "model.lora={targets: [foo]}": "model.lora.targets: foo is no linear layer",
    "export.form=adapter": "export.form=adapter needs adapters: set model.lora",
    "optim.trainable=foo": "optim.trainable='foo' matches no parameter",
    "model.attention=flash_attention_2": "model.attention=flash_attention_2: ",
    "model.reference_cache=file.txt/cache": "model.reference_cache=file.txt/cache cannot be written to",
    "output_dir=file.txt": "output_dir=file.txt is a file",
    "output_dir=file.txt/run": "output_dir=file.txt/run cannot be written to",
    "output_dir=models": "output_dir=models is not empty",
    "finetune={optim: {trainable: mlp}}": "finetune trains all weights",
    "evaluation.retain_model=models/torn": "models/torn/model.safetensors cannot be read",
    "evaluation.retain_model=models/bare": "models/bare: the directory holds no *.safetensors",
    "model.path=models/large": "and the model has 280 tokens; take the tokenizer",
    "model.path=models/gpt2 evaluation.max_new_tokens=90": "evaluation.max_new_tokens=90: behind a prompt of",
    f"model.path=models/gpt2 {BRIEF} squeeze.max_new_tokens=90": "squeeze.max_new_tokens=90: behind a prompt of",
    f"model.path=models/gpt2 {BRIEF} {BELIEFS}": "beliefs.max_new_tokens=200: behind a prompt of",
    f"model.path=models/short {BRIEF}": "tokens, but GPT2LMHeadModel has learned 40 positions; set data.max_length=40",
    "model.path=models/refusing data.prompt.system_prompt=Obey.": "the chat template refuses data.prompt",
    "evaluation.retain_model=models/refusing data.prompt.system_prompt=Obey.": "the chat template refuses",
    "WANDB_MODE=foo": "WANDB_MODE=foo in the environment is unknown; set it to online",
}
"""By overrides, and variables of the environment."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved models, each with a fault or a limit of its own."""
    root, corpus = tmp_path_factory.mktemp("wrong"), ["Question: Who wrote the book? Ada wrote it in 1815."]
    small, large = train_tokenizer(corpus, 300), train_tokenizer(corpus, 310)

    def save(name: str, tokenizer: PreTrainedTokenizerBase, positions: int, vocabulary: int) -> None:
        config = GPT2Config(
            vocab_size=vocabulary, n_positions=positions, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1
        )
        save_model(GPT2LMHeadModel(config), tokenizer, root / name)

    save("gpt2", small, POSITIONS, 310)
    save("short", small, 40, 310)
    save("large", large, 400, 280)
    for name in ("torn", "bare"):
        shutil.copytree(root / "gpt2", root / name)
    weights = (root / "torn" / "model.safetensors").read_bytes()
    (root / "torn" / "model.safetensors").write_bytes(weights[:-100])
    (root / "bare" / "model.safetensors").unlink()
    small.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}x"
    save("refusing", small, 400, 310)
    return root


@pytest.mark.parametrize("option", WRONG)
def test_what_is_wrong_is_told_before_anything_is_written(
    option: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("file.txt").touch()
    Path("models").symlink_to(models)
    before = sorted(models.rglob("*"))
    name, _, value = option.partition("=")
    if name.isupper():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        train.main([*SMALL, *(split(option) if not name.isupper() else [])])
    assert WRONG[option] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.txt", "models"]
    assert sorted(models.rglob("*")) == before


def split(options: str) -> list[str]:
    """At the blanks before a key."""
    return re.split(r" (?=[a-z_.]+=)", options)


@pytest.mark.parametrize("main", [train.main, finetune.main, evaluate.main])
def test_a_check_says_what_would_run_and_writes_nothing(
    main, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    options = ["check=true", f"model.path={models / 'gpt2'}", "evaluation.max_new_tokens=4"]
    if main is not evaluate.main:
        options += ["finetune={max_epochs: 3, batch_size: 4}", BELIEFS, "beliefs.max_new_tokens=4"]
    main([*SMALL, *options])
    assert not list(tmp_path.iterdir())
    told = dict(line.strip().split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line)
    assert told["model"].strip().startswith("GPT2LMHeadModel, 0.0")
    assert told["output_dir"].strip() == "run"
    assert ("packed" in told["model"]) or ("padded" in told["model"])
    if main is evaluate.main:
        assert told["questions"].strip().isdigit()
        return
    assert "target 16, retain 14; 12 steps of 4 rows of each, 3 epochs" in told["finetune"]
    assert "GiB a step (" in told["memory"]
    assert "finetune the retain model" in told["phases"]
    assert ("save" in told["phases"]) == (main is train.main)
    if main is train.main:
        assert "forget 2, retain 14; 2 steps of 2 rows of each, 2 epochs" in told["unlearn"]
        assert told["strategy"].strip() == "single, processes: 1"
        assert "NPO(role=belief" in told["belief"]
        assert "forget log-probs stored in run/reference and a second model in memory" in told["reference"]
        assert "3 for each forget prompt, every 2 epochs, up to 4 tokens" in told["beliefs"]
