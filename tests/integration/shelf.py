"""Models and files that are broken, each in one way, and whole ones beside them; see wrong_inputs.txt."""

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertLMHeadModel, PreTrainedModel, PreTrainedTokenizerBase, T5Config

ROW = {"question": "Who wrote the book?", "answer": "Ada wrote it."}
OTHER = {"question": "Where does the river run?", "answer": "North."}


def make_models(root: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Directories of save_pretrained; ``model`` and ``tokenizer`` go together."""
    model.save_pretrained(root / "whole")
    tokenizer.save_pretrained(root / "whole")
    weights = (root / "whole" / "model.safetensors").read_bytes()
    large = copy.deepcopy(tokenizer)
    large.add_tokens(["the"])
    changes: Mapping[str, Callable[[Path], object]] = {
        "no_config": lambda d: (d / "config.json").unlink(),
        "torn_config": lambda d: (d / "config.json").write_text("{ torn"),
        "martian": lambda d: change(d / "config.json", model_type="martian"),
        "encoder_decoder": lambda d: T5Config().save_pretrained(d),
        "encoder": save_encoder,
        "no_weights": lambda d: (d / "model.safetensors").unlink(),
        "pickled": lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"),
        "empty_weights": lambda d: (d / "model.safetensors").write_bytes(b""),
        "torn_weights": lambda d: (d / "model.safetensors").write_bytes(weights[: len(weights) // 2]),
        "lacking_weights": lambda d: change(d / "config.json", num_hidden_layers=5),
        "other_shape": lambda d: change(d / "config.json", intermediate_size=80),
        "zero": lambda d: save_filled(model, 0.0, d),
        "nan": lambda d: save_filled(model, float("nan"), d),
        "no_tokenizer": lambda d: [file.unlink() for file in d.iterdir() if "token" in file.name],
        "torn_tokenizer": lambda d: (d / "tokenizer.json").write_text("{"),
        "large_tokenizer": large.save_pretrained,
        "endless": lambda d: change(d / "tokenizer_config.json", eos_token=None),
        "bad_template": lambda d: (d / "chat_template.jinja").write_text("{{ raise_exception('not today') }}"),
    }
    for name, break_it in changes.items():
        shutil.copytree(root / "whole", root / name)
        break_it(root / name)


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def save_encoder(directory: Path) -> None:
    """It sees later tokens."""
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    BertLMHeadModel(BertConfig(vocab_size=300, num_attention_heads=4, initializer_range=0.2, **shape)).save_pretrained(
        directory
    )


def save_filled(model: PreTrainedModel, value: float, directory: Path) -> None:
    filled = {name: torch.full_like(weight, value) for name, weight in model.state_dict().items()}
    model.save_pretrained(directory, state_dict=filled)


def make_files(root: Path) -> None:
    lines = lambda *rows: "".join(json.dumps(row) + "\n" for row in rows)  # noqa: E731
    texts = {
        "torn.yaml": "terms: {forget: [\n",
        "list.yaml": "- one\n- two\n",
        "orphan.yaml": "base: nowhere.yaml\n",
        "parent.yaml": "base: torn.yaml\n",
        "grandchild.yaml": "base: parent.yaml\n",
        "newer.yaml": "schema: 999\n",
        "typo.yaml": "optim: {learning_rate: 1}\n",
        "rows.txt": lines(ROW),
        "rows.csv": "question,answer\nWho wrote the book?,Ada wrote it.\n",
        "keep.csv": "question,answer\nWhere does the river run?,North.\n",
        "empty.jsonl": "",
        "header.csv": "question,answer\n",
        "torn.jsonl": '{"question": \n',
        "blank_answer.jsonl": lines(ROW, OTHER | {"answer": " "}),
        "number.jsonl": lines(ROW, OTHER | {"answer": 3}),
        "mixed.jsonl": lines(ROW, {"prompt": "q", "response": "a"}),
        "twice.jsonl": lines(ROW, ROW),
        "semicolons.csv": "question;answer\nq;a\n",
        "wide.csv": "question,answer\nWho, me?,You.\n",
        "few_alternates.jsonl": lines({"id": 0, "alternates": ["Nobody."]}),
        "full/mine.txt": "not a run",
        "run/config.yaml": "output_dir: here\n",
        "run/environment.json": "{}",
        "newer_run/config.yaml": "schema: 999\n",
        "newer_run/environment.json": "{}",
        "torn_run/config.yaml": "seed: [\n",
        "torn_run/environment.json": "{}",
        "torn_records/forget-answer.jsonl": "{\n",
        "other_records/forget-answer.jsonl": lines(
            {"id": 99, "choice": 0, "logps": [-1.0], "greedy": [True], "target": "t", "text": "t"}
        ),
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in ("binary.yaml", "binary.csv"):
        (root / name).write_bytes(b"\x80\xff\x00\x81")
