"""The training step as Lightning runs it."""

from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.engine.scoring import ScoringEngine
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
