"""The frozen start: what is kept of it, and that its cached scores are read and equal a resident model's."""

import copy
from dataclasses import replace

import pytest
import torch

from lit_unlearn.callbacks.reference_cache import ReferenceCache
from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.data.tokenize import pad
from lit_unlearn.errors import UserError
from lit_unlearn.module import UnlearnModule
from lit_unlearn.objectives import OBJECTIVES
from lit_unlearn.optim import OptimConfig
from lit_unlearn.reference import ReferencePlan, plan_reference, reference_states
from lit_unlearn.scoring import ScoringEngine
from lit_unlearn.states import scores_of
from lit_unlearn.types import LOGPS, Ask, Needs, Role, Term

CACHED = ReferencePlan(frozenset({Role.forget}))
TERMS = {"forget": Term(1.0, OBJECTIVES["npo"]()), "retain": Term(1.0, OBJECTIVES["nll"]())}


@pytest.mark.parametrize(
    ("asks", "choice", "plan"),
    [
        ({}, "auto", ReferencePlan()),
        ({}, "cached", ReferencePlan()),
        ({}, "resident", ReferencePlan()),
        ({Role.forget: LOGPS}, "auto", CACHED),
        ({Role.forget: LOGPS}, "cached", CACHED),
        ({Role.forget: LOGPS}, "resident", ReferencePlan(resident=True)),
        ({Role.retain: Ask(logits=True)}, "auto", ReferencePlan(resident=True)),
        ({Role.retain: Ask(top_k=5)}, "auto", ReferencePlan(resident=True)),
        ({Role.retain: Ask(attended=True)}, "auto", ReferencePlan(resident=True)),
        ({Role.belief: LOGPS}, "auto", ReferencePlan(resident=True)),
        ({Role.forget: LOGPS, Role.retain: Ask(logits=True)}, "auto", replace(CACHED, resident=True)),
    ],
)
def test_plan(asks, choice, plan):
    assert plan_reference(Needs({}, asks), choice) == plan


@pytest.mark.parametrize(("role", "ask"), [(Role.retain, Ask(logits=True)), (Role.belief, LOGPS)])
def test_cached_refuses_what_it_cannot_serve(role, ask):
    with pytest.raises(UserError, match=role):
        plan_reference(Needs({}, {role: ask}), "cached")


@pytest.fixture
def make_fit(policy, make_encoded, fit):
    """(module, data, run) of NPO and NLL on two epochs of six forget rows, policy and reference the same start."""

    def make(resident: bool, start=None):
        splits = {Role.forget: make_encoded((5, 1, 9, 3, 4, 7)), Role.retain: make_encoded((2, 8, 3), seed=1)}
        data = UnlearnData(splits, 4, seed=0)
        kept = ScoringEngine(copy.deepcopy(start or policy)) if resident else None
        optim = OptimConfig(lr=1e-3, warmup_epochs=0)
        module = UnlearnModule(ScoringEngine(copy.deepcopy(policy)), TERMS, optim, kept)
        cache = [] if resident else [ReferenceCache(data, [Role.forget], batch_size=2)]
        return data, cache, lambda: fit(module, data, cache, max_epochs=2)

    return make


def test_cached_equals_resident(make_fit):
    _, _, run_cached = make_fit(resident=False)
    _, _, run_resident = make_fit(resident=True)
    cached, resident = run_cached(), run_resident()
    assert len(cached) == 4
    assert cached[0]["train/forget_log_ratio"] == pytest.approx(0, abs=1e-5)
    assert abs(cached[-1]["train/forget_log_ratio"]) > 1  # the reference stays where the policy started
    for left, right in zip(cached, resident, strict=True):
        assert left == pytest.approx(right, rel=1e-5, abs=2e-5)


def test_cache_is_read(make_fit):
    _, caches, run = make_fit(resident=False)
    plain = run()
    data, moved, run_again = make_fit(resident=False)
    shifted = {id: [value + 0.5 for value in logps] for id, logps in caches[0].logps["forget"].items()}
    moved[0].load_state_dict({"logps": {"forget": shifted}})
    perturbed = run_again()
    assert perturbed[0]["train/retain_loss"] == pytest.approx(plain[0]["train/retain_loss"])
    assert abs(perturbed[0]["train/forget_loss"] - plain[0]["train/forget_loss"]) > 0.1
    assert data.rows[Role.forget][2].reference_logps == tuple(shifted[2])  # a resumed cache is not computed anew


def test_another_reference_gives_another_loss(make_fit, reference):
    _, _, run = make_fit(resident=True, start=reference)
    assert abs(run()[0]["train/forget_log_ratio"]) > 0.1


def test_known_log_probs_take_the_forwards_place(policy, make_encoded):
    encoded = make_encoded((5, 1, 9))
    engine = ScoringEngine(policy)
    computed = engine.score({Role.forget: pad(encoded)}, {Role.forget: LOGPS})[Role.forget]
    parts = computed.logps.detach().split([5, 1, 9])
    known = pad([replace(row, reference_logps=tuple(part.tolist())) for row, part in zip(encoded, parts, strict=True)])
    states = reference_states({Role.forget: known}, {Role.forget: LOGPS}, None)[Role.forget]
    assert torch.equal(scores_of(states, LOGPS).logps, computed.logps.detach())
    assert torch.equal(states.row, computed.row)
    two = scores_of(states.slice(1, 3), LOGPS)
    assert torch.equal(two.sequence_logps, computed.sequence_logps.detach()[1:])


def test_state_survives_torch_save(make_fit, tmp_path):
    _, caches, run = make_fit(resident=False)
    run()
    torch.save(caches[0].state_dict(), tmp_path / "state.pt")
    other = ReferenceCache(caches[0].data, [Role.forget], 2)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.logps == caches[0].logps
    assert [len(logps) for logps in other.logps["forget"].values()] == [5, 1, 9, 3, 4, 7]


def test_cached_equals_resident_under_autocast_too(make_model, make_encoded, fit):
    """Both are scored with the training step's own rounding, so that NPO's log-ratio starts at 0."""
    ratios = {}
    for kind in ("cached", "resident"):
        policy = make_model()
        rows = {Role.forget: make_encoded((5, 3, 7, 4))}
        data = UnlearnData(rows, 4, 0)
        start = ScoringEngine(copy.deepcopy(policy)) if kind == "resident" else None
        terms = {"forget": Term(1.0, OBJECTIVES["npo"]())}
        module = UnlearnModule(ScoringEngine(policy), terms, OptimConfig(lr=1e-3, warmup_epochs=0), start)
        callbacks = [ReferenceCache(data, [Role.forget], 4)] if kind == "cached" else []
        steps = fit(module, data, callbacks, max_epochs=2, precision="bf16-mixed")
        ratios[kind] = [step["train/forget_log_ratio"] for step in steps]
    assert ratios["cached"] == pytest.approx(ratios["resident"], abs=1e-3)
    assert abs(ratios["cached"][0]) < 1e-3
