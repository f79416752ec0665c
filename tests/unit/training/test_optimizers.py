"""The AdamW variants: the same path where they promise it, less alive where they promise that, one line where not."""

import copy
import shutil
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.data.tokenize import pad
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.errors import UserError
from lit_unlearn.objectives import OBJECTIVES
from lit_unlearn.recording.export.saved_model import save_model
from lit_unlearn.strategies.settings import StrategyConfig
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.training.optim import adamw
from lit_unlearn.training.optimizers import AdamWInBackward, check_installed, hold_weights
from lit_unlearn.training.settings import OptimConfig, TrainerConfig
from lit_unlearn.training.trainer import build_trainer
from lit_unlearn.types import LOGPS, Role, Term
from tests.configs import load

TERMS = {"forget": Term(1.0, OBJECTIVES["grad_ascent"]()), "retain": Term(1.0, OBJECTIVES["nll"]())}
QUICK = "conf=quickstart"
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torchao compiles its step: no C++ compiler")


@pytest.fixture
def make_module(policy, make_encoded):
    """(module, data) on the same start each time; six forget rows, two steps an epoch."""

    def make(name: str, **options) -> tuple[UnlearnModule, UnlearnData]:
        splits = {Role.forget: make_encoded((5, 1, 9, 3, 4, 7)), Role.retain: make_encoded((2, 8, 3), seed=1)}
        optim = OptimConfig(name=name, lr=1e-3, warmup_epochs=1, **options)  # type: ignore[arg-type]
        module = UnlearnModule(ScoringEngine(copy.deepcopy(policy)), TERMS, optim)
        return module, UnlearnData(splits, 4, seed=0)

    return make


@pytest.fixture
def make_trainer(tmp_path: Path):
    """Of a plain CPU run, for what the fixture ``fit`` does not do: saving and resuming."""

    def make(max_epochs: int, precision: str = "32-true") -> L.Trainer:
        config = TrainerConfig(max_epochs=max_epochs, accelerator="cpu", checkpoint_every_n_epochs=0)
        config.precision, config.gradient_clip = precision, None  # type: ignore[assignment]
        return build_trainer(config, StrategyConfig(), tmp_path, [], [])

    return make


def weights_of(module: UnlearnModule) -> torch.Tensor:
    return torch.cat([weight.detach().float().flatten() for weight in module.engine.parameters()])


def test_fused_equals_the_formula():
    """AdamW's update in plain lines (Loshchilov & Hutter, algorithm 2), three steps."""
    start, grads = torch.linspace(-1, 1, 12).view(3, 4), torch.randn(3, 3, 4, generator=torch.manual_seed(0))
    weight = nn.Parameter(start.clone())
    optimizer = adamw([weight], OptimConfig(lr=0.1, weight_decay=0.3, betas=(0.8, 0.9)))
    x, m, v = start.double(), torch.zeros(3, 4).double(), torch.zeros(3, 4).double()
    for step, grad in enumerate(grads.double(), start=1):
        weight.grad = grad.float()
        optimizer.step()
        m, v = 0.8 * m + 0.2 * grad, 0.9 * v + 0.1 * grad**2
        x = x - 0.1 * 0.3 * x - 0.1 * (m / (1 - 0.8**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-8)
    assert torch.allclose(weight.double(), x, atol=1e-6)
    assert optimizer.param_groups[0]["fused"]


def test_fused_steps_may_be_clipped_under_bf16(make_module, fit):
    """Lightning takes a fused optimizer for one that undoes a loss scale, and refuses."""
    module, data = make_module("adamw")
    start = weights_of(module)
    assert len(fit(module, data, max_epochs=2, precision="bf16-mixed", gradient_clip_val=1.0)) == 4
    assert not torch.equal(weights_of(module), start)


@pytest.mark.parametrize("weight_tied", [False, True])
def test_in_backward_walks_adamw_s_path(make_module, fit, weight_tied: bool):
    ends = []
    for name in ("adamw", "adamw_in_backward"):
        module, data = make_module(name, weight_decay=0.1)
        if weight_tied:
            module.engine.model.config.tie_word_embeddings = True
            module.engine.model.tie_weights()  # type: ignore[operator]
        start = weights_of(module)
        steps = fit(module, data, max_epochs=3)
        for step in steps:
            assert ("train/grad_norm" in step) == (name == "adamw")  # the one number that needs the whole gradient
            step.pop("train/grad_norm", None)
        ends.append((weights_of(module), steps))
        assert not torch.equal(start, ends[-1][0])
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


def test_in_backward_resumes_on_its_path(make_module, make_trainer, tmp_path: Path):
    ends = []
    for name in ("adamw", "adamw_in_backward"):
        module, data = make_module(name, schedule="constant")
        make_trainer(4).fit(module, data)
        ends.append(weights_of(module))
    module, data = make_module("adamw_in_backward", schedule="constant")
    first = make_trainer(2)
    first.fit(module, data)
    first.save_checkpoint(tmp_path / "half.ckpt")
    module, data = make_module("adamw_in_backward", schedule="constant")
    make_trainer(4).fit(module, data, ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], weights_of(module))


def test_gradients_never_live_together(policy, make_rows):
    """The most weights that hold a gradient at once, seen by a hook behind the optimizer's own."""
    most = {}
    for name in ("adamw", "adamw_in_backward"):
        engine = ScoringEngine(copy.deepcopy(policy)).train()
        weights = list(engine.parameters())
        alive: list[int] = []
        for weight in weights:  # registered before the optimizer's hook: sees the gradient before it is freed
            weight.register_post_accumulate_grad_hook(
                lambda _, alive=alive, weights=weights: alive.append(sum(w.grad is not None for w in weights))
            )
        adamw(weights, OptimConfig(name=name))  # type: ignore[arg-type]
        batch = {Role.forget: make_rows(), Role.retain: make_rows(seed=1)}
        engine(batch, TERMS, {}).loss.backward()
        assert len(alive) == len(weights)
        most[name] = max(alive)
    assert most == {"adamw": len(weights), "adamw_in_backward": 1}
    assert all(weight.grad is None for weight in weights)


def test_step_without_a_closure_moves_nothing():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = AdamWInBackward([{"params": [weight]}], lr=0.1)
    optimizer.step()
    assert torch.equal(weight, torch.ones(2, 2))


def test_bf16_weights_keep_float32_ends(make_model):
    model = make_model()
    buffers = {name: buffer.dtype for name, buffer in model.named_buffers()}
    hold_weights(model, "adamw")
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    hold_weights(model, "adamw_8bit")
    kept = [name for name, weight in model.named_parameters() if weight.dtype == torch.float32]
    assert kept == ["model.embed_tokens.weight", "lm_head.weight"]
    assert buffers
    assert {name: buffer.dtype for name, buffer in model.named_buffers()} == buffers


def test_bf16_blocks_score_as_float32_weights_do_under_autocast(make_model, make_rows):
    """The products round float32 weights to bf16 anyway; of norms with weights of 1, nothing is lost at all."""
    rows = {Role.forget: make_rows()}

    def logps(model) -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            return ScoringEngine(model).score(rows, {Role.forget: LOGPS})[Role.forget].logps

    model = make_model()
    before = logps(model)
    hold_weights(model, "adamw_8bit")
    assert torch.equal(logps(model), before)
    model.get_input_embeddings().to(torch.bfloat16)  # as a whole model in bf16 has it
    assert (logps(model) - before).abs().mean() > 1e-3


@needs_compiler
@pytest.mark.parametrize("weight_tied", [False, True])
def test_8bit_learns_resumes_and_is_saved(
    make_model, make_encoded, tokenizer, make_trainer, tmp_path: Path, weight_tied: bool
):
    model = make_model(vocabulary=512, num_layers=2)  # of these, only 512 x 32 is large enough for 8 bits
    if weight_tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    hold_weights(model, "adamw_8bit")
    rows = {Role.retain: make_encoded((5, 3, 9, 4))}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        start = ScoringEngine(model).score({Role.retain: pad(rows[Role.retain])}, {Role.retain: LOGPS})[Role.retain]

    def train(max_epochs: int, checkpoint: Path | None) -> L.Trainer:
        optim = OptimConfig(name="adamw_8bit", lr=1e-2, warmup_epochs=0, schedule="constant")
        module = UnlearnModule(ScoringEngine(model), {"retain": TERMS["retain"]}, optim)
        trainer = make_trainer(max_epochs, "bf16-mixed")
        trainer.fit(module, UnlearnData(rows, 4, seed=0), ckpt_path=checkpoint)
        return trainer

    trainer = train(10, None)
    assert trainer.callback_metrics["train/retain_loss"] < 0.7 * -start.logps.mean()
    states = [value for state in trainer.optimizers[0].state.values() for value in state.values()]
    assert "OptimState8bit" in {type(value).__name__ for value in states}
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = train(12, tmp_path / "last.ckpt")
    assert again.global_step == 12
    resumed = list(again.optimizers[0].state.values())
    assert {int(state["step"]) for state in resumed} == {12}
    assert {type(value).__name__ for state in resumed for value in state.values()} == {"OptimState8bit", "Tensor"}

    save_model(model, tokenizer, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    for (name, saved), held in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(saved, held.float()), name


@needs_compiler
def test_stochastic_rounding_keeps_small_updates():
    """Updates of 1e-4 of a weight of 1 are below half a bf16 step (2^-8): plain rounding would lose every one."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    optimizer = adamw([weight], OptimConfig(name="adamw_8bit", lr=1e-4, weight_decay=0.0))
    for _ in range(50):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert weight.float().mean().item() == pytest.approx(1 - 50 * 1e-4, abs=5e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optim.name=adam"], r"optim\.name: .*adam.*adamw_8bit"),
        (["optim.name=adamw_8bit"], r"adamw_8bit holds bf16 weights: set trainer\.precision=bf16-mixed"),
        (["finetune.optim.name=adamw_8bit"], r"^finetune\.optim\.name=adamw_8bit holds bf16"),
        (["optim.name=adamw_in_backward"], r"never sees the whole gradient: set trainer\.gradient_clip=null"),
        (
            ["optim.name=adamw_in_backward", "trainer.gradient_clip=null", "trainer.devices=2"],
            r"set trainer\.devices=1, or optim\.name=adamw",
        ),
        (
            ["optim.name=adamw_in_backward", "trainer.gradient_clip=null", "schedules.gradient_rectification={}"],
            r"keeps no gradient for schedules\.gradient_rectification",
        ),
        (["model.lora={}", "optim.trainable=mlp"], r"freezes all weights but its adapters: set optim\.trainable=null"),
    ],
)
def test_what_an_optimizer_cannot_do_is_said_in_one_line(arguments: list[str], message: str):
    with pytest.raises(UserError, match=message) as caught:
        load([QUICK, *arguments])
    assert "\n" not in str(caught.value)


def test_what_it_can_do_is_taken():
    in_backward = ["optim.name=adamw_in_backward", "trainer.gradient_clip=null"]
    assert load([QUICK, *in_backward]).optim.name == "adamw_in_backward"
    assert load([QUICK, "optim.name=adamw_8bit", "trainer.precision=bf16-mixed"]).optim.name == "adamw_8bit"


def test_missing_packages_and_devices(monkeypatch: pytest.MonkeyPatch):
    check_installed("adamw", "cpu")
    with pytest.raises(UserError, match="there is no GPU; use adamw"):
        check_installed("adamw_paged", "cpu")
    monkeypatch.setitem(__import__("sys").modules, "torchao.optim", None)
    with pytest.raises(UserError, match=r"needs the extra lean: pip install -e '\.\[lean\]'"):
        check_installed("adamw_8bit", "cpu")
