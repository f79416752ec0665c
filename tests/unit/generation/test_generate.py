"""Generation: the same whatever the batch, from the right distribution, and its consequence for on-policy beliefs."""

import random
from itertools import product

import pytest
import torch
from scipy.stats import chisquare

from lit_unlearn.engine.body import evaluating
from lit_unlearn.generation.generate import Prompt, Sampling, beam_search, cut_at_stop, generate
from lit_unlearn.generation.sampling import Draw

PROMPTS = [Prompt((5, 9, 7), "a"), Prompt((3,), "b"), Prompt((8, 2, 6, 4, 3, 9), "c"), Prompt((11, 12, 13, 14), "d")]


@pytest.fixture(params=["our loop", "the library's"])
def model(policy, request):
    policy.set_attn_implementation("sdpa" if request.param == "our loop" else "eager")
    return policy


@pytest.mark.parametrize("sampling", [None, Sampling(0.7), Sampling(1.0, top_p=0.8), Sampling(rank_band=(0.1, 0.5))])
def test_alone_as_in_any_batch(model, sampling):
    together = generate(model, PROMPTS, [1, 2], 12, 4, sampling)
    alone = [generate(model, [prompt], [1, 2], 12, 1, sampling)[0] for prompt in PROMPTS]
    reversed_pairs = generate(model, PROMPTS[::-1], [1, 2], 12, 2, sampling)[::-1]
    assert together == alone == reversed_pairs
    assert len(set(together)) == 4


def test_streams_differ(policy):
    prompts = [Prompt((5, 9, 7), f"{number}") for number in range(4)]
    assert len(set(generate(policy, prompts, [1], 8, 4, Sampling()))) == 4


def test_greedy_equals_unbatched_argmax(model):
    stops, expected = [1, 20, 21, 22, 23], []
    for prompt in PROMPTS:
        ids = list(prompt.ids)
        while len(ids) < len(prompt.ids) + 10 and (len(ids) == len(prompt.ids) or ids[-1] not in stops):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        expected.append(tuple(ids[len(prompt.ids) :]))
    assert generate(model, PROMPTS, stops, 10, 4) == expected


@pytest.fixture
def small(make_model):
    """Twelve tokens: few enough to count."""
    return make_model(seed=3, vocabulary=12, num_layers=1)


def first_tokens(model, sampling: Sampling, number: int = 3000) -> tuple[torch.Tensor, torch.Tensor]:
    """(how often each first token was drawn, its probability under the model at the sampling's temperature)."""
    answers = generate(model, [Prompt((5, 9, 7), f"{i}") for i in range(number)], [1], 1, number, sampling)
    logits = model(torch.tensor([[5, 9, 7]])).logits[0, -1].detach().double()
    return torch.bincount(torch.tensor([a[0] for a in answers]), minlength=12), (logits / sampling.temperature).softmax(
        -1
    )


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_first_token_has_the_models_distribution(small, temperature):
    counts, probs = first_tokens(small, Sampling(temperature))
    often = probs * 3000 >= 5
    assert often.sum() >= 4
    found, expected = counts[often].tolist(), (probs * 3000)[often].tolist()
    pooled = [3000 - sum(found), 3000 - sum(expected)]
    if pooled[1] > 1:
        found, expected = [*found, pooled[0]], [*expected, pooled[1]]
    else:
        expected = [value * sum(found) / sum(expected) for value in expected]
    assert chisquare(found, expected).pvalue > 1e-3


def test_top_p_keeps_the_smallest_set(small):
    counts, probs = first_tokens(small, Sampling(top_p=0.7))
    ordered = probs.sort(descending=True)
    size = int((ordered.values.cumsum(0) < 0.7).sum()) + 1
    kept = ordered.indices[:size]
    assert set(counts.nonzero().flatten().tolist()) == set(kept.tolist())
    assert 1 < size < 12
    assert chisquare(counts[kept].tolist(), (probs[kept] / probs[kept].sum() * 3000).tolist()).pvalue > 1e-3


def test_rank_band_keeps_its_ranks(small):
    counts, probs = first_tokens(small, Sampling(rank_band=(0.25, 0.5)))
    kept = probs.argsort(descending=True)[3:6]
    assert set(counts.nonzero().flatten().tolist()) <= set(kept.tolist())
    assert chisquare(counts[kept].tolist(), (probs[kept] / probs[kept].sum() * 3000).tolist()).pvalue > 1e-3


def test_modes_and_random_state_are_left_alone(policy):
    policy.train()
    policy.base_model.layers[0].eval()
    before, random_state = [m.training for m in policy.modules()], torch.random.get_rng_state()
    generate(policy, PROMPTS, [1], 4, 4, Sampling())
    assert [m.training for m in policy.modules()] == before
    assert torch.equal(torch.random.get_rng_state(), random_state)
    with evaluating(policy):
        assert not any(m.training for m in policy.modules())
    assert [m.training for m in policy.modules()] == before


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [((5, 6, 1, 7, 2), (5, 6, 1)), ((2, 1), (2,)), ((5, 6), (5, 6)), ((), ()), ((1, 1, 1), (1,))],
)
def test_cut_at_stop(tokens, expected):
    assert cut_at_stop(tokens, [1, 2]) == expected


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_expected_gradient_of_fresh_beliefs(temperature):
    """F7: E_q[grad log pi] with q ~ pi^(1/T) is T grad log sum_y pi(y)^(1/T): zero at T = 1.

    A tabular policy over answers of two tokens out of three, every answer enumerated.
    """
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)
    second = torch.randn(3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    answers = torch.tensor(list(product(range(3), range(3))))
    logp = first.log_softmax(-1)[answers[:, 0]] + second.log_softmax(-1)[answers[:, 0], answers[:, 1]]  # [9]
    q = (logp.detach() / temperature).softmax(-1)
    belief = torch.autograd.grad((q * logp).sum(), (first, second), retain_graph=True)
    renyi = torch.autograd.grad(temperature * (logp / temperature).logsumexp(-1), (first, second))
    for ours, closed_form in zip(belief, renyi, strict=True):
        torch.testing.assert_close(ours, closed_form, rtol=1e-10, atol=1e-12)
        assert (ours.abs().max() < 1e-12) == (temperature == 1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_s_own_generation_settings_change_nothing(make_model, attention):
    """Hub models ship repetition penalties and the like; our greedy answer is the argmax all the same."""
    model = make_model(vocabulary=12)
    model.set_attn_implementation(attention)
    plain = generate(model, [Prompt((5, 9, 7))], [1], 12, 1)
    beams = beam_search(model, Prompt((5, 9, 7)), [1], 6, 5)
    own = model.generation_config
    own.repetition_penalty, own.no_repeat_ngram_size, own.suppress_tokens = 5.0, 1, [plain[0][0]]
    assert generate(model, [Prompt((5, 9, 7))], [1], 12, 1) == plain
    assert beam_search(model, Prompt((5, 9, 7)), [1], 6, 5) == beams
    assert model.generation_config is own
    assert own.repetition_penalty == 5.0


@pytest.mark.parametrize("vocabulary", [1000, 1024, 200])
def test_draws_in_blocks_are_those_of_one_running_sum(vocabulary):
    """Blocks of 256 columns, the last one cut short or not; a likely token, unlikely ones, and one of no mass."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(400, vocabulary, generator=generator)
    logits[:, 7] = -torch.inf
    drawn = Draw(Sampling(), [str(row) for row in range(400)])(logits, range(400))
    mass = logits.double().softmax(-1).cumsum(-1)
    uniforms = torch.tensor([[random.Random(str(row)).random()] for row in range(400)], dtype=torch.float64)
    assert torch.equal(drawn, torch.searchsorted(mass, uniforms, right=True).squeeze(-1))
    assert len({token // 256 for token in drawn.tolist()}) == -(-vocabulary // 256)
    assert 7 not in drawn
