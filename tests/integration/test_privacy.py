"""What is written where: every byte a real run leaves, searched for the forget rows and the beliefs."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from lit_unlearn.benchmarks.authors import Authors
from lit_unlearn.evaluation.metrics import METRICS
from lit_unlearn.evaluation.records import read_records
from lit_unlearn.evaluation.report import report
from lit_unlearn.types import Role
from tests.wandb_reader import read_run

ROOT, CONF = Path(__file__).parents[2], Path(__file__).parent / "tiny.yaml"
AUTHORS = {"num_authors": 6, "num_forget_authors": 2, "num_holdout_authors": 1, "questions_per_author": 4}
BENCHMARK = Authors(**AUTHORS, num_general=4)
"""The one of tiny.yaml."""
DRIVER = """
import json, sys
from lit_unlearn.callbacks.belief_sampler import BeliefSampler
from lit_unlearn.callbacks.squeeze_probe import SqueezeProbe
from lit_unlearn.command.console import start
from lit_unlearn.train import main

refresh, draw, told = BeliefSampler._refresh, SqueezeProbe._draw_bands, {"beliefs": [], "responses": [], "rows": []}

def refreshing(self, module, indices):
    refresh(self, module, indices)
    told["beliefs"] += [list(belief.tokens) for beliefs in self.store.beliefs.values() for belief in beliefs]
    told["rows"] = [list(ids) for row in self.data.rows["forget"] for ids in (row.prompt, row.answer)]

def drawing(self, engine, watched):
    bands = draw(self, engine, watched)
    told["responses"] += [list(row.answer) for rows in bands.values() for row in rows]
    return bands

BeliefSampler._refresh, SqueezeProbe._draw_bands = refreshing, drawing
notes = sys.argv.pop(1)
start(main)
json.dump(told, open(notes, "w"))
"""
"""The train command, which tells the test besides what was sampled."""
OPTIONS = [
    "terms.forget={weight: 0.5, objective: {name: bst}}",
    "terms.belief={weight: 0.5, objective: {name: npo, role: belief}}",
    "beliefs={num_samples: 2, max_new_tokens: 16, every_n_epochs: 1}",
    "squeeze.max_new_tokens=16",
    "model.tiny.vocab_size=1500",  # whole words of the corpus become entries of the vocabulary
    "evaluation.every_n_epochs=0",
    "finetune.max_epochs=30",
]


@dataclass
class Left:
    """What a run left behind, and what it may not have left."""

    base: Path
    printed: str
    secrets: dict[str, str]
    """Text -> what it is."""
    token_ids: list[list[int]]

    @property
    def run_dir(self) -> Path:
        return self.base / "run"

    @property
    def wandb_file(self) -> Path:
        return next((self.run_dir / "wandb").glob("offline-run-*/run-*.wandb"))


def train(base: Path, privacy: str) -> Left:
    home, notes = base / "home", base / "notes.json"
    for folder in ("tmp", "work"):
        (home / folder).mkdir(parents=True)
    inside = {"HOME": ".", "TMPDIR": "tmp", "HF_HOME": "hf", "MPLCONFIGDIR": "plots"}
    inside |= {"XDG_CACHE_HOME": ".cache", "XDG_CONFIG_HOME": ".config", "XDG_DATA_HOME": ".local/share"}
    inside |= {"WANDB_CACHE_DIR": "wandb/cache", "WANDB_CONFIG_DIR": "wandb/config", "WANDB_DATA_DIR": "wandb/data"}
    env = os.environ | {name: str(home / folder) for name, folder in inside.items()} | {"PYTHONPATH": str(ROOT)}
    arguments = [f"conf={CONF}", f"output_dir={base / 'run'}", f"privacy={privacy}", *OPTIONS]
    line = [sys.executable, "-c", DRIVER, str(notes), *arguments]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, env=env, cwd=home / "work")
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(notes.read_text())
    tokenizer = AutoTokenizer.from_pretrained(base / "run" / "model")
    sampled = {kind: [tokenizer.decode(ids, skip_special_tokens=True) for ids in told[kind]] for kind in told}
    secrets = {text.strip(): kind for kind, texts in sampled.items() for text in texts if len(text.strip()) >= 12}
    for probe in (probe for probe in BENCHMARK.probes() if probe.name.startswith("forget/")):
        secrets |= {text: probe.name for row in probe.examples for text in (row.prompt, row.response)}
    assert {"beliefs", "responses", "forget/answer", "forget/perturbed"} <= set(secrets.values())
    ids = [ids for kind in told for ids in told[kind] if len(ids) >= 3]
    return Left(base, done.stdout + done.stderr, secrets, ids)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Left:
    return train(tmp_path_factory.mktemp("local"), "local")


@pytest.fixture(scope="module")
def hashed(tmp_path_factory: pytest.TempPathFactory) -> Left:
    return train(tmp_path_factory.mktemp("hashed"), "hashed")


def spellings(text: str) -> set[bytes]:
    """As itself, inside JSON with and without ASCII escapes, inside JSON inside JSON, and as Python prints it."""
    once = {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], repr(text)[1:-1], text}
    twice = {json.dumps(spelled)[1:-1] for spelled in once}
    return {spelled.encode() for spelled in once | twice}


def found(secrets: dict[str, str], *places: Path) -> set[tuple[str, str]]:
    """(file, kind of secret) of every file below the places that holds one in any spelling."""
    wanted = {spelled: kind for text, kind in secrets.items() for spelled in spellings(text)}
    files = sorted(path for place in places for path in place.rglob("*") if path.is_file() and not path.is_symlink())
    assert files
    assert not [path for path in files if path.suffix in (".gz", ".zip", ".xz", ".zst")]  # which would hide them
    contents = {path: path.read_bytes() for path in files}
    return {(path.name, kind) for path, data in contents.items() for text, kind in wanted.items() if text in data}


def sequences(node: Any) -> Iterator[list[int]]:
    """Every run of whole numbers in a loaded checkpoint."""
    if isinstance(node, torch.Tensor):
        if not node.is_floating_point() and node.numel():
            yield node.flatten().tolist()
    elif isinstance(node, dict):
        yield from sequences(list(node.values()))
        yield from sequences(list(node))
    elif isinstance(node, list | tuple | set):
        numbers = [value for value in node if type(value) is int]
        if numbers:
            yield numbers
        for value in node:
            yield from sequences(value)


def token_ids_in_checkpoints(left: Left) -> int:
    """How many of the rows, beliefs and responses stand in some checkpoint as token ids."""
    paths = sorted(left.run_dir.rglob("*.ckpt"))
    assert paths
    held = {",".join(map(str, ids)) for path in paths for ids in sequences(torch.load(path, weights_only=True))}
    return sum(any(f",{','.join(map(str, ids))}," in f",{one}," for one in held) for ids in left.token_ids)


def distinctive_words() -> set[str]:
    """Words of the forget rows that no row of the retain model's training has."""

    def words(rows) -> set[str]:
        texts = " ".join(text for row in rows for text in (row.prompt, row.response))
        return {word for word in texts.replace("?", " ").replace(".", " ").replace(",", " ").split() if word.isalpha()}

    own = words(BENCHMARK.train_split(Role.forget)) - words(BENCHMARK.finetune_split("retain"))
    return {word for word in own if len(word) >= 6}


def test_local_text_stays_in_the_run_directory(local: Left):
    outside = found(local.secrets, local.base / "home", local.run_dir / "wandb")
    assert not outside
    assert not [text for text in local.secrets if text in local.printed]
    in_records = found(local.secrets, local.run_dir / "records")
    assert {kind for _, kind in in_records} >= {"forget/answer", "forget/perturbed"}  # so the search does find


def test_hashed_text_is_nowhere(hashed: Left):
    assert not found(hashed.secrets, hashed.run_dir, hashed.base / "home")
    assert not [text for text in hashed.secrets if text in hashed.printed]


def test_hashed_words_of_forget_rows_are_in_no_vocabulary(local: Left, hashed: Left):
    words = {word: "word" for word in distinctive_words()}
    assert len(words) >= 5
    assert ("tokenizer.json", "word") in found(words, local.run_dir)
    assert not found(words, hashed.run_dir, hashed.base / "home")


def test_hashed_checkpoints_hold_no_token_ids(local: Left, hashed: Left):
    assert token_ids_in_checkpoints(local) > 0
    assert token_ids_in_checkpoints(hashed) == 0
    packed = [np.array(ids, kind).tobytes() for ids in hashed.token_ids for kind in ("<i2", "<i4", "<i8")]
    contents = [path.read_bytes() for path in hashed.run_dir.rglob("*") if path.is_file()]
    assert not [ids for ids in packed for data in contents if ids in data]


@pytest.mark.parametrize("privacy", ["local", "hashed"])
def test_wandb_is_told_numbers_only(privacy: str, request: pytest.FixtureRequest):
    """Read back, since the file's own framing could cut a text in two."""
    left: Left = request.getfixturevalue(privacy)
    run = read_run(left.wandb_file)
    assert run.history
    assert run.config["privacy"] == privacy
    told = json.dumps([run.config, run.history]).encode()
    assert not [text for text in left.secrets if any(spelled in told for spelled in spellings(text))]


def test_every_number_comes_from_hashed_records(hashed: Left):
    metrics = json.loads((hashed.run_dir / "metrics.json").read_text())
    retain_model = read_records(hashed.run_dir / "records" / "retain_model")
    models = {name: numbers for name, numbers in metrics.items() if name != "schema"}
    assert models.keys() == {"original", "unlearned", "retain_model"}
    for name, numbers in models.items():
        records = read_records(hashed.run_dir / "records" / name)
        assert all((row.target, row.text) == (None, None) for rows in records.values() for row in rows)
        again = report(records, {metric: kind() for metric, kind in METRICS.items()}, retain_model)
        assert {key: again[key] for key in numbers} == numbers
    assert metrics["original"]["forget_rougeL_recall"] > 0.1
