"""Weights that two processes read in pieces are those of the whole load, and no process holds more than its share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

SCRIPT = Path(__file__).parent / "streamed.py"
STRATEGIES = ["zero3", "fsdp2"]
MIB = 2**20


def write(path: Path, tokenizer: PreTrainedTokenizerBase, tied: bool, width: int, size: str) -> Path:
    """bf16 files of a vocabulary that two do not share evenly."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=163, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    LlamaForCausalLM(config).bfloat16().save_pretrained(path, max_shard_size=size)
    tokenizer.save_pretrained(path)
    return path


def cut(folder: Path, path: Path, strategy: str, compared: str) -> tuple[subprocess.CompletedProcess[str], Any]:
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, str(SCRIPT), str(path), strategy, compared]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    found = folder / "found.json"
    return done, json.loads(found.read_text()) if found.is_file() else done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "tied"), [("zero3", True), ("zero3", False), ("fsdp2", True), ("fsdp2", False)])
def test_every_weight_is_the_files(strategy, tied, tokenizer, tmp_path):
    path = write(tmp_path / "model", tokenizer, tied, 40, "20KB")
    assert len(list(path.glob("*.safetensors"))) > 3
    _, found = cut(tmp_path, path, strategy, "compared")
    assert found["equal"] == found["weights"] == (29 if tied else 30)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_weight_that_is_broken_is_refused_by_name(strategy, tokenizer, tmp_path):
    path = write(tmp_path / "model", tokenizer, False, 40, "20KB")
    name = "model.layers.1.mlp.up_proj.weight"
    file = next(file for file in path.glob("*.safetensors") if name in load_file(file))
    weights = load_file(file)
    weights[name][-1, -1] = float("nan")  # on the last rank
    save_file(weights, file, {"format": "pt"})
    done, found = cut(tmp_path, path, strategy, "alone")
    assert done.returncode
    assert isinstance(found, str)
    assert f"{file}: weight {name} holds NaN or infinite numbers" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_process_holds_more_than_its_share_and_a_file(strategy, tokenizer, tmp_path):
    path = write(tmp_path / "model", tokenizer, False, 2304, "40MB")
    files = [file.stat().st_size for file in path.glob("*.safetensors")]
    assert sum(files) > 300 * MIB  # of bf16: twice as much when loaded
    _, found = cut(tmp_path, path, strategy, "alone")
    assert found["held"] == pytest.approx(sum(files), rel=0.01)  # half of the weights, in float32
    assert (
        found["grown"] < found["held"] + max(files) + 256 * MIB
    )  # for what is read at once and what the libraries load
