"""What each objective must become where its fields switch something off, and values worked out by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from lit_unlearn import step_loss
from lit_unlearn.engine.states import States, scores_of
from lit_unlearn.engine.trial import can_pack
from lit_unlearn.errors import UserError
from lit_unlearn.objectives import OBJECTIVES
from lit_unlearn.types import Role

FIELDS = ("input_ids", "attention_mask", "labels")


@pytest.fixture
def batch(make_rows):
    rows = {
        "forget": make_rows(),
        "retain": make_rows((4, 6), seed=1),
        "alternate": make_rows((4, 6, 2, 7), seed=2),
    }
    return {role: {field: getattr(block, field) for field in FIELDS} for role, block in rows.items()}


@pytest.fixture
def outcome(policy, reference, batch):
    """(loss, gradient of all parameters) of one objective on the shared batch."""

    def outcome(name: str, start=reference, rows=batch, **fields) -> tuple[float, torch.Tensor]:
        policy.zero_grad()
        loss = step_loss(policy, start, rows, {"term": {"weight": 1.0, "objective": {"name": name, **fields}}})["loss"]
        loss.backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in policy.parameters()]
        return loss.item(), torch.cat([grad.flatten() for grad in grads])

    return outcome


def same(left: torch.Tensor, right: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert right.norm() > 0
    assert (left - right).norm() <= tolerance * right.norm()


EQUAL: list[tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]] = [
    (("wga", {"beta": 0.0}), ("grad_ascent", {})),
    (("satimp", {"beta1": 0.0, "beta2": 0.0}), ("grad_ascent", {})),
    (("controlled_ascent", {}), ("grad_ascent", {})),
    (("wtnpo", {"alpha": 0.0}), ("tnpo", {})),
    (("bst", {"mix": 0.0}), ("grad_ascent", {"reduction": "seq_mean"})),
    (("bst", {"nucleus": 1.0, "k": 7}), ("bst", {"k": 7})),
]


@pytest.mark.parametrize(("left", "right"), EQUAL, ids=[f"{left} is {right}" for left, right in EQUAL])
def test_equal_objectives(left, right, outcome):
    value, gradient = outcome(left[0], **left[1])
    expected, direction = outcome(right[0], **right[1])
    assert value == pytest.approx(expected, rel=1e-5)
    same(gradient, direction)


def test_npo_without_beta_is_ascent(outcome):
    same(outcome("npo", beta=1e-5)[1], outcome("grad_ascent", reduction="seq_sum")[1], 1e-3)


def test_tnpo_at_the_reference_has_unit_weights(outcome, policy):
    same(outcome("tnpo", start=policy, epsilon=0.0)[1], outcome("grad_ascent")[1])


def test_bst_over_the_vocabulary_is_weaker_ascent(outcome):
    same(outcome("bst", k=160, mix=0.3)[1], 0.7 * outcome("grad_ascent", reduction="seq_mean")[1])


def test_normalize_removes_the_factor(outcome):
    (value, gradient), (divided, larger) = outcome("bst", mix=0.4), outcome("bst", mix=0.4, normalize=True)
    assert 0.6 * divided == pytest.approx(value, rel=1e-5)
    same(0.6 * larger, gradient)


@pytest.mark.parametrize("name", ["kl", "js", "hidden_match"])
def test_nothing_to_do_at_the_reference(name, outcome, policy):
    fields = {"layer": 1} if name == "hidden_match" else {}
    value, gradient = outcome(name, start=policy, **fields)
    assert value == pytest.approx(0, abs=1e-6)
    assert gradient.norm() < 1e-4
    assert outcome(name, **fields)[0] > 1e-3


def test_undial_without_beta_stays(outcome, policy):
    assert outcome("undial", start=policy, beta=0.0)[1].norm() < 1e-4
    assert outcome("undial", start=policy)[1].norm() > 1e-2


def test_dpo_of_the_answer_itself(outcome, batch):
    value, gradient = outcome("dpo", rows=batch | {"alternate": batch["forget"]}, beta=0.3)
    assert value == pytest.approx(math.log(2) * 2 / 0.3, rel=1e-6)
    assert gradient.norm() < 1e-3


def table(*probabilities: float) -> States:
    """One answer: the label 0 has these probabilities, the label 1 the rest."""
    p = torch.tensor(probabilities)
    logits, zeros = torch.stack([p, 1 - p], -1).log(), torch.zeros(len(p), dtype=torch.long)
    return States(zeros, zeros, torch.ones(1), logits, head=torch.clone)  # type: ignore[arg-type]


def on_tables(name: str, forget: States, alternate: States | None = None, **fields):
    objective = OBJECTIVES[name](**fields)
    states = {Role.forget: forget, Role.alternate: alternate}
    scores = {role: scores_of(states[role], ask) for role, ask in objective.needs.policy.items()}  # type: ignore[arg-type]
    return objective(scores, {})


def rows_of(*rows: tuple[float, ...]) -> States:
    """As ``table``, an answer for each tuple."""
    whole = table(*(p for row in rows for p in row))
    row = torch.tensor([index for index, own in enumerate(rows) for _ in own])
    return replace(whole, row=row, row_weight=torch.ones(len(rows)))


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (1.0, [(0.2, 0.9, 0.5, 0.1, 0.4), (0.3, 0.6), (0.7,)]),
        (0.6, [(0.9, 0.5, 0.4), (0.6,), (0.7,)]),  # 3 of 5, 1 of 2; 0.6 of 1, and that one is kept
        (0.3, [(0.9,), (0.6,), (0.7,)]),
        (0.4, [(0.9, 0.5), (0.6,), (0.7,)]),
    ],
)
def test_of_each_answer_the_most_likely_tokens_are_chosen(keep, kept):
    answers = rows_of((0.2, 0.9, 0.5, 0.1, 0.4), (0.3, 0.6), (0.7,))
    loss = on_tables("controlled_ascent", answers, keep_fraction=keep)  # token_mean
    means = [sum(map(math.log, own)) / len(own) for own in kept]
    assert loss.values.tolist() == pytest.approx(means, rel=1e-5)
    assert loss.weights.tolist() == [len(own) for own in kept]


def test_likelihood_capping_and_temperature_by_hand():
    loss = on_tables("controlled_ascent", table(0.2, 0.5, 0.1), min_probability=0.2)  # at the bound: left alone
    assert loss.values.item() == pytest.approx(math.log(0.5) / 3, rel=1e-5)
    loss = on_tables("controlled_ascent", table(0.9), temperature=2.0)  # square roots: 3 to 1
    assert loss.values.item() == pytest.approx(math.log(0.75), rel=1e-5)


def test_ceu_with_every_token_ignored_is_no_loss():
    loss = on_tables("ceu", table(0.2, 0.4), ignore_first_n_answer_tokens=2)
    assert loss.values.tolist() == loss.weights.tolist() == [0]


def test_jensun_by_hand():
    half = 0.5 * (math.log(4 / 3) + 0.5 * math.log(2 / 3) + 0.5 * math.log(2))  # middle 3/4, 1/4
    assert on_tables("jensun", table(0.5), target_tokens=[0]).values.item() == pytest.approx(half, rel=1e-5)
    worst = on_tables("jensun", table(1 - 1e-7), target_tokens=[1]).values.item()
    assert worst == pytest.approx(math.log(2), rel=1e-4)
    assert worst <= math.log(2) + 1e-6


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [
        ("total_variation", math.tanh(0.3) / 2 - math.tanh(0.6) / 2),
        ("kl", math.exp(0.3 - 1) - 0.6),
        ("pearson", 0.3**2 / 4 + 0.3 - 0.6),
        ("jensen_shannon", math.log(1 + math.exp(0.3)) - math.log(2) - (math.log(2) - math.log(1 + math.exp(-0.6)))),
    ],
)
def test_flat_by_hand(divergence, expected):
    loss = on_tables("flat", table(0.2, 0.4), table(0.5, 0.7), divergence=divergence)  # means 0.3 and 0.6
    assert loss.values.item() == pytest.approx(expected, rel=1e-5)


def test_rmu_by_hand(batch, outcome, policy):
    direction = [3.0] + [0.0] * 31
    block = batch["forget"]
    hidden = policy(input_ids=block["input_ids"], attention_mask=block["attention_mask"], output_hidden_states=True)
    target = 2 * torch.eye(32)[0]  # of length c, whatever the direction's
    each = [
        ((hidden.hidden_states[2][i, block["labels"][i] != -100] - target) ** 2).mean().item()
        for i in range(len(block["labels"]))
    ]
    value, _ = outcome("rmu", layer=1, coefficient=2.0, direction=direction)
    assert value == pytest.approx(sum(each) / 4, rel=1e-5)


def test_rmu_stops_at_its_block(outcome, policy):
    calls = []
    assert can_pack(policy)  # which runs it whole, once
    for number, block in enumerate(policy.model.layers):
        block.register_forward_hook(lambda *_, number=number: calls.append(number))
    outcome("rmu", layer=1)
    assert set(calls) <= {0, 1}
    assert 0 in calls
    calls.clear()
    outcome("grad_ascent")
    assert set(calls) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("name", "roles", "needle"),
    [("dpo", ["forget"], "alternate"), ("npo", ["forget"], "reference"), ("nopo", ["forget"], "nopo")],
)
def test_step_loss_says_what_is_wrong(name, roles, needle, policy, batch):
    rows = {role: batch[role] for role in roles}
    with pytest.raises(UserError, match=needle):
        step_loss(policy, None, rows, {"term": {"weight": 1.0, "objective": {"name": name}}})


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("wga", {"beta": -1}),
        ("satimp", {"beta1": -1}),
        ("tnpo", {"beta": -4}),
        ("undial", {"beta": -1}),
        ("ceu", {"ignore_first_n_answer_tokens": -1}),
        ("jensun", {"target_tokens": [-1]}),
        ("jensun", {"target_tokens": []}),
        ("rmu", {"layer": 1, "direction": [0.0, 0.0]}),
        ("rmu", {"layer": -1}),
        ("rmu", {"coefficient": 0.0}),
        ("constraint_nll", {"eps": -0.1}),
        ("bstw", {"beta": 0.0}),
        ("controlled_ascent", {"temperature": 0.0}),
        ("controlled_ascent", {"temperature": -1.0}),
        ("controlled_ascent", {"keep_fraction": 0.0}),
        ("controlled_ascent", {"keep_fraction": 1.1}),
        ("controlled_ascent", {"min_probability": 1.0}),
        ("controlled_ascent", {"min_probability": -0.1}),
    ],
)
def test_absurd_fields_are_refused(name: str, fields: dict):
    with pytest.raises(ValueError, match="must"):
        OBJECTIVES[name](**fields)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("rmu", {"layer": 0}),
        ("satimp", {"beta1": 0.0, "beta2": 0.0}),
        ("constraint_nll", {"eps": 0.0}),
        ("bst", {"mix": 1.0}),
    ],
)
def test_the_ends_of_the_ranges_are_taken(name: str, fields: dict):
    OBJECTIVES[name](**fields)


def test_a_refusal_beyond_the_vocabulary_is_told():
    with pytest.raises(ValueError, match=r"target_tokens=\[1, 2\]: the vocabulary has 2 tokens"):
        on_tables("jensun", table(0.5), target_tokens=[1, 2])
    on_tables("jensun", table(0.5), target_tokens=[1, 0])


def test_tnpo_s_default_epsilon_damps_tokens_that_were_unlikely_all_along():
    logp = torch.tensor([0.5, 0.01]).log()
    weight = OBJECTIVES["tnpo"]().weight(logp, logp)
    p4 = torch.tensor([0.5, 0.01]) ** 4
    assert torch.allclose(weight, 2 * p4 / (2 * p4 + 1e-5), rtol=1e-5)
    assert weight[0] > 0.999
    assert weight[1] < 0.01


def test_step_loss_takes_terms_as_yaml_writes_them(policy, make_rows):
    """Our own confs leave a base's term out with null."""
    rows = make_rows()
    batch = {"forget": {name: getattr(rows, name) for name in ("input_ids", "attention_mask", "labels")}}
    whole = step_loss(policy, None, batch, {"forget": {"objective": {"name": "grad_ascent"}}, "retain": None})
    assert set(whole["terms"]) == {"forget"}
    for wrong, message in (
        ({"forgt": batch["forget"]}, "no role 'forgt'"),
        ({"forget": {"input_ids": rows.input_ids}}, "lack attention_mask, labels"),
    ):
        with pytest.raises(UserError, match=message):
            step_loss(policy, None, wrong, {"forget": {"objective": {"name": "grad_ascent"}}})
    with pytest.raises(UserError, match="decoder blocks 0 to 3"):
        step_loss(policy, None, batch, {"forget": {"objective": {"name": "rmu"}}})
    with pytest.raises(UserError, match="terms is empty"):
        step_loss(policy, None, batch, {"forget": None})
