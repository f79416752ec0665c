"""Log-probs against Hugging Face's own loss, and losses against the papers' formulas written out on small tables."""

import pytest
import torch
import torch.nn.functional as F

from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.engine.states import States, scores_of
from lit_unlearn.objectives import OBJECTIVES
from lit_unlearn.types import LOGPS, Role


def test_logps_against_hugging_face(policy, make_rows):
    rows = make_rows()
    scores = ScoringEngine(policy).score({Role.forget: rows}, {Role.forget: LOGPS})[Role.forget]
    theirs = policy(input_ids=rows.input_ids, attention_mask=rows.attention_mask, labels=rows.labels).loss
    assert -scores.logps.mean().item() == pytest.approx(theirs.item(), rel=1e-6)


def tables() -> tuple[torch.Tensor, torch.Tensor, States]:
    """Policy and reference logits of two answers (4 and 2 tokens), float64, and their labels."""
    generator = torch.Generator().manual_seed(0)
    logits, other = (2 * torch.randn(6, 12, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([3, 1, 4, 1, 5, 9])
    states = States(labels, torch.tensor([0, 0, 0, 0, 1, 1]), torch.ones(2), head=torch.clone)  # type: ignore[arg-type]
    return logits.requires_grad_(), other, states


def npo(logits, other, labels):  # eq. 3, beta = 0.3
    gathered = logits.log_softmax(-1)[range(6), labels] - other.log_softmax(-1)[range(6), labels]
    ratios = torch.stack([gathered[:4].sum(), gathered[4:].sum()])  # log pi(y|x) / pi_ref(y|x)
    return (-2 / 0.3 * torch.log(torch.sigmoid(-0.3 * ratios))).mean()


def bst(logits, other, labels):  # eq. 5-6, lambda = 0.4, k = 3
    probs = logits.softmax(-1)
    kept = torch.zeros_like(probs).scatter(-1, probs.topk(3).indices, 1.0) * probs
    belief = (kept / kept.sum(-1, keepdim=True)).detach()
    target = 0.4 * belief + 0.6 * F.one_hot(labels, 12)
    tokens = (target * probs.log()).sum(-1)
    return (tokens[:4].sum() + tokens[4:].sum()) / 2


def kl(logits, other, labels):  # KL(reference || policy), mean over tokens
    p = other.softmax(-1)
    return (p * (p.log() - logits.log_softmax(-1))).sum(-1).mean()


def reverse_kl(logits, other, labels):  # KL(policy || reference)
    q = logits.softmax(-1)
    return (q * (q.log() - other.log_softmax(-1))).sum(-1).mean()


def js(logits, other, labels):  # half of each divergence to the middle
    p, q = other.softmax(-1), logits.softmax(-1)
    middle = (p + q) / 2
    return ((p * (p / middle).log() + q * (q / middle).log()) / 2).sum(-1).mean()


@pytest.mark.parametrize(
    ("formula", "objective"),
    [
        (npo, OBJECTIVES["npo"](beta=0.3)),
        (bst, OBJECTIVES["bst"](mix=0.4, k=3, reduction="seq_sum")),
        (kl, OBJECTIVES["kl"](role=Role.forget)),
        (reverse_kl, OBJECTIVES["kl"](role=Role.forget, direction="reverse")),
        (js, OBJECTIVES["js"](role=Role.forget)),
    ],
)
def test_against_the_paper(formula, objective):
    logits, other, states = tables()
    hidden = logits.detach().float().requires_grad_()
    score = lambda tensor, ask: scores_of(  # noqa: E731
        States(states.labels, states.row, states.row_weight, tensor, head=states.head), ask
    )
    asks = objective.needs
    loss = objective(
        {role: score(hidden, ask) for role, ask in asks.policy.items()},
        {role: score(other.float(), ask) for role, ask in asks.reference.items()},
    )
    value, expected = (loss.values * loss.weights).sum() / loss.weights.sum(), formula(logits, other, states.labels)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    ours, theirs = torch.autograd.grad(value, hidden)[0], torch.autograd.grad(expected, logits)[0]
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-6)
