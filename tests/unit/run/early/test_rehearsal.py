"""All that takes part in a run is tried before the first file; faults are named, and nothing of it remains."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from lit_unlearn.callbacks.belief_sampler import BeliefSampler
from lit_unlearn.callbacks.schedules.gradient_rectification import GradientRectification
from lit_unlearn.callbacks.squeeze_probe import SqueezeProbe
from lit_unlearn.errors import UserError
from lit_unlearn.evaluation.evaluator import Evaluator
from lit_unlearn.models.load import load_model
from lit_unlearn.objectives import OBJECTIVES
from lit_unlearn.run.early.rehearsal import rehearse
from lit_unlearn.run.prepare import Study, corpus, load_benchmark, prepare
from lit_unlearn.run.resume import dated
from lit_unlearn.training.module import UnlearnModule
from tests.configs import load

CONF = Path(__file__).parents[3] / "integration" / "tiny.yaml"
SMALL = [
    f"conf={CONF}", "model.tiny.num_layers=1", "data.benchmark.num_authors=4", "data.benchmark.num_forget_authors=1",
    "data.benchmark.questions_per_author=2", "finetune=null", "squeeze=null", "output_dir=nowhere",
]  # fmt: skip
BELIEFS = [
    "terms.belief={weight: 0.5, objective: {name: npo, role: belief}}", "squeeze={num_beams: 5}",
    "schedules.gradient_rectification={forget: [forget, belief]}", "schedules.retain_selection={keep_fraction: 0.5}",
    "logging.gradient_shares_every_n_steps=5", "beliefs={num_samples: 2}",
]  # fmt: skip
KINDS = {
    "beliefs and schedules": BELIEFS,
    "finetuned": ["finetune={max_epochs: 1}", "terms.forget.objective={name: rmu, layer: 0, adaptive: true}"],
    "lora": ["model.lora={rank: 2, dropout: 0.5}", "terms.retain.objective.name=kl"],
    "in backward": ["optim.name=adamw_in_backward", "trainer.gradient_clip=null", "optim.trainable=mlp"],
    "8 bit": ["optim.name=adamw_8bit", "trainer.precision=bf16-mixed", "model.reference=resident"],
    "alternates": ["terms.forget.objective.name=dpo", "model.gradient_checkpointing=full"],
}


def read(*options: str) -> tuple[Study, PreTrainedModel]:
    config = dated(load([*SMALL, *options]))
    benchmark = load_benchmark(config)
    L.seed_everything(config.seed, verbose=False)
    policy, tokenizer = load_model(config.model, corpus(config, benchmark))
    return prepare(config, benchmark, policy, tokenizer), policy


def state(model: PreTrainedModel) -> dict[str, Any]:
    modules = dict(model.named_modules())
    parameters = {name: (id(w), w.data_ptr(), w.dtype, w.requires_grad, w.grad) for name, w in model.named_parameters()}
    hooks = {name: len(w._post_accumulate_grad_hooks or ()) for name, w in model.named_parameters()}
    return {
        "modules": {name: (id(module), module.training, sorted(vars(module))) for name, module in modules.items()},
        "parameters": parameters,
        "hooks": hooks,
        "numbers": {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]},
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),  # type: ignore[index]
        "python": random.getstate(),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_remains(kind: str, monkeypatch: pytest.MonkeyPatch):
    """Not even of a callback that moves the weights, or of one that draws."""
    if kind == "8 bit":
        pytest.importorskip("torchao")
    if kind == "lora":
        pytest.importorskip("peft")
    study, policy = read(*KINDS[kind])
    monkeypatch.setattr(UnlearnModule, "on_after_backward", spoil)
    rows = {role: list(split) for role, split in study.rows.items()}
    before = state(policy)
    moved = rehearse(study, policy)
    after = state(policy)
    numbers = before.pop("numbers"), after.pop("numbers")
    assert numbers[0].keys() == numbers[1].keys()
    for name, tensor in numbers[0].items():
        assert torch.equal(tensor, numbers[1][name]), name
    for name in before:
        assert torch.equal(torch.as_tensor(before[name]), torch.as_tensor(after[name])) if name in (
            "torch", "numpy"
        ) else before[name] == after[name], name  # fmt: skip
    assert study.rows == rows
    assert all(schedule.__dict__.get("mean", {}) == {} for schedule in study.schedules)
    assert 0 < moved <= policy.num_parameters()
    assert (moved < policy.num_parameters()) == (kind in ("lora", "in backward"))


@torch.no_grad()
def spoil(self: UnlearnModule) -> None:
    for tensor in [*self.engine.parameters(), *self.engine.buffers()]:
        tensor.add_(1)
    self.engine.model.spoilt = True  # type: ignore[assignment]
    for draw in (random.random, np.random.rand, lambda: torch.rand(1)):
        draw()


def fails(*args, **kwargs):
    raise RuntimeError("shapes cannot be multiplied\nand more")


@pytest.mark.parametrize(
    ("owner", "hook", "options", "place"),
    [
        (OBJECTIVES["nll"], "__call__", [], "terms.retain: RuntimeError"),
        (SqueezeProbe, "measure", ["squeeze={num_beams: 5}"], "squeeze: RuntimeError"),
        (BeliefSampler, "_reference_logps", BELIEFS, "beliefs: RuntimeError"),
        (GradientRectification, "on_before_optimizer_step", BELIEFS, "schedules.gradient_rectification: RuntimeError"),
        (Evaluator, "ask", [], "evaluation: RuntimeError"),
    ],
)
def test_faults_are_told_with_their_place(owner, hook, options, place, monkeypatch: pytest.MonkeyPatch):
    study, policy = read(*options)
    before = {name: weight.data_ptr() for name, weight in policy.named_parameters()}
    monkeypatch.setattr(owner, hook, fails)
    with pytest.raises(UserError) as caught:
        rehearse(study, policy)
    assert str(caught.value) == f"{place}: shapes cannot be multiplied"
    assert {name: weight.data_ptr() for name, weight in policy.named_parameters()} == before
