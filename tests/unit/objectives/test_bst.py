"""BS-T on logits: its gradient is soft target minus policy, and it never raises the target."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from lit_unlearn.engine.states import States, scores_of
from lit_unlearn.objectives.bst import BST
from lit_unlearn.types import IGNORE_INDEX, LOGPS, Loss, Role

NUM_TOKENS, VOCABULARY = 12, 30
assert_close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-6)


def random_case(seed: int, scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels; every third label is the most likely token."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(NUM_TOKENS, VOCABULARY, generator=generator)
    labels = torch.randint(VOCABULARY, (NUM_TOKENS,), generator=generator)
    labels[::3] = logits[::3].argmax(-1)
    return logits, labels


def apply(objective: BST, logits: torch.Tensor, labels: torch.Tensor, rows: tuple[int, ...] = (6, 4, 2)) -> Loss:
    row = torch.arange(len(rows)).repeat_interleave(torch.tensor(rows))
    states = States(labels, row, torch.ones(len(rows)), logits, head=torch.clone)  # type: ignore[arg-type]
    return objective({Role.forget: scores_of(states, objective.needs.policy[Role.forget])}, {})


def mean(loss: Loss) -> torch.Tensor:
    return (loss.values * loss.weights).sum() / loss.weights.sum()


def gradient(objective: BST, logits: torch.Tensor, labels: torch.Tensor, **rows) -> torch.Tensor:
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(mean(apply(objective, leaf, labels, **rows)), leaf)[0]


def oracle_gradient(logits: torch.Tensor, per_token) -> torch.Tensor:
    """Gradient of the mean over tokens of a float64 formula on log-probs [N, V]."""
    leaf = logits.double().requires_grad_()
    return torch.autograd.grad(per_token(leaf.log_softmax(-1)).mean(), leaf)[0].float()


def ascent(logits, labels):
    return oracle_gradient(logits, lambda logp: logp[range(NUM_TOKENS), labels])


@pytest.mark.parametrize(("mix", "k"), [(0.3, VOCABULARY), (0.3, 1000), (0.0, 5), (1.0, VOCABULARY)])
def test_limits_are_scaled_gradient_ascent(mix, k):
    logits, labels = random_case(0)
    found = gradient(BST(mix=mix, k=k, reduction="token_mean"), logits, labels)
    assert_close(found, (1 - mix) * ascent(logits, labels))


@pytest.mark.parametrize("reduction", ["token_mean", "seq_mean", "seq_sum"])
@pytest.mark.parametrize("seed", range(3))
def test_gradient_is_soft_target_minus_policy(seed, reduction):
    logits, labels = random_case(seed)
    found = gradient(BST(mix=0.4, k=5, reduction=reduction), logits, labels)
    pi = logits.double().softmax(-1)
    kept = torch.zeros_like(pi).scatter(-1, logits.topk(5).indices, 1.0) * pi
    target = 0.6 * F.one_hot(labels, VOCABULARY) + 0.4 * kept / kept.sum(-1, keepdim=True)
    lengths = torch.tensor([6.0] * 6 + [4.0] * 4 + [2.0] * 2)[:, None]
    share = {"token_mean": 1 / 12, "seq_mean": 1 / (3 * lengths), "seq_sum": 1 / 3}[reduction]
    assert_close(found, ((target - pi) * share).float())


def belief_parts(logp: torch.Tensor, k: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """(log S_k, H(q)) of float64 log-probs."""
    top = logp.topk(k).values
    q = top.softmax(-1)
    return top.logsumexp(-1), -(q * q.log()).sum(-1)


@pytest.mark.parametrize(
    ("fields", "entropy_share"),
    [({}, 0.0), ({"stop_gradient": False}, 1.0), ({"entropy_weight": 1.0}, 1.0), ({"entropy_weight": 2.5}, 2.5)],
)
def test_stop_gradient_and_entropy(fields, entropy_share):
    logits, labels = random_case(1)

    def formula(logp):
        mass, entropy = belief_parts(logp)
        return 0.5 * logp[range(NUM_TOKENS), labels] + 0.5 * (mass - entropy_share * entropy)

    found = gradient(BST(mix=0.5, k=5, reduction="token_mean", guard=False, **fields), logits, labels)
    assert_close(found, oracle_gradient(logits, formula))


def test_value_is_the_soft_target_product():
    logits, labels = random_case(2)
    logp = logits.double().log_softmax(-1)
    mass, entropy = belief_parts(logp)
    expected = 0.5 * logp[range(NUM_TOKENS), labels] + 0.5 * (mass - entropy)  # <q, log pi> = log S_k - H(q)
    value = mean(apply(BST(mix=0.5, k=5, reduction="token_mean"), logits, labels))
    assert value.item() == pytest.approx(expected.mean().item(), rel=1e-6)


TEMPERED = [("guard", False), ("temperature", 2.0), ("temperature", 0.5)]


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0, 20.0])
@pytest.mark.parametrize(("mix", "k"), [(0.2, 20), (0.5, 5), (0.7, 3)])
def test_target_never_rises(scale, mix, k):
    """At temperature 1 with lambda below k / (k + 1), guard or none; with the guard at any temperature."""
    for seed in range(5):
        logits, labels = random_case(seed, scale)
        paper = BST(mix=mix, k=k, reduction="token_mean")
        for objective in (paper, *(replace(paper, **{n: v}) for n, v in TEMPERED)):
            found = gradient(objective, logits, labels)
            assert (found[range(NUM_TOKENS), labels] >= -1e-7).all(), objective  # minimised: the logit goes down


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("mix", "guarded"), [(0.5, 1.0), (0.2, 0.0)])
def test_guard(mix, guarded, normalize):
    """pi_y = .9 and .1 spread over the rest: at temperature 2, q_y = .6, t_y = .80 or .92."""
    logits = torch.tensor([[0.9, 0.1 / 4, 0.1 / 4, 0.1 / 4, 0.1 / 4]]).log()
    labels = torch.tensor([0])
    q = logits[0].exp().sqrt() / logits[0].exp().sqrt().sum()
    assert q[0].item() == pytest.approx(0.6, abs=1e-6)  # sqrt(.9) / (sqrt(.9) + 4 sqrt(.025))
    assert (1 - mix + mix * q[0].item() < 0.9) == bool(guarded)
    safe = BST(mix=mix, k=5, temperature=2.0, normalize=normalize)
    free = replace(safe, guard=False)
    assert apply(safe, logits, labels, rows=(1,)).stats["guarded"].tolist() == [guarded]
    unguarded = gradient(free, logits, labels, rows=(1,))[0, 0]
    kept = gradient(safe, logits, labels, rows=(1,))[0, 0]
    assert (unguarded < 0) == bool(guarded)  # without the guard the secret is reinforced
    ascent = (1 - 0.9) * (1.0 if normalize else 1 - mix)  # guarded: the target's share of the loss, (1 - lambda) log pi
    assert kept.item() == pytest.approx(ascent if guarded else unguarded.item(), rel=1e-5)


@pytest.mark.parametrize(("nucleus", "kept"), [(0.4, 1), (0.6, 2), (0.8, 3), (0.95, 4), (1.0, 5)])
def test_the_nucleus_is_the_smallest_set_with_that_share(nucleus, kept):
    """Shares .5, .25, .15, .06, .04: together .5, .75, .9, .96, 1."""
    pi = torch.tensor([0.06, 0.5, 0.15, 0.04, 0.25])
    ranked = pi.sort(descending=True).values[:kept]
    q = ranked / ranked.sum()
    found = apply(BST(mix=0.3, k=5, nucleus=nucleus), pi.log()[None], torch.tensor([2]), rows=(1,))
    assert found.stats["belief_mass"].item() == pytest.approx(ranked.sum().item(), rel=1e-5)
    expected = 0.7 * pi[2].log() + 0.3 * (q * ranked.log()).sum()
    assert found.values.item() == pytest.approx(expected.item(), rel=1e-5)


def test_unlabelled_positions_have_no_gradient():
    logits, labels = random_case(3)
    labels[[1, 6]] = IGNORE_INDEX
    states = States(labels, torch.zeros(NUM_TOKENS, dtype=torch.int64), torch.ones(1), logits, head=torch.clone)  # type: ignore[arg-type]
    assert (scores_of(states, LOGPS).logps == 0).nonzero().flatten().tolist() == [1, 6]
    found = gradient(BST(mix=0.5, k=5), logits, labels)
    assert (found[[1, 6]] == 0).all()
    assert (found[[0, 2, 7]].abs().sum(-1) > 0).all()


def test_reductions_agree_on_equal_lengths():
    logits, labels = random_case(4)
    values = {
        reduction: mean(apply(BST(reduction=reduction), logits, labels, rows=(4, 4, 4))).item()
        for reduction in ("seq_mean", "token_mean", "seq_sum")
    }
    assert values["token_mean"] == pytest.approx(values["seq_mean"], rel=1e-6)
    assert values["seq_sum"] == pytest.approx(4 * values["seq_mean"], rel=1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        {"mix": 1.1},
        {"mix": 1.0, "normalize": True},
        {"nucleus": 0.0},
        {"k": 0},
        {"temperature": 0},
        {"entropy_weight": -1},
        {"stop_gradient": False, "entropy_weight": 1},
    ],
)
def test_wrong_fields_are_refused(fields):
    with pytest.raises(ValueError, match=r"must|already|divides by 1 - mix"):
        BST(**fields)
