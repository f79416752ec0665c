"""The training step as Lightning runs it."""

import math

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.errors import NonFiniteLoss
from lit_unlearn.objectives import OBJECTIVES
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.training.settings import OptimConfig
from lit_unlearn.types import Role, Term


def test_no_gradient_of_the_last_step_lives_through_a_forward(policy, make_encoded, fit):
    """Lightning frees them only between forward and backward, when activations are all there."""
    alive: list[int] = []

    class Counting(UnlearnModule):
        def training_step(self, batch, batch_idx):
            alive.append(sum(weight.grad is not None for weight in self.parameters()))
            return super().training_step(batch, batch_idx)

    terms = {"retain": Term(1.0, OBJECTIVES["nll"]())}
    module = Counting(ScoringEngine(policy), terms, OptimConfig(lr=1e-3, warmup_epochs=0))
    fit(module, UnlearnData({Role.retain: make_encoded((5, 3, 4, 2))}, 2, seed=0), max_epochs=2)
    assert alive == [0, 0, 0, 0]
    assert any(weight.grad is not None for weight in policy.parameters())  # the last step's are there still


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
