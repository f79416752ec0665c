"""The head and the statistics of its logits: values and gradients of the plain path, float32, one buffer."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.flop_counter import FlopCounterMode, mm_flop
from transformers import LlamaConfig, LlamaForCausalLM

from lit_unlearn.engine.head import Head
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.engine.states import Statistics
from lit_unlearn.types import Ask, Role
from tests.capped import CAP, Capped

SMALL = 1e-30


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Fresh(Function):
    """The statistics of a copy of the logits, made again in the backward: their own buffer serves once."""

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, top_k: int, entropy: bool):
        ctx.save_for_backward(logits, labels)
        ctx.options = top_k, entropy
        found = Statistics.apply(logits.clone(), labels, top_k, entropy)
        assert isinstance(found, tuple)
        return found[0], found[1], found[3]

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        logits, labels = ctx.saved_tensors
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            found = Statistics.apply(leaf.clone(), labels, *ctx.options)
        assert isinstance(found, tuple)
        return torch.autograd.grad((found[0], found[1], found[3]), leaf, gradients)[0], None, None, None


LABELS = torch.tensor([3, 0, 6, 3, 1])


@pytest.mark.parametrize("top_k", [0, 1, 3, 7, 9])
@pytest.mark.parametrize("entropy", [False, True])
def test_gradients_are_those_of_finite_differences(top_k, entropy):
    def wanted(logits: Tensor) -> tuple[Tensor, ...]:
        found = Fresh.apply(logits, LABELS, top_k, entropy)
        assert isinstance(found, tuple)
        return found if entropy else found[:2]

    assert torch.autograd.gradcheck(wanted, (3 * randn(5, 7)).requires_grad_())


def outcome(logits: Tensor, top_k: int, plain: bool) -> list[Tensor]:
    """Log-probs, top log-probs, entropy, and the gradient of a mixture of all of them."""
    leaf, labels = logits.clone().requires_grad_(), LABELS[: len(logits)]
    if plain:
        logps = leaf.log_softmax(-1)
        ids = leaf.topk(top_k, -1).indices
        of_labels, top = logps.gather(-1, labels[:, None]).squeeze(-1), logps.gather(-1, ids)
        entropy = -torch.where(logps.exp() > 0, logps.exp() * logps, 0.0).sum(-1)
    else:
        of_labels, top, ids, entropy = Statistics.apply(leaf.clone(), labels, top_k, True)  # type: ignore[misc]
    mixed = sum((randn(*x.shape, seed=seed).to(x) * x).sum() for seed, x in enumerate((of_labels, top, entropy)))
    assert isinstance(mixed, Tensor)
    return [of_labels, top, entropy, ids, torch.autograd.grad(mixed, leaf)[0]]


TABLES = {
    "mild": randn(5, 7),
    "steep": 20 * randn(5, 7),
    "probability 1 and 0": torch.zeros(5, 7).scatter(1, LABELS[:, None], 1e4).double(),
    "the label has probability 0": torch.zeros(5, 7).scatter(1, LABELS[:, None], -1e4).double(),
    "the label has probability 1e-30": torch.full((5, 7), -200.0)
    .index_fill(1, torch.tensor([2]), 0.0)
    .scatter(1, LABELS[:, None], float(torch.tensor(SMALL).log()))
    .double(),
    "ties": torch.tensor([[1.0, 2, 2, 2, 1, 1, 0], [0.0] * 7, *([[3.0, 3, 3, 0, 0, 0, 3]] * 3)]).double(),
    "large numbers": 1e4 + randn(5, 7),
}


@pytest.mark.parametrize("logits", TABLES.values(), ids=list(TABLES))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("top_k", [1, 2, 4, 7])
def test_values_and_gradients_are_those_of_log_softmax(logits, dtype, top_k):
    found, expected = outcome(logits.to(dtype), top_k, False), outcome(logits.to(dtype), top_k, True)
    for left, right in zip(found, expected, strict=True):
        assert left.isfinite().all()
        assert left.dtype == right.dtype
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


def test_a_small_probability_is_exact():
    logits = torch.tensor([[0.0, float(torch.tensor(SMALL).log())]])
    logps, top, ids, _ = Statistics.apply(logits, torch.tensor([1]), 2, False)  # type: ignore[misc]
    assert logps.exp().item() == pytest.approx(SMALL, rel=1e-4)
    assert (top[0].exp().tolist(), ids.tolist()) == ([1.0, pytest.approx(SMALL, rel=1e-4)], [[0, 1]])


def test_the_statistics_take_the_logits_buffer():
    logits = randn(5, 7)
    leaf = logits.clone().requires_grad_()
    buffer = leaf * 1
    logps, *_ = Statistics.apply(buffer, LABELS, 0, False)  # type: ignore[misc]
    torch.testing.assert_close(buffer.detach(), (logits - logits.amax(-1, keepdim=True)).exp())
    given = []
    buffer.register_hook(lambda gradient: given.append(gradient.data_ptr()))
    logps.sum().backward()
    assert given == [buffer.data_ptr()]


def linear(bias: bool = False, trainable: bool = True) -> nn.Linear:
    module = nn.Linear(6, 11, bias=bias)
    with torch.no_grad():
        for seed, weight in enumerate(module.parameters()):
            weight.copy_(randn(*weight.shape, seed=seed))
    return module.requires_grad_(trainable)


def head_of(module: nn.Module, cap: float | None = None, learn: bool = False) -> Head:
    shape = LlamaConfig(vocab_size=11, hidden_size=6, intermediate_size=6, num_hidden_layers=1, num_attention_heads=1)
    model = (LlamaForCausalLM if cap is None else Capped)(shape)
    model.set_output_embeddings(module)
    return Head.of(model, learn)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cap", [None, CAP])
def test_a_head_learns_from_slices_what_the_module_learns_from_all(bias, cap):
    module, hidden = linear(bias), randn(9, 6, seed=5).float()
    whole = hidden.clone().requires_grad_()
    logits = module(whole) if cap is None else cap * torch.tanh(module(whole) / cap)
    factor = randn(9, 11, seed=6).float()
    (logits * factor).sum().backward()

    head, cut = head_of(module, cap, learn=True), hidden.clone().requires_grad_()
    for part in (slice(0, 2), slice(2, 3), slice(3, 9)):
        found = head(cut[part])
        torch.testing.assert_close(found, logits[part])
        (found * factor[part]).sum().backward()
    torch.testing.assert_close(cut.grad, whole.grad)
    gradients = head.gradients()
    assert gradients.keys() == {f"lm_head.{name}" for name, _ in module.named_parameters()}
    for name, weight in module.named_parameters():
        torch.testing.assert_close(gradients[f"lm_head.{name}"], weight.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("trainable", "learn"), [(True, False), (False, True), (False, False)])
def test_a_head_that_does_not_learn_has_no_gradients(bias, trainable, learn):
    module, hidden = linear(bias, trainable), randn(3, 6, seed=5).float().requires_grad_()
    head = head_of(module, learn=learn)
    assert not head.gradients()
    head(hidden).sum().backward()
    assert hidden.grad is not None
    assert not head.gradients()
    assert all(weight.grad is None for weight in module.parameters())


def added(own_shape, left_shape, right_shape, out_shape=None, **kwargs) -> int:
    return mm_flop(left_shape, right_shape)


@pytest.mark.parametrize("trainable", [True, False])
def test_products_of_a_head(trainable):
    """2 N V D each: the logits, the hidden states' gradient, and the weight's where it learns; two slices."""
    module, hidden = linear(trainable=trainable), randn(9, 6, seed=5).float().requires_grad_()
    head = head_of(module, learn=True)
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added})
    with counter:
        for part in (slice(0, 2), slice(2, 9)):
            head(hidden[part]).sum().backward()
    assert counter.get_total_flops() == (6 if trainable else 4) * 9 * 11 * 6


@pytest.mark.parametrize("trainable", [True, False])
def test_a_frozen_head_stays_when_the_model_s_moves(trainable):
    module, hidden = linear(trainable=trainable), randn(3, 6).float()
    head = head_of(module, 2.0, learn=True).frozen()
    assert (head.shell.lm_head is module) == (not trainable)
    before = head(hidden).clone()
    head(hidden.requires_grad_()).sum().backward()
    assert not head.gradients()
    with torch.no_grad():
        module.weight += 1.0
    assert torch.equal(head(hidden), before) == trainable


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_low_hidden_states_make_float32_logits(dtype):
    """A head of float32 or bf16 weights: the exact product of what was rounded, inside autocast too."""
    module = linear().to(dtype)
    hidden = randn(4, 6, seed=5).bfloat16().requires_grad_()
    expected = hidden.float() @ module.weight.float().T
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            head = head_of(module, learn=True)
            logits = head(hidden)
        assert logits.dtype == torch.float32
        assert torch.equal(logits, expected)
        assert not torch.equal(logits, logits.bfloat16().float())
        hidden.grad = None
        logits.sum().backward()
        assert hidden.grad is not None
        assert hidden.grad.dtype == torch.bfloat16
        assert head.gradients()["lm_head.weight"].dtype == dtype


@torch.no_grad()
@pytest.mark.parametrize("case", ["bf16 blocks", "bf16", "autocast"])
def test_engine_rounds_no_logits(make_model, make_rows, case):
    """The hidden states are low; the log-probs are those of the float32 product, not those of low logits."""
    model, rows = make_model(), make_rows()
    if case != "autocast":
        model.to(torch.bfloat16)
    if case == "bf16 blocks":
        model.lm_head.float()
    twin = copy.deepcopy(model)
    engine = ScoringEngine(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        states = engine.states({Role.forget: rows}, {Role.forget: Ask()})[Role.forget]
        scores = engine.score({Role.forget: rows}, {Role.forget: Ask()})[Role.forget]
        hidden = twin.model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).last_hidden_state
    kept = (rows.labels[:, 1:] != -100).nonzero(as_tuple=True)
    assert states.hidden is not None
    assert (case == "autocast") or states.hidden.dtype == torch.bfloat16
    torch.testing.assert_close(states.hidden.float(), hidden[kept].float(), rtol=0.1, atol=0.1)
    logits = states.hidden.float() @ model.lm_head.weight.float().T
    expected = logits.log_softmax(-1).gather(-1, scores.labels[:, None]).squeeze(-1)
    assert scores.logps.dtype == torch.float32
    torch.testing.assert_close(scores.logps, expected, rtol=1e-5, atol=1e-5)
    low = logits.bfloat16().float().log_softmax(-1).gather(-1, scores.labels[:, None]).squeeze(-1)
    assert (low - expected).abs().max() > 1e-3
