"""The frozen start: what is kept of it, and that its cached scores are read and equal a resident model's."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lit_unlearn.callbacks.reference_cache import ReferenceCache
from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.data.tokenize import pad
from lit_unlearn.engine.head import Head
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.engine.states import scores_of
from lit_unlearn.errors import UserError
from lit_unlearn.models.adapters.lora import add_adapters
from lit_unlearn.models.settings import LoraConfig
from lit_unlearn.objectives import OBJECTIVES
from lit_unlearn.reference.plan import ReferencePlan, plan_reference, reference_states
from lit_unlearn.reference.store import ReferenceStore, model_digest, store_key, stored_tensors, write_part
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.training.settings import OptimConfig
from lit_unlearn.types import LOGPS, Ask, Needs, Role, Term
from tests.causal_lms import build

CACHED = ReferencePlan({Role.forget: LOGPS})
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
        ({Role.retain: Ask(logits=True)}, "auto", ReferencePlan({Role.retain: Ask(logits=True)})),
        ({Role.retain: Ask(attended=True)}, "cached", ReferencePlan({Role.retain: Ask(attended=True)})),
        ({Role.belief: LOGPS}, "auto", ReferencePlan(resident=True)),
        ({Role.alternate: LOGPS}, "cached", ReferencePlan({Role.alternate: LOGPS})),
        ({Role.alternate: Ask(logits=True)}, "auto", ReferencePlan(resident=True)),
        ({Role.forget: LOGPS, Role.belief: Ask(logits=True)}, "auto", replace(CACHED, resident=True)),
    ],
)
def test_plan(asks, choice, plan):
    assert plan_reference(Needs({}, asks), choice) == plan
    assert plan_reference(Needs({}, asks), choice, adapters=True) == replace(plan, resident=False)


def test_cached_refuses_what_it_cannot_serve():
    with pytest.raises(UserError, match="belief"):
        plan_reference(Needs({}, {Role.belief: LOGPS}), "cached")
    with pytest.raises(UserError, match="on the roles alternate, belief is not known before the run"):
        plan_reference(Needs({}, {Role.belief: LOGPS, Role.alternate: Ask(logits=True)}), "cached")


def terms_of(name: str) -> dict[str, Term]:
    """A term that reads log-probs, full distributions, distributions of every position, or the output of a block."""
    forget = {
        "npo": Term(1.0, OBJECTIVES["npo"]()),
        "undial": Term(1.0, OBJECTIVES["undial"]()),
        "adaptive rmu": Term(1.0, OBJECTIVES["rmu"](layer=1, adaptive=True)),
    }
    retain = {
        "kl": Term(1.0, OBJECTIVES["kl"](positions="attended")),
        "hidden_match": Term(1.0, OBJECTIVES["hidden_match"](layer=2)),
    }
    return TERMS | ({"forget": forget[name]} if name in forget else {"retain": retain[name]})


READERS = ["npo", "undial", "adaptive rmu", "kl", "hidden_match"]


@pytest.fixture
def make_fit(policy, make_encoded, fit, tmp_path):
    """(cache, data, run) of two epochs of six forget rows, policy and reference the same start."""

    def make(resident: bool = False, start=None, name: str = "npo", directory=None, **options):
        splits = {Role.forget: make_encoded((5, 1, 9, 3, 4, 7)), Role.retain: make_encoded((2, 8, 3), seed=1)}
        data, terms = UnlearnData(splits, 4, seed=0), terms_of(name)
        kept = ScoringEngine(copy.deepcopy(start or policy)) if resident else None
        engine = ScoringEngine(copy.deepcopy(policy))
        module = UnlearnModule(engine, terms, OptimConfig(lr=1e-3, warmup_epochs=0), kept)
        asks = module.needs.reference
        cache = [] if resident else [ReferenceCache(data, asks, 2, directory or tmp_path / "reference", engine)]
        return cache, data, lambda: fit(module, data, cache, max_epochs=2, **options)

    return make


@pytest.mark.parametrize("name", READERS)
def test_stored_equals_resident(make_fit, name):
    stored, resident = make_fit(name=name)[2](), make_fit(resident=True, name=name)[2]()
    assert len(stored) == 4
    assert stored[0] != stored[-1]
    for left, right in zip(stored, resident, strict=True):
        assert left == pytest.approx(right, rel=1e-5, abs=2e-5)


def test_the_reference_stays_where_the_policy_started(make_fit):
    steps = make_fit()[2]()
    assert steps[0]["train/forget_log_ratio"] == pytest.approx(0, abs=1e-5)
    assert abs(steps[-1]["train/forget_log_ratio"]) > 1


@pytest.mark.parametrize("name", READERS)
def test_what_is_stored_is_read(make_fit, tmp_path, name):
    """Found again by another run, which computes nothing, and disturbed, it moves the loss of its term only."""
    plain = make_fit(name=name)[2]()
    (path,) = (tmp_path / "reference").glob("*/*.safetensors")
    again = make_fit(name=name)[2]()
    assert again == plain
    reader, other = ("retain", "forget") if name in ("kl", "hidden_match") else ("forget", "retain")
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file({key: value * (1.5 if key.startswith(reader) else 1) for key, value in tensors.items()}, path, metadata)
    disturbed = make_fit(name=name)[2]()
    assert disturbed[0][f"train/{other}_loss"] == pytest.approx(plain[0][f"train/{other}_loss"])
    assert abs(disturbed[0][f"train/{reader}_loss"] - plain[0][f"train/{reader}_loss"]) > 1e-3


def test_every_change_gives_another_key(make_fit, policy, make_encoded, tmp_path):
    """Model, rows, what is asked, precision: each makes a folder of its own, and nothing else does."""

    def folders() -> int:
        return len(list((tmp_path / "reference").iterdir()))

    make_fit()[2]()
    make_fit()[2]()
    assert folders() == 1
    make_fit(precision="bf16-mixed")[2]()
    make_fit(name="undial")[2]()
    assert folders() == 3
    _, data, run = make_fit()
    data.rows[Role.forget][0] = make_encoded((5,), seed=9)[0]
    run()
    assert folders() == 4
    with torch.no_grad():
        policy.lm_head.weight[0, 0] += 1e-3
    make_fit()[2]()
    assert folders() == 5


def test_stale_or_missing_scores_are_refused(make_fit, tmp_path, policy):
    make_fit()[2]()
    (folder,) = (tmp_path / "reference").iterdir()
    with torch.no_grad():
        policy.lm_head.weight[0, 0] += 1e-3
    caches, _, run = make_fit()
    rows = {Role.forget: caches[0].data.rows[Role.forget]}
    key = store_key(caches[0].start, rows, caches[0].asks, "32-true")
    folder.rename(folder.with_name(key[:16]))  # the scores of another model under this one's name
    with pytest.raises(UserError, match="stale"):
        run()


def test_a_file_that_is_cut(make_fit, tmp_path):
    make_fit()[2]()
    (path,) = (tmp_path / "reference").glob("*/*.safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="cannot be read"):
        make_fit()[2]()


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


@pytest.mark.parametrize("ask", [LOGPS, Ask(logits=True, attended=True), Ask(hidden_layers=(1, 2), logps=False)])
def test_a_store_says_what_the_engine_says(policy, make_encoded, tmp_path, ask):
    """Written in two parts, read in another order; a row without an answer ends a part; the head has a soft limit."""
    policy.config.final_logit_softcapping = 1.5
    engine, encoded = ScoringEngine(policy), make_encoded((5, 0, 9, 0), first_id=20)
    with torch.no_grad():
        for part in (0, 2):
            rows = encoded[part : part + 2]
            states = engine.states({Role.retain: pad(rows)}, {Role.retain: ask})[Role.retain]
            logps = scores_of(states, LOGPS).logps if ask == LOGPS else None
            tensors = stored_tensors(Role.retain, [row.id for row in rows], states, logps)
            write_part(tmp_path / "made" / "here", f"part-{part}", tensors, "key")
        head = Head.of(policy).frozen()
        store = ReferenceStore(tmp_path / "made" / "here", "key", {Role.retain: ask}, head)
        block = pad([encoded[index] for index in (3, 2, 0, 1)])
        expected = engine.score({Role.retain: block}, {Role.retain: replace(ask, logits=False, entropy=ask.logits)})
    assert sorted(path.name for path in (tmp_path / "made" / "here").iterdir()) == [
        "part-0.safetensors", "part-2.safetensors"
    ]  # fmt: skip
    found = reference_states({Role.retain: block}, {Role.retain: ask}, None, store)[Role.retain]
    found, expected = scores_of(found, replace(ask, logits=False, entropy=ask.logits)), expected[Role.retain]
    assert found.extras.keys() == expected.extras.keys()
    for left, right in [(found.logps, expected.logps), *((found.extras[n], x) for n, x in expected.extras.items())]:
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.row, expected.row)


def test_cached_equals_resident_under_autocast_too(make_model, make_encoded, fit, tmp_path):
    """Both are scored with the training step's own rounding, so that NPO's log-ratio starts at 0."""
    ratios = {}
    for kind in ("cached", "resident"):
        policy = make_model()
        rows = {Role.forget: make_encoded((5, 3, 7, 4))}
        data = UnlearnData(rows, 4, 0)
        start = ScoringEngine(copy.deepcopy(policy)) if kind == "resident" else None
        terms = {"forget": Term(1.0, OBJECTIVES["npo"]())}
        engine = ScoringEngine(policy)
        module = UnlearnModule(engine, terms, OptimConfig(lr=1e-3, warmup_epochs=0), start)
        callbacks = [ReferenceCache(data, {Role.forget: LOGPS}, 4, tmp_path, engine)] if kind == "cached" else []
        steps = fit(module, data, callbacks, max_epochs=2, precision="bf16-mixed")
        ratios[kind] = [step["train/forget_log_ratio"] for step in steps]
    assert ratios["cached"] == pytest.approx(ratios["resident"], abs=1e-3)
    assert abs(ratios["cached"][0]) < 1e-3


def test_a_digest_is_of_weights_and_config(make_model):
    start = model_digest(make_model())
    assert model_digest(make_model()) == start
    for change in ("rms_norm_eps", "hidden_act"):
        model = make_model()
        setattr(model.config, change, {"rms_norm_eps": 1e-3, "hidden_act": "gelu"}[change])
        assert model_digest(model) != start
    digests = []
    for names in (("first", "second"), ("second", "first")):  # the order of a config's fields says nothing
        model = make_model()
        for name in names:
            setattr(model.config, name, Path(name))  # nor need they be numbers or text
        digests.append(model_digest(model))
    assert digests[0] == digests[1] != start
    model = make_model()
    add_adapters(model, LoraConfig(rank=2))
    assert model_digest(model) == start  # adapters begin at 0
    odd = build("ApertusForCausalLM")  # some of its weights have no dimension
    assert model_digest(odd) == model_digest(build("ApertusForCausalLM"))
    weight = next(weight for weight in odd.state_dict().values() if not weight.dim())
    weight += 1
    assert model_digest(odd) != model_digest(build("ApertusForCausalLM"))
