"""The same questions to every objective of the table: what it reads, what it returns, what must change nothing."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import lit_unlearn.objectives
from lit_unlearn.data.tokenize import Encoded, pad
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.engine.states import States, blank_scores, label_states, scores_of
from lit_unlearn.objectives import OBJECTIVES
from lit_unlearn.types import Ask, Loss, Role, Rows, Scores, Term, union_of_needs

REQUIRED = {
    "jensun": {"target_tokens": [5, 6]},
    "constraint_nll": {"eps": 0.3},
    "rmu": {"layer": 1},  # the models here have four blocks
    "hidden_match": {"layer": 1},
}
OTHERS = {
    "bst": [
        {"reduction": "seq_sum", "k": 5, "mix": 0.5},
        {"stop_gradient": False, "k": 5, "reduction": "token_mean"},
        {"nucleus": 0.5, "normalize": True},
        {"temperature": 0.5, "entropy_weight": 0.1},
    ],
    "kl": [{"direction": "reverse", "reduction": "seq_mean"}, {"positions": "attended"}],
    "rmu": [{"layer": 1, "adaptive": True}],
    "controlled_ascent": [{"temperature": 2.0, "keep_fraction": 0.6, "min_probability": 0.1}],
    "flat": [{"divergence": name} for name in ("kl", "jensen_shannon", "pearson")],
    "tnpo": [{"epsilon": 0.0}],
    "ceu": [{"ignore_first_n_answer_tokens": 0}],
}
VARIANTS = {name: build(**REQUIRED.get(name, {})) for name, build in OBJECTIVES.items()} | {
    " ".join([name, *(f"{field}={value}" for field, value in options.items())]): OBJECTIVES[name](**options)
    for name, variants in OTHERS.items()
    for options in variants
}
LENGTHS = {Role.alternate: (4, 6, 2, 7)}
"""Answer lengths of the four rows of a role; the other roles have (5, 1, 9, 3). Prompts differ too."""
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
    found = {}
    for role, ask in asks.items():
        scores = scores_of(states[role], ask)
        values: dict[str, Any] = {field.name: getattr(scores, field.name) for field in fields(Scores)}
        if not ask.logps:
            values["logps"] = None  # not declared, so not to be read
        found[role] = Exact(**values)
    return Strict(found)


def evaluate(objective, models, batch: Mapping[Role, Rows], change=lambda states: states) -> Loss:
    """The objective on a block for every role it reads, through exactly the scores it declared."""
    policy, reference = (
        change(ScoringEngine(model).states(batch, asks))
        for model, asks in zip(models, (objective.needs.policy, objective.needs.reference), strict=True)
    )
    return objective(exactly(policy, objective.needs.policy), exactly(reference, objective.needs.reference))


def roles_of(objective) -> list[Role]:
    assert objective.needs.reference.keys() <= objective.needs.policy.keys()
    return list(objective.needs.policy)


def mean(loss: Loss) -> torch.Tensor:
    return (loss.values * loss.weights).sum() / loss.weights.sum()


@pytest.fixture
def models(policy, reference):
    return policy, reference


@pytest.fixture
def encode(make_encoded):
    """objective -> {role: four rows}; roles of one objective pair row by row, with other lengths and other tokens."""

    def encode(objective) -> dict[Role, list[Encoded]]:
        return {
            role: make_encoded(LENGTHS.get(role, (5, 1, 9, 3)), seed) for seed, role in enumerate(roles_of(objective))
        }

    return encode


@pytest.fixture
def make_batch(encode):
    return lambda objective: {role: pad(rows) for role, rows in encode(objective).items()}


def test_table_holds_every_file():
    files = {path.stem for path in Path(lit_unlearn.objectives.__file__).parent.glob("[!_]*.py")} - {"table"}
    assert files
    assert {cls.__module__.rsplit(".", 1)[1] for cls in OBJECTIVES.values()} == files


@every_objective
def test_values_and_weights(objective, models, make_batch):
    batch = make_batch(objective)
    loss = evaluate(objective, models, batch)
    for name, tensor in {"values": loss.values, "weights": loss.weights, **loss.stats}.items():
        assert tensor.shape == (4,), name
        assert tensor.dtype == torch.float32, name
        assert tensor.isfinite().all(), name
        assert name == "values" or not tensor.requires_grad, name
    ignored = getattr(objective, "ignore_first_n_answer_tokens", 0)
    counting = [(rows.labels != -100).sum(1) > ignored for rows in batch.values()]
    assert torch.equal(loss.weights > 0, torch.stack(counting).all(0))


READERS = {name: kind for name, kind in VARIANTS.items() if all(ask.logps for ask in kind.needs.policy.values())}


@pytest.mark.parametrize("objective", READERS.values(), ids=list(READERS))
def test_the_answer_s_log_prob_is_among_the_statistics(objective, models, make_batch):
    """Of the whole answer, or the mean over its tokens."""
    batch, role = make_batch(objective), next(iter(objective.needs.policy))
    scores = ScoringEngine(models[0]).score(batch, {role: Ask()})[role]
    whole = scores.sequence_logps.detach()
    seen = evaluate(objective, models, batch).stats["logp"]
    assert any(torch.allclose(seen, known, rtol=1e-4) for known in (whole, whole / scores.num_tokens))


def test_rmu_tells_the_length_of_the_output(policy, make_rows):
    rows, objective = make_rows(), VARIANTS["rmu"]
    out = policy(input_ids=rows.input_ids, attention_mask=rows.attention_mask, output_hidden_states=True)
    lengths = out.hidden_states[2].norm(dim=-1)
    expected = [row[labels != -100].mean().item() for row, labels in zip(lengths, rows.labels, strict=True)]
    assert evaluate(objective, (policy, policy), {Role.forget: rows}).stats["norm"].tolist() == pytest.approx(expected)


class _Unread(dict):
    """Extras whose logits nobody may ask for."""

    def __getitem__(self, name: str) -> torch.Tensor:
        assert name != "logits", "whole distributions were read only to know weights"
        return super().__getitem__(name)


@every_objective
def test_weights_are_known_without_distributions(objective, models, make_batch):
    batch, needs = make_batch(objective), objective.needs
    blank = []
    for asks in (needs.policy, needs.reference):
        scores = {role: blank_scores(label_states(batch[role], ask, 32), ask, 160) for role, ask in asks.items()}
        blank.append({role: replace(known, extras=_Unread(known.extras)) for role, known in scores.items()})
    assert torch.equal(objective(*blank).weights, evaluate(objective, models, batch).weights)


@every_objective
def test_each_example_alone(objective, models, encode, make_batch):
    together = evaluate(objective, models, make_batch(objective))
    singles = [{role: pad([rows[i]]) for role, rows in encode(objective).items()} for i in range(4)]
    alone = [evaluate(objective, models, batch) for batch in singles]
    torch.testing.assert_close(torch.cat([loss.values for loss in alone]), together.values, rtol=1e-5, atol=1e-5)
    assert torch.equal(torch.cat([loss.weights for loss in alone]), together.weights)


@every_objective
@pytest.mark.parametrize("empty", ["no labels", "no tokens"])
def test_row_without_labels_changes_nothing(objective, empty, models, make_batch):
    """Where two roles pair, a row that lacks either answer is no pair."""
    attended = any(ask.attended for ask in objective.needs.policy.values())
    batch = make_batch(objective)
    few = evaluate(objective, models, {role: _take(rows, [0, 1, 3]) for role, rows in batch.items()})
    for role, rows in batch.items():
        labels, mask = rows.labels.clone(), rows.attention_mask.clone()
        labels[2] = -100
        if empty == "no tokens" or attended:  # the prompt counts where every attended position does
            mask[2] = 0
        masked = evaluate(objective, models, batch | {role: replace(rows, labels=labels, attention_mask=mask)})
        assert masked.weights[2] == 0
        assert masked.values.isfinite().all()
        torch.testing.assert_close(mean(masked), mean(few), rtol=1e-5, atol=1e-5)
        mean(masked).backward()
        assert all(p.grad.isfinite().all() for p in models[0].parameters() if p.grad is not None)


def _take(rows: Rows, chosen: list[int]) -> Rows:
    return rows._map(lambda tensor: tensor[chosen])


@every_objective
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_nothing(objective, side, models, make_batch):
    ends = (6, 0) if side == "left" else (0, 6)
    fills = {"input_ids": 7, "attention_mask": 0, "labels": -100}

    def longer(rows: Rows) -> Rows:
        padded = {name: torch.nn.functional.pad(getattr(rows, name), ends, value=v) for name, v in fills.items()}
        return replace(rows, **padded)

    batch = make_batch(objective)
    loss = evaluate(objective, models, batch)
    for some in [*([role] for role in batch), list(batch)]:  # one role alone, then all
        padded = evaluate(objective, models, batch | {role: longer(batch[role]) for role in some})
        torch.testing.assert_close(padded.values, loss.values, rtol=1e-4, atol=1e-5)
        assert torch.equal(padded.weights, loss.weights)


@every_objective
def test_gradient_reaches_the_policy_only(objective, models, make_batch):
    """All of the policy, or where only hidden states are read, all of it up to the block that gives them."""
    models[1].requires_grad_(True)
    batch, asks = make_batch(objective), objective.needs.policy.values()
    known = ScoringEngine(models[1]).states(batch, objective.needs.reference)
    ScoringEngine(models[0])(batch, {"term": Term(1.0, objective)}, known).loss.backward()
    below = (
        "model.embed_tokens.",
        *(f"model.layers.{i}." for ask in asks for i in range(max((*ask.hidden_layers, -1)) + 1)),
    )
    for name, parameter in models[0].named_parameters():
        if any(ask.logps for ask in asks) or name.startswith(below):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name
    assert all(p.grad is None for p in models[1].parameters())


@every_objective
@pytest.mark.parametrize("case", ["log-prob -1e4", "probability 1"])
def test_extreme_probabilities(objective, case):
    """The tables are logits, and hidden states to those who read these."""
    labels, row = torch.tensor([3, 5, 7, 2, 9]), torch.tensor([0, 0, 1, 1, 1])
    loud = labels if case == "probability 1" else labels + 1
    extreme = torch.zeros(5, 160).scatter(1, loud[:, None], 1e4).requires_grad_()
    mild = torch.randn(5, 160, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def states(table):
        return States(labels, row, torch.ones(2), table, None, torch.clone, {1: table}, row)  # type: ignore[arg-type]

    for policy, other in ((extreme, mild), (mild, extreme)):
        asks, known = objective.needs.policy, objective.needs.reference
        tables = dict(zip(asks, (policy, other), strict=False))  # the second role of a pair has the other table
        loss = objective(
            exactly({role: states(table) for role, table in tables.items()}, asks),
            exactly(dict.fromkeys(known, states(other.detach())), known),
        )
        assert loss.values.isfinite().all()
        for gradient in torch.autograd.grad(mean(loss), list(tables.values())):
            assert gradient.isfinite().all()


@every_objective
def test_bf16_hidden_states(objective, models, make_batch):
    def low(state: States) -> States:
        full = state.head
        head = None if full is None else lambda hidden: full(hidden.bfloat16().float()).bfloat16().float()
        return replace(state, head=head, layers={layer: hidden.bfloat16() for layer, hidden in state.layers.items()})

    rounded = lambda states: {role: low(state) for role, state in states.items()}  # noqa: E731
    batch = make_batch(objective)
    exact, found = evaluate(objective, models, batch), evaluate(objective, models, batch, rounded)
    assert found.values.dtype == torch.float32
    torch.testing.assert_close(found.values, exact.values, rtol=1e-2, atol=1e-2)


@every_objective
def test_slices_equal_one_slice(objective, models, make_batch):
    """Beside a plain term of the same rows, for slices are cut by positions and hidden states have none."""
    terms = {"term": Term(1.0, objective), "beside": Term(1.0, OBJECTIVES["nll"](role=roles_of(objective)[0]))}
    batch, outcomes = make_batch(objective), []
    for logits_mib in (256, 0):
        models[0].zero_grad()
        engine = ScoringEngine(models[0], logits_mib)
        with torch.no_grad():
            known = ScoringEngine(models[1]).states(batch, objective.needs.reference)
        step = engine(batch, terms, known, {"term": 1.0, "beside": 0.0})
        step.loss.backward()
        outcomes.append((step, [p.grad for p in models[0].parameters()]))
    (one, one_grads), (many, many_grads) = outcomes
    assert len(engine._plan(list(engine.states(batch, union_of_needs(terms).policy).values()))) == 4
    assert one.losses == pytest.approx(many.losses, rel=1e-5, abs=1e-5)
    assert one.stats == pytest.approx(many.stats, rel=1e-5, abs=1e-5)
    assert one.loss.item() == pytest.approx(one.losses["term"], rel=1e-5, abs=1e-5)
    for left, right in zip(one_grads, many_grads, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


@every_objective
def test_role_can_be_belief(objective, models, make_batch):
    if not hasattr(objective, "role"):
        assert len(roles_of(objective)) == 2  # a pair reads two fixed roles
        return
    belief = replace(objective, role=Role.belief)
    assert set(belief.needs.policy) == {Role.belief}
    assert set(belief.needs.reference) <= {Role.belief}
    batch = make_batch(objective)
    expected = evaluate(objective, models, batch)
    assert torch.equal(evaluate(belief, models, {Role.belief: batch[objective.role]}).values, expected.values)


def test_logged_logp_is_the_answer_s_whatever_positions_the_loss_reads(policy, reference, make_rows):
    """A prompt position has no label, so it must not dilute the mean."""
    rows = {Role.retain: make_rows()}
    logps = []
    for positions in ("answer", "attended"):
        terms = {"retain": Term(1.0, OBJECTIVES["kl"](positions=positions, reduction="seq_mean"))}
        states = ScoringEngine(reference).states(rows, union_of_needs(terms).reference)
        logps.append(ScoringEngine(policy)(rows, terms, states).stats["retain_logp"])
    assert logps[0] == pytest.approx(logps[1], rel=1e-6)
