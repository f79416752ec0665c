"""Recomputed and compiled blocks: the same gradients through the engine, and only the work they promise to repeat."""

import copy
import shutil
from contextlib import nullcontext

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.errors import UserError
from lit_unlearn.generation.generate import Prompt, generate
from lit_unlearn.models.blocks import checkpoint_blocks, compile_blocks
from lit_unlearn.objectives import OBJECTIVES
from lit_unlearn.types import LOGPS, Role, Term
from tests.configs import load

TERMS = {"forget": Term(1.0, OBJECTIVES["grad_ascent"]()), "retain": Term(1.0, OBJECTIVES["nll"]())}
NUM_GRAPHS = 4
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU: no C++ compiler")


class Count(TorchDispatchMode):
    """How often each operation runs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.calls[name] = self.calls.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def batch(make_rows):
    return {Role.forget: make_rows(), Role.retain: make_rows(seed=1)}


def gradients_of(model, batch, mode: Count | None = None) -> dict[str, torch.Tensor]:
    """Of one step in training mode, whose backward runs under ``mode``."""
    loss = ScoringEngine(model).train()(batch, TERMS, {}).loss
    with mode or nullcontext():
        loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=tolerance, atol=tolerance * float(gradient.abs().max())), name


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_recomputing_repeats_what_it_says_and_changes_no_gradient(make_model, batch, attention: str):
    """Four blocks with seven matrix products; full checkpointing needs no product behind the last it must repeat."""
    gradients, calls = {}, {}
    for checkpointing in ("none", "full", "selective"):
        model = make_model()
        model.set_attn_implementation(attention)
        checkpoint_blocks(model, checkpointing)  # type: ignore[arg-type]
        count = Count()
        gradients[checkpointing], calls[checkpointing] = gradients_of(model, batch, count), count.calls
    assert len(gradients["none"]) == 39
    assert_equal(gradients["full"], gradients["none"], 1e-6)
    assert_equal(gradients["selective"], gradients["none"], 1e-6)
    products, scores = "mm", "bmm" if attention == "eager" else "_scaled_dot_product_flash_attention_for_cpu"
    assert calls["full"][products] - calls["none"][products] == 4 * 6  # the seventh, the last, is not needed
    assert (
        calls["full"].get(scores, 0) - calls["none"].get(scores, 0) == 4 * 2
    )  # eager: two products; packed: two blocks of rows
    for operation in (products, scores):
        assert calls["selective"].get(operation, 0) == calls["none"].get(operation, 0)
    assert calls["selective"]["silu"] - calls["none"].get("silu", 0) == 4
    assert calls["selective"]["rsqrt"] - calls["none"].get("rsqrt", 0) == 4 * 2


@pytest.mark.parametrize("checkpointing", ["full", "selective"])
def test_low_blocks_that_are_frozen_are_not_run_again(make_model, batch, checkpointing):
    """As when RMU trains blocks 2 and 3: checkpoints must not ask the embedding for a gradient."""
    model = make_model()
    checkpoint_blocks(model, checkpointing)
    for name, weight in model.named_parameters():
        weight.requires_grad_("layers.3" in name)
    count = Count()
    gradients_of(model, batch, count)
    assert count.calls["silu_backward"] == 1
    assert count.calls["silu"] == 1


def test_recomputing_leaves_generation_alone(make_model):
    prompts, answers = [Prompt((5, 6, 7))], []
    for checkpointing in ("none", "full", "selective"):
        model = make_model().train()
        checkpoint_blocks(model, checkpointing)  # type: ignore[arg-type]
        answers.append(generate(model, prompts, [1], 8, 1))
    assert answers[1] == answers[2] == answers[0]


@pytest.mark.parametrize("value", ["true", "false", "half"])
def test_another_value_is_refused_with_the_choices(value: str):
    with pytest.raises(UserError, match=r"model\.gradient_checkpointing: .*selective"):
        load(["conf=quickstart", f"model.gradient_checkpointing={value}"])


def test_compiling_and_recomputing_exclude_each_other():
    with pytest.raises(UserError, match=r"model\.compile=true"):
        load(["conf=quickstart", "model.compile=true", "model.gradient_checkpointing=selective"])


@needs_compiler
@pytest.mark.parametrize("num_layers", [2, 5])
def test_compiled_blocks_give_the_same_gradients(make_model, batch, num_layers):
    """Attention is not compiled; what is around it is, once for all blocks, however many."""
    plain, compiled = make_model(num_layers=num_layers), make_model(num_layers=num_layers)
    compile_blocks(compiled)
    expected = gradients_of(plain, batch)
    torch._dynamo.reset()
    counters.clear()
    assert_equal(gradients_of(compiled, batch), expected, 1e-5)
    assert counters["stats"]["unique_graphs"] == NUM_GRAPHS


def test_evaluation_and_copies_do_not_run_the_compiled_code(make_model, batch):
    """Each token of a generation would be a new shape; a copy must run on its own weights."""
    model = make_model(num_layers=2)
    expected = ScoringEngine(model).score(batch, {Role.forget: LOGPS})[Role.forget].logps
    compile_blocks(model)
    clone = copy.deepcopy(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.5)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert torch.equal(ScoringEngine(clone).score(batch, {Role.forget: LOGPS})[Role.forget].logps, expected)
        moved = ScoringEngine(model).score(batch, {Role.forget: LOGPS})[Role.forget].logps
    assert not torch.equal(moved, expected)
