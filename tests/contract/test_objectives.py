"""The same questions to every objective of the table: what it reads, what it returns, what must change nothing."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

import lit_unlearn.objectives
from lit_unlearn.data.tokenize import pad
from lit_unlearn.objectives import OBJECTIVES
from lit_unlearn.scoring import ScoringEngine
from lit_unlearn.states import States, scores_of
from lit_unlearn.types import Ask, Loss, Role, Rows, Scores, Term, union_of_needs

VARIANTS = {name: OBJECTIVES[name]() for name in OBJECTIVES} | {
    "bst seq_sum": OBJECTIVES["bst"](reduction="seq_sum", k=5, mix=0.5),
    "bst with gradient through the belief": OBJECTIVES["bst"](stop_gradient=False, k=5, reduction="token_mean"),
    "kl reverse seq_mean": OBJECTIVES["kl"](direction="reverse", reduction="seq_mean"),
    "kl attended": OBJECTIVES["kl"](positions="attended"),
}
every_objective = pytest.mark.parametrize("objective", VARIANTS.values(), ids=list(VARIANTS))


class Strict(Mapping):
    """Scores of the declared roles; any other key, and any look at which keys there are, is a failure."""

    def __init__(self, scores: dict[Role, Scores]) -> None:
        self.scores = scores

    def __getitem__(self, role):
        assert role in self.scores, f"read the undeclared role {role}"
        return self.scores[role]

    def __contains__(self, role):
        raise AssertionError("asked which roles are there")

    __iter__ = __len__ = __contains__  # type: ignore[assignment]


class Exact(Scores):
    """Raises where an objective reads more top tokens than it declared."""

    def topk(self, k):
        declared = self.extras.get("topk_logps")
        vocabulary_is_all = declared is not None and declared.shape[1] == 160
        assert vocabulary_is_all or declared is None or k <= declared.shape[1], "read more top tokens than declared"
        return Scores.topk(self, k)


def exactly(states: Mapping[Role, States], asks: Mapping[Role, Ask]) -> Strict:
    scores = {role: scores_of(states[role], ask) for role, ask in asks.items()}
    return Strict({role: Exact(*(getattr(s, f.name) for f in fields(Scores))) for role, s in scores.items()})


def evaluate(objective, models, rows: Rows, change=lambda states: states) -> Loss:
    """The objective on one block for every role it reads, through exactly the scores it declared."""
    policy, reference = (
        change(ScoringEngine(model).states({role: rows for role in asks}, asks))
        for model, asks in zip(models, (objective.needs.policy, objective.needs.reference), strict=True)
    )
    return objective(exactly(policy, objective.needs.policy), exactly(reference, objective.needs.reference))


def mean(loss: Loss) -> torch.Tensor:
    return (loss.values * loss.weights).sum() / loss.weights.sum()


@pytest.fixture
def models(policy, reference):
    return policy, reference


def test_table_holds_every_file():
    files = {path.stem for path in Path(lit_unlearn.objectives.__file__).parent.glob("[!_]*.py")}
    assert files
    assert {cls.__module__.rsplit(".", 1)[1] for cls in OBJECTIVES.values()} == files


@every_objective
def test_values_and_weights(objective, models, make_rows):
    loss = evaluate(objective, models, make_rows())
    for name, tensor in {"values": loss.values, "weights": loss.weights, **loss.stats}.items():
        assert tensor.shape == (4,), name
        assert tensor.dtype == torch.float32, name
        assert tensor.isfinite().all(), name
        assert name == "values" or not tensor.requires_grad, name
    assert (loss.weights > 0).all()


@every_objective
def test_each_example_alone(objective, models, make_encoded):
    encoded = make_encoded((5, 1, 9, 3))
    together = evaluate(objective, models, pad(encoded))
    alone = [evaluate(objective, models, pad([row])) for row in encoded]
    torch.testing.assert_close(torch.cat([loss.values for loss in alone]), together.values, rtol=1e-5, atol=1e-5)
    assert torch.equal(torch.cat([loss.weights for loss in alone]), together.weights)


@every_objective
@pytest.mark.parametrize("empty", ["no labels", "no tokens"])
def test_row_without_labels_changes_nothing(objective, empty, models, make_rows):
    attended = any(ask.attended for ask in objective.needs.policy.values())
    rows = make_rows()
    labels, mask = rows.labels.clone(), rows.attention_mask.clone()
    labels[1] = -100
    if empty == "no tokens" or attended:  # the prompt counts where every attended position does
        mask[1] = 0
    masked = evaluate(objective, models, replace(rows, labels=labels, attention_mask=mask))
    others = torch.tensor([0, 2, 3])
    few = evaluate(objective, models, rows._map(lambda tensor: tensor[others]))
    assert masked.weights[1] == 0
    assert masked.values.isfinite().all()
    torch.testing.assert_close(mean(masked), mean(few), rtol=1e-5, atol=1e-5)
    mean(masked).backward()
    assert all(p.grad.isfinite().all() for p in models[0].parameters() if p.grad is not None)


@every_objective
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_nothing(objective, side, models, make_rows):
    rows = make_rows()
    before, after = (6, 0) if side == "left" else (0, 6)
    extend = lambda block, fill: torch.nn.functional.pad(block, (before, after), value=fill)  # noqa: E731
    longer = Rows(
        extend(rows.input_ids, 7),
        extend(rows.attention_mask, 0),
        extend(rows.labels, -100),
        rows.example_id,
        rows.weight,
    )
    loss, padded = evaluate(objective, models, rows), evaluate(objective, models, longer)
    torch.testing.assert_close(padded.values, loss.values, rtol=1e-4, atol=1e-5)
    assert torch.equal(padded.weights, loss.weights)


@every_objective
def test_gradient_reaches_the_policy_only(objective, models, make_rows):
    models[1].requires_grad_(True)
    batch = {role: make_rows() for role in objective.needs.policy}
    known = ScoringEngine(models[1]).states(batch, objective.needs.reference)
    ScoringEngine(models[0])(batch, {"term": Term(1.0, objective)}, known)["term"].value.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in models[0].parameters())
    assert all(p.grad is None for p in models[1].parameters())


@every_objective
@pytest.mark.parametrize("case", ["log-prob -1e4", "probability 1"])
def test_extreme_probabilities(objective, case):
    labels = torch.tensor([3, 5, 7, 2, 9])
    loud = labels if case == "probability 1" else labels + 1
    extreme = torch.zeros(5, 160).scatter(1, loud[:, None], 1e4).requires_grad_()
    mild = torch.randn(5, 160, generator=torch.Generator().manual_seed(0)).requires_grad_()
    states = States(labels, torch.tensor([0, 0, 1, 1, 1]), torch.ones(2), head=lambda hidden: hidden)
    needs = objective.needs
    for policy, reference in ((extreme, mild), (mild, extreme)):
        scores = exactly(dict.fromkeys(needs.policy, replace(states, hidden=policy)), needs.policy)
        known = exactly(dict.fromkeys(needs.reference, replace(states, hidden=reference.detach())), needs.reference)
        loss = objective(scores, known)
        assert loss.values.isfinite().all()
        (gradient,) = torch.autograd.grad(mean(loss), policy)
        assert gradient.isfinite().all()


@every_objective
def test_bf16_hidden_states(objective, models, make_rows):
    def rounded(states):
        head = lambda state: lambda hidden: state.head(hidden.bfloat16().float()).bfloat16()  # noqa: E731
        return {role: replace(state, head=head(state)) for role, state in states.items()}

    exact, low = evaluate(objective, models, make_rows()), evaluate(objective, models, make_rows(), rounded)
    assert low.values.dtype == torch.float32
    torch.testing.assert_close(low.values, exact.values, rtol=1e-2, atol=1e-2)


@every_objective
def test_slices_equal_one_slice(objective, models, make_rows):
    outcomes = []
    for logits_mib in (256, 0):
        models[0].zero_grad()
        engine = ScoringEngine(models[0], logits_mib)
        batch = {role: make_rows() for role in objective.needs.policy}
        with torch.no_grad():
            known = ScoringEngine(models[1]).states(batch, objective.needs.reference)
        total = engine(batch, {"term": Term(1.0, objective)}, known)["term"]
        (total.value / total.weight).backward()
        outcomes.append((total, [p.grad for p in models[0].parameters()]))
    (one, one_grads), (many, many_grads) = outcomes
    assert torch.equal(one.weight, many.weight)
    assert len(engine._plan(list(engine.states(batch, objective.needs.policy).values()))) == 4
    for name, left, right in [("value", one.value, many.value), *((k, v, many.stats[k]) for k, v in one.stats.items())]:
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5, msg=name)
    for left, right in zip(one_grads, many_grads, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


@every_objective
def test_role_can_be_belief(objective, models, make_rows):
    belief = replace(objective, role=Role.belief)
    assert set(belief.needs.policy) == {Role.belief}
    assert set(belief.needs.reference) <= {Role.belief}
    expected, loss = evaluate(objective, models, make_rows()), evaluate(belief, models, make_rows())
    assert torch.equal(loss.values, expected.values)


def test_logged_logp_is_the_answer_s_whatever_positions_the_loss_reads(policy, reference, make_rows):
    """A prompt position has no label, so it must not dilute the mean."""
    rows = {Role.retain: make_rows()}
    logps = []
    for positions in ("answer", "attended"):
        terms = {"retain": Term(1.0, OBJECTIVES["kl"](positions=positions, reduction="seq_mean"))}
        states = ScoringEngine(reference).states(rows, union_of_needs(terms).reference)
        total = ScoringEngine(policy)(rows, terms, states)["retain"]
        logps.append((total.stats["logp"] / total.weight).item())
    assert logps[0] == pytest.approx(logps[1], rel=1e-6)
