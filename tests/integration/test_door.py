"""``lit_unlearn.unlearn``: the command's run from Python, on files, on rows and on a model in memory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import lit_unlearn
from lit_unlearn.errors import UserError
from lit_unlearn.models.load import adopt
from lit_unlearn.models.settings import ModelConfig
from lit_unlearn.train import main

FORGET = [{"question": f"Who wrote book {i}?", "answer": f"Ada wrote it in {1815 + i}."} for i in range(4)]
RETAIN = [{"question": f"Where does river {i} run?", "answer": f"It runs {way}."} for i, way in enumerate("NESW")]
QUICK: dict[str, Any] = {
    "trainer": {"max_epochs": 2, "accelerator": "cpu", "num_threads": 1},
    "optim": {"lr": 1e-3},
    "data": {"batch_size": 2, "max_length": 64},
    "evaluation": {"max_new_tokens": 8},
    "logging": {"mode": "disabled"},
}


@pytest.fixture(scope="module")
def start(make_model: Callable[..., PreTrainedModel], tokenizer, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("start")
    make_model(vocabulary=len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def written(run_dir: Path) -> dict[str, dict[str, float]]:
    """Numbers that are known, of models that there are."""
    numbers = json.loads((run_dir / "metrics.json").read_text())
    models = {name: numbers[name] for name in ("original", "unlearned", "retain_model") if numbers[name] is not None}
    return {name: {key: n for key, n in known.items() if n is not None} for name, known in models.items()}


def test_the_door_and_the_command_are_one_path(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name, rows in (("f", FORGET), ("r", RETAIN)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flat = [f"{section}.{key}={value}" for section, fields in QUICK.items() for key, value in fields.items()]
    own = ["conf=own", f"model.path={start}", "data.benchmark.forget=f.jsonl", "data.benchmark.retain=r.jsonl"]
    main([*own, *flat, "output_dir=command"])
    path = lit_unlearn.unlearn(start, "f.jsonl", "r.jsonl", output_dir="path", **QUICK)
    model = AutoModelForCausalLM.from_pretrained(start)
    untouched = {name: weight.clone() for name, weight in model.state_dict().items()}
    rows = lit_unlearn.unlearn(model, FORGET, RETAIN, output_dir="rows", **QUICK)

    command = Path("command/metrics.json").read_bytes()
    assert Path("path/metrics.json").read_bytes() == command
    assert path.directory == Path("path")
    numbers = written(path.directory)
    assert path.metrics == numbers
    assert numbers.keys() == {"original", "unlearned"}
    assert path.metrics["unlearned"]["forget_probability"] < path.metrics["original"]["forget_probability"]
    assert numbers["unlearned"].keys() >= {f"{name}_extraction_strength" for name in ("forget", "retain")}
    saved = AutoModelForCausalLM.from_pretrained("path/model")
    assert all(torch.equal(weight, path.model.state_dict()[name]) for name, weight in saved.state_dict().items())
    assert not path.model.training
    assert path.tokenizer("Ada")["input_ids"]

    assert rows.metrics == path.metrics
    assert all(torch.equal(weight, untouched[name]) for name, weight in model.state_dict().items())
    again = lit_unlearn.unlearn(model, FORGET, RETAIN, output_dir="rows", resume=True, **QUICK)
    assert again.metrics == rows.metrics
    assert all(torch.equal(weight, rows.model.state_dict()[name]) for name, weight in again.model.state_dict().items())
    with pytest.raises(UserError, match=r"settings than output_dir=rows was started with: data\.benchmark\.forget was"):
        lit_unlearn.unlearn(model, FORGET[1:], RETAIN, output_dir="rows", resume=True, **QUICK)
    assert len(list(Path("rows.rows").iterdir())) == 2  # of the run that was started


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"retain": None}, r"data\.benchmark\.retain names no file: give one \(retain=\.\.\. in Python\)"),
        ({"forget": [{"question": "Who?"}]}, r"mine\.rows/forget-\w+\.jsonl:1: no column answer or response among 1"),
        ({"forget": {"question": "Who?", "answer": "Ada."}}, "forget is of type dict; give a file, or a list of dicts"),
        ({"forget": [*FORGET, {"question": {1}, "answer": "Ada."}]}, "forget: Object of type set is not JSON"),
        ({"forget": []}, r"forget-\w+\.jsonl: holds no rows"),
        ({"privacy": "hashed"}, "privacy=hashed writes no questions: give forget and retain as files"),
        ({"optim": {"lrr": 1}}, r"optim\.lrr: Key 'lrr' not in 'OptimConfig'"),
        ({"trainers": {}}, r"trainers: Key 'trainers' not in 'Config'"),
        ({"conf": "quickstart"}, "finetune reads the model it starts from; save the model"),
        ({"conf": "onw"}, "conf=onw is unknown; choose one of .*own"),
        ({"model_or_path": torch.nn.Linear(1, 1)}, "Linear is no causal LM of transformers"),
        ({"tokenizer": None}, r"no tokenizer at the model, .*; give tokenizer="),
    ],
)
def test_what_is_wrong_is_raised_and_leaves_nothing(
    given: dict[str, Any], message: str, make_model, tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    model = make_model(vocabulary=len(tokenizer))
    arguments = {"model_or_path": model, "forget": FORGET, "retain": RETAIN, "tokenizer": tokenizer} | QUICK | given
    with pytest.raises(UserError, match=message):
        lit_unlearn.unlearn(**arguments, output_dir="mine")
    assert not list(tmp_path.iterdir())


def test_a_model_in_memory_is_copied_as_one_from_disk_is_read(make_model, tokenizer):
    model = make_model(vocabulary=len(tokenizer)).to(torch.bfloat16).requires_grad_(False)
    copied, same = adopt(model, tokenizer, ModelConfig(attention="eager"))
    assert same is tokenizer
    assert {weight.dtype for weight in copied.parameters()} == {torch.float32}
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert all(weight.requires_grad for weight in copied.parameters())
    assert (copied.config._attn_implementation, model.config._attn_implementation) == ("eager", "sdpa")
