"""What is read off one slice's logits, whichever way they are asked for."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lit_unlearn.data.tokenize import Encoded, pad
from lit_unlearn.engine.states import States, known_states, row_weights, scores_of
from lit_unlearn.types import IGNORE_INDEX, LOGPS, Ask

NUM_TOKENS, VOCABULARY = 9, 13


def statistics(logits: Tensor, labels: Tensor, ask: Ask) -> list[Tensor]:
    """Log-probs, top log-probs, entropy, the gradient of a mixture of them, and the ids."""
    leaf = logits.clone().requires_grad_()
    states = States(labels, torch.zeros_like(labels), torch.ones(1), leaf, head=torch.clone)  # type: ignore[arg-type]
    scores = scores_of(states, ask)
    top, ids = scores.topk(3)
    mixed = scores.logps.sum() + 0.3 * top.square().sum() - 2.0 * scores.entropy.square().sum()
    return [scores.logps, top, scores.entropy, torch.autograd.grad(mixed, leaf)[0], ids]


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("scale", [1.0, 5.0, 20.0])
def test_entropy_beside_logits_and_without_them(logits, scale):
    numbers = scale * torch.randn(NUM_TOKENS, VOCABULARY, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(NUM_TOKENS)
    labels[4] = IGNORE_INDEX
    found = statistics(numbers, labels, Ask(top_k=3, entropy=True, logits=logits))

    leaf = numbers.clone().requires_grad_()
    logps = leaf.log_softmax(-1)
    of_labels = torch.where(labels >= 0, logps[range(NUM_TOKENS), labels.clamp(min=0)], 0.0)
    entropy, (top, ids) = torch.distributions.Categorical(logits=leaf).entropy(), logps.topk(3)
    mixed = of_labels.sum() + 0.3 * top.square().sum() - 2.0 * entropy.square().sum()
    expected = [of_labels, top, entropy, torch.autograd.grad(mixed, leaf)[0], ids]
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_log_probs_that_travel_with_rows_stand_where_the_engine_would_put_them():
    rows = pad([Encoded(7, (5, 6), (8, 1), (-0.5, -1.5), 0.5), Encoded(3, (9,), (4, 2, 1), (-1.0, -2.0, -3.0))])
    scores = scores_of(known_states(rows), LOGPS)
    assert scores.logps.tolist() == [-0.5, -1.5, -1.0, -2.0, -3.0]
    assert scores.labels.tolist() == [8, 1, 4, 2, 1]
    assert scores.row.tolist() == [0, 0, 1, 1, 1]
    assert scores.row_weight.tolist() == [0.5, 1.0]
    assert scores.mask.all()
    assert row_weights(replace(rows, weight=None)).tolist() == [1.0, 1.0]
