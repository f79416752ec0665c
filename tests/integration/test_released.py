"""Models of phases that are over are gone, with their gradients and moments, without a collection by chance."""

from __future__ import annotations

import gc
from pathlib import Path

import lightning as L
import pytest
import torch
from safetensors.torch import load_file

from lit_unlearn import train
from lit_unlearn.evaluation.evaluator import Evaluator
from lit_unlearn.models import load

CONF = Path(__file__).parent / "tiny.yaml"
BRIEF = ["finetune.max_epochs=1", "trainer.max_epochs=2", "squeeze=null", "evaluation.max_new_tokens=2"]
EXPECTED = [
    *(("fit finetune", 1), ("fit finetune", 1), ("fit forget", 1), ("ask retain_model", 2), ("ask original", 1)),
    *(("ask epoch-001", 3), ("ask unlearned", 3), ("the end", 0)),  # with two moments, without a gradient
]
"""What is alive, in models."""


def live_bytes() -> int:
    """Of all tensors that anybody can still reach or that wait for a collection, gradients included."""
    seen: dict[int, int] = {}
    tensors = [found for found in gc.get_objects() if isinstance(found, torch.Tensor)]
    for tensor in [*tensors, *(t.grad for t in tensors if t.is_leaf and t.grad is not None)]:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())


@pytest.fixture
def no_chance():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_a_phase_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_chance: None):
    before, fit, ask, seen = live_bytes(), L.Trainer.fit, Evaluator.ask, []

    def fitting(self, module, *args, **kwargs):
        if self.loggers:  # a rehearsal has none
            seen.append((f"fit {next(iter(module.terms))}", live_bytes() - before))
        return fit(self, module, *args, **kwargs)

    def asking(self, engine, name):
        if name != "rehearsed":
            seen.append((f"ask {name}", live_bytes() - before))
        return ask(self, engine, name)

    def circular(model, config):
        model.circle = [model]  # as compiled blocks are
        return prepared(model, config)

    prepared = load._prepare
    monkeypatch.setattr(load, "_prepare", circular)
    monkeypatch.setattr(L.Trainer, "fit", fitting)
    monkeypatch.setattr(Evaluator, "ask", asking)
    train.main([f"conf={CONF}", f"output_dir={tmp_path / 'run'}", "logging.mode=disabled", *BRIEF])
    seen.append(("the end", live_bytes() - before))
    model = sum(tensor.nbytes for tensor in load_file(tmp_path / "run" / "model" / "model.safetensors").values())
    assert [name for name, _ in seen] == [name for name, _ in EXPECTED]
    for (name, size), (_, models) in zip(seen, EXPECTED, strict=True):
        assert size / model == pytest.approx(models, abs=0.05), name
