"""The optimizer: decay on matrices only, the warm-up's length, and which parameters are trained at all."""

import pytest
import torch

from lit_unlearn.errors import UserError
from lit_unlearn.training.optim import adamw, freeze_others, schedule
from lit_unlearn.training.settings import OptimConfig


def test_decay_is_on_matrices_only(make_model):
    optimizer = adamw(make_model().parameters(), OptimConfig(weight_decay=0.1))
    matrices, vectors = optimizer.param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert {parameter.dim() for parameter in vectors["params"]} == {1}
    assert min(parameter.dim() for parameter in matrices["params"]) == 2


@pytest.mark.parametrize(("kind", "last"), [("linear", 0.0), ("constant", 1.0), ("cosine", 0.0)])
def test_warm_up_then_schedule(kind: str, last: float):
    weight = torch.nn.Parameter(torch.ones(2, 2))
    config = OptimConfig(lr=1.0, warmup_epochs=0.5, schedule=kind)  # type: ignore[arg-type]
    optimizer = adamw([weight], config)
    scheduler = schedule(optimizer, config, num_steps=10, steps_per_epoch=4)
    rates = []
    for _ in range(11):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:3] == [0.0, 0.5, 1.0]
    assert rates[10] == pytest.approx(last, abs=1e-9)


def test_only_what_the_pattern_names_is_trained(make_model):
    model = make_model(num_layers=3)
    freeze_others(model, r"layers\.(1|2)\.mlp\.down_proj")
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == ["model.layers.1.mlp.down_proj.weight", "model.layers.2.mlp.down_proj.weight"]
    assert sum(len(group["params"]) for group in adamw(model.parameters(), OptimConfig()).param_groups) == 2


@pytest.mark.parametrize(
    ("pattern", "message"), [("layers.(", "not a regular expression"), ("decoder", "no parameter")]
)
def test_a_pattern_that_names_nothing(make_model, pattern: str, message: str):
    with pytest.raises(UserError, match=message):
        freeze_others(make_model(), pattern)
