"""The training step as Lightning runs it."""

import copy
import math

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.errors import NonFiniteLoss
from lit_unlearn.objectives import OBJECTIVES
from lit_unlearn.recording.history import History, read_history
from lit_unlearn.strategies.settings import StrategyConfig
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.training.settings import OptimConfig, TrainerConfig
from lit_unlearn.training.trainer import build_trainer
from lit_unlearn.types import Role, Term

TERMS = {"retain": Term(1.0, OBJECTIVES["nll"]())}


def test_no_gradient_of_the_last_step_lives_through_a_forward(policy, make_encoded, fit):
    """Lightning frees them only between forward and backward, when activations are all there."""
    alive: list[int] = []

    class Counting(UnlearnModule):
        def training_step(self, batch, batch_idx):
            alive.append(sum(weight.grad is not None for weight in self.parameters()))
            return super().training_step(batch, batch_idx)

    module = Counting(ScoringEngine(policy), TERMS, OptimConfig(lr=1e-3, warmup_epochs=0))
    fit(module, UnlearnData({Role.retain: make_encoded((5, 3, 4, 2))}, 2, seed=0), max_epochs=2)
    assert alive == [0, 0, 0, 0]
    assert all(weight.grad is None for weight in policy.parameters())  # nor through the evaluation at the end


@pytest.fixture
def make_module(policy, make_encoded):
    """(module, data) on the same start each time; two steps an epoch whose gradients are far above a norm of 0.1."""

    def make(kind=UnlearnModule, **optim):
        module = kind(ScoringEngine(copy.deepcopy(policy)), TERMS, OptimConfig(lr=1e-3, **optim))
        return module, UnlearnData({Role.retain: make_encoded((5, 3, 4, 2))}, 2, seed=0)

    return make


class Watch(L.Callback):
    """Norm of the gradient before and after clipping, at each step."""

    def __init__(self) -> None:
        self.before: list[float] = []
        self.after: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.before.append(norm(pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.after.append(norm(pl_module))


def norm(module) -> float:
    return sum((w.grad.double() ** 2).sum().item() for w in module.parameters() if w.grad is not None) ** 0.5


@pytest.mark.parametrize("clip", [0.1, None])
def test_the_norm_logged_is_that_before_clipping(make_module, fit, clip):
    module, data = make_module()
    watch = Watch()
    steps = fit(module, data, [watch], max_epochs=2, gradient_clip_val=clip)
    assert len(steps) == 4
    assert min(watch.before) > 0.5
    assert [step["train/grad_norm"] for step in steps] == pytest.approx(watch.before, rel=1e-5)
    assert watch.after == pytest.approx([0.1] * 4 if clip else watch.before, rel=1e-4)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_clipping_is_lightning_s_to_the_bit(make_module, fit, precision):
    class Plain(UnlearnModule):
        configure_gradient_clipping = L.LightningModule.configure_gradient_clipping

        def configure_optimizers(self):
            chosen = super().configure_optimizers()
            chosen["optimizer"]._step_supports_amp_scaling = False  # else Lightning refuses to clip under bf16-mixed
            return chosen

    found = []
    for kind in (UnlearnModule, Plain):
        module, data = make_module(kind)
        fit(module, data, max_epochs=2, gradient_clip_val=0.1, precision=precision)
        found.append(list(module.parameters()))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def test_the_learning_rate_of_each_step_is_logged(make_module, fit):
    """A rise over the two steps of one epoch from 0, then down to 0 at the end of six."""
    module, data = make_module(warmup_epochs=1)
    steps = fit(module, data, max_epochs=3)
    assert [step["train/learning_rate"] for step in steps] == pytest.approx(
        [0.0, 5e-4, 1e-3, 7.5e-4, 5e-4, 2.5e-4], abs=1e-9
    )


def test_no_norm_where_no_gradient_lives(make_module, fit):
    module, data = make_module(name="adamw_in_backward")
    for step in fit(module, data, max_epochs=1):
        assert "train/learning_rate" in step
        assert "train/grad_norm" not in step


def test_the_trainer_s_gradient_clip_reaches_the_gradient(make_module, tmp_path):
    module, data = make_module()
    watch, history = Watch(), History(tmp_path)
    config = TrainerConfig(max_epochs=1, accelerator="cpu", gradient_clip=0.25, checkpoint_every_n_epochs=0)
    build_trainer(config, StrategyConfig(), tmp_path, [watch], [history]).fit(module, data)
    assert watch.after == pytest.approx([0.25, 0.25], rel=1e-4)
    logged = read_history(history.path)
    assert [value for _, value in logged["train/grad_norm"]] == pytest.approx(watch.before, rel=1e-5)
    assert [step for step, _ in logged["train/learning_rate"]] == [0, 1]


def checkpointed(directory, *callbacks: L.Callback, **options) -> L.Trainer:
    """A trainer that writes ``last.ckpt`` at each epoch's end."""
    return L.Trainer(
        accelerator="cpu",
        callbacks=[*callbacks, ModelCheckpoint(directory, filename="last", enable_version_counter=False)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )


class Overflow(L.Callback):
    """One weight of the embedding, for a token that no row holds, leaves the numbers behind the given step."""

    def __init__(self, step: int, value: float) -> None:
        self.step, self.value = step, value

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            with torch.no_grad():
                pl_module.get_parameter("engine.model.model.embed_tokens.weight")[150, 7] = self.value


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_weights_that_are_no_numbers_never_replace_a_good_checkpoint(policy, make_encoded, tmp_path, value):
    """The loss of the last step was finite, and no row reads the weight: only the weights themselves can tell."""
    terms = {"retain": Term(1.0, OBJECTIVES["nll"]())}
    module = UnlearnModule(ScoringEngine(policy), terms, OptimConfig(lr=1e-3, warmup_epochs=0))
    data = UnlearnData({Role.retain: make_encoded((5, 3, 4, 2), vocabulary=100)}, 2, seed=0)
    with pytest.raises(NonFiniteLoss, match="a weight is NaN or infinite after step 4, epoch 1; a checkpoint from"):
        checkpointed(tmp_path, Overflow(4, value), max_epochs=3).fit(module, data)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 2
    assert all(torch.isfinite(weight).all() for weight in kept["state_dict"].values())


def test_a_checkpoint_holds_no_reference_and_is_resumed_beside_one(make_model, reference, make_encoded, tmp_path):
    terms = {"forget": Term(1.0, OBJECTIVES["npo"]())}
    data = lambda: UnlearnData({Role.forget: make_encoded((5, 3, 4, 2))}, 2, seed=0)  # noqa: E731
    build = lambda: UnlearnModule(  # noqa: E731
        ScoringEngine(make_model()), terms, OptimConfig(lr=1e-3, schedule="constant"), ScoringEngine(reference)
    )
    start = {name: weight.clone() for name, weight in reference.state_dict().items()}
    checkpointed(tmp_path, max_epochs=1).fit(build(), data())
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert kept.keys() == {f"engine.model.{name}" for name in reference.state_dict()}

    resumed, straight = build(), build()
    checkpointed(tmp_path / "resumed", max_epochs=2).fit(resumed, data(), ckpt_path=tmp_path / "last.ckpt")
    checkpointed(tmp_path / "straight", max_epochs=2).fit(straight, data())
    for left, right in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(left, right)
    assert all(torch.equal(weight, start[name]) for name, weight in reference.state_dict().items())
