"""The packed engine against the plain recipe, and what a step costs: tokens, forwards, products, bytes."""

import copy
import gc
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, mm_flop
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from lit_unlearn.data.tokenize import Encoded, pad
from lit_unlearn.engine import scoring
from lit_unlearn.engine.attention import NAME, take_part
from lit_unlearn.engine.head import Head
from lit_unlearn.engine.losses import LOGITS_COPIES
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.engine.trial import can_pack
from lit_unlearn.models.blocks import checkpoint_blocks
from lit_unlearn.objectives import OBJECTIVES
from lit_unlearn.types import Ask, Loss, Needs, Role, Rows, Scores, Term, Terms, union_of_needs
from tests.capped import Capped

VOCABULARY = 61
HEADER = (9, 8, 7, 6, 5)
SHAPE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
SHAPE |= {"vocab_size": VOCABULARY, "initializer_range": 0.2}
NO_DROPOUT: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
GPT2 = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, initializer_range=0.2, **NO_DROPOUT)
FAMILIES = {
    "llama": LlamaConfig(num_key_value_heads=2, tie_word_embeddings=False, **SHAPE),
    "llama tied": LlamaConfig(num_key_value_heads=2, tie_word_embeddings=True, **SHAPE),
    "gpt2 tied": GPT2,
    "qwen2": Qwen2Config(num_key_value_heads=1, tie_word_embeddings=False, **SHAPE),
    "qwen3 tied": Qwen3Config(num_key_value_heads=2, head_dim=16, tie_word_embeddings=True, **SHAPE),
}


def build(config: Any, seed: int = 0, attention: str = "sdpa") -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=attention)


def with_bias(model: PreTrainedModel) -> PreTrainedModel:
    model.lm_head = nn.Linear(32, VOCABULARY)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(2)
        for weight in model.lm_head.parameters():
            weight.normal_(std=0.3)
    return model


def with_cap(model: PreTrainedModel) -> PreTrainedModel:
    model.__class__ = Capped
    return model


def objective(name: str, **fields: Any) -> Any:
    return OBJECTIVES[name](**fields)


NLL = Term(0.7, objective("nll"))
CASES: dict[str, dict[str, Term]] = {
    "npo": {"forget": Term(1.0, objective("npo")), "retain": NLL},
    "grad_ascent": {"forget": Term(1.0, objective("grad_ascent")), "retain": NLL},
    "bst": {"forget": Term(1.0, objective("bst", k=5, mix=0.5, temperature=0.8)), "retain": NLL},
    "kl": {"forget": Term(0.5, objective("grad_ascent")), "retain": Term(2.0, objective("kl"))},
    "kl attended": {"retain": Term(1.0, objective("kl", positions="attended", direction="reverse"))},
    "kl attended beside sequences": {
        "retain": Term(1.0, objective("kl", positions="attended")),
        "simnpo": Term(1.0, objective("simnpo", role=Role.retain)),
    },
    "simnpo": {"forget": Term(1.0, objective("simnpo", beta=2.5)), "retain": NLL},
    "rmu": {
        "forget": Term(1.0, objective("rmu", layer=1)),
        "retain": Term(3.0, objective("hidden_match", layer=1)),
    },
    "rmu beside nll": {"forget": Term(1.0, objective("rmu", layer=0, adaptive=True)), "retain": NLL},
    "dpo": {"pair": Term(1.0, objective("dpo")), "retain": NLL},
    "bss": {
        "forget": Term(0.8, objective("npo")),
        "belief": Term(0.2, objective("npo", role=Role.belief)),
        "retain": NLL,
    },
    "two terms of one role": {
        "forget": Term(1.0, objective("grad_ascent", reduction="seq_mean")),
        "belief": Term(0.5, objective("bst", k=3)),
    },
}
every_case = pytest.mark.parametrize("terms", CASES.values(), ids=list(CASES))


def rows_of(*pairs: tuple[tuple[int, ...], tuple[int, ...]]) -> Rows:
    weights = (1.0, 0.5, 2.0, 1.0, 3.0)
    return pad([Encoded(i, prompt, answer, None, weights[i]) for i, (prompt, answer) in enumerate(pairs)])


def moved(rows: Rows, row: int, by: int) -> Rows:
    """One row padded on the left."""
    shift = lambda block, fill: torch.nn.functional.pad(block, (0, by), value=fill)  # noqa: E731
    wide = replace(
        rows,
        input_ids=shift(rows.input_ids, 3),
        attention_mask=shift(rows.attention_mask, 0),
        labels=shift(rows.labels, -100),
    )
    for block in (wide.input_ids, wide.attention_mask, wide.labels):
        block[row] = block[row].roll(by)
    return wide


@pytest.fixture
def batch() -> dict[Role, Rows]:
    """A common header, equal rows within and across roles, a row without labels, and one padded on the left.

    The alternates and beliefs follow the prompts of their forget rows.
    """
    prompts = [(*HEADER, 11), (*HEADER, 12, 13), (*HEADER, 11), (4, 3), (*HEADER, 11)]
    answers = [(20, 21, 22, 1), (23, 1), (), (24, 25, 26, 27, 28, 1), (20, 21, 22, 1)]
    others = [(20, 21, 30, 31, 1), (1,), (32, 33, 1), (34, 1), (20, 1)]
    beliefs = [(20, 21, 22, 1), (40, 41, 42, 1), (43, 1), (), (20, 21, 44, 45, 1)]
    return {
        Role.forget: moved(rows_of(*zip(prompts, answers, strict=True)), 1, 4),
        Role.retain: rows_of(((*HEADER, 50), (51, 52, 1)), ((*HEADER, 11), answers[0]), (HEADER, (11, 53, 54, 55, 1))),
        Role.alternate: rows_of(*zip(prompts, others, strict=True)),
        Role.belief: rows_of(*zip(prompts, beliefs, strict=True)),
    }


def sequences(rows: Rows) -> list[tuple[list[int], list[int]]]:
    """(tokens, labels) of each row, without what is not attended."""
    kept = [mask.bool() for mask in rows.attention_mask]
    return [
        (ids[mask].tolist(), labels[mask].tolist())
        for ids, labels, mask in zip(rows.input_ids, rows.labels, kept, strict=True)
    ]


def plain_scores(model: PreTrainedModel, rows: Rows, ask: Ask) -> Scores:
    """One forward of the library over one role, rows padded on the right, all logits in float32."""
    known = sequences(rows)
    length = max(len(ids) for ids, _ in known)
    ids = torch.tensor([[*ids, *[0] * (length - len(ids))] for ids, _ in known])
    mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in known])
    out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
    logits, cap = out.logits.float(), getattr(model.config, "final_logit_softcapping", None)
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    logps = logits.log_softmax(-1)
    places, at = [], []
    for row, (_, labels) in enumerate(known):
        following = [*labels[1:], -100]
        places += [(row, t, label) for t, label in enumerate(following) if ask.attended or label != -100]
        at += [(row, t) for t, label in enumerate(labels) if label != -100]
    row, position, label = torch.tensor(places).unbind(1)
    at_row, at_position = torch.tensor(at).unbind(1)
    labelled, label = label != -100, label.clamp(min=0)
    there = logps[row, position]  # [N, V]
    extras = {f"hidden_{layer}": out.hidden_states[layer + 1][at_row, at_position] for layer in ask.hidden_layers}
    extras |= {"hidden_row": at_row, "logits": logits[row, position], "entropy": -(there.exp() * there).sum(-1)}
    if ask.top_k:
        top = there.topk(min(ask.top_k, there.shape[-1]))
        extras |= {"topk_logps": top.values, "topk_ids": top.indices}
    values = torch.where(labelled, there.gather(-1, label[:, None]).squeeze(-1), 0.0)
    weight = torch.ones(len(known)) if rows.weight is None else rows.weight
    return Scores(values, labelled, label, row, weight, extras)


@dataclass
class Outcome:
    loss: float
    losses: dict[str, float]
    stats: dict[str, float]
    gradients: dict[str, Tensor]


def gradients_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def plain(model: PreTrainedModel, start: PreTrainedModel, batch: Mapping[Role, Rows], terms: Terms) -> Outcome:
    """The recipe everybody writes: a forward for each role, whole logits, the means of the terms, one backward."""
    needs = union_of_needs(terms)
    policy = {role: plain_scores(model, batch[role], ask) for role, ask in needs.policy.items()}
    with torch.no_grad():
        reference = {role: plain_scores(start, batch[role], ask) for role, ask in needs.reference.items()}
    losses = {name: term.objective(policy, reference) for name, term in terms.items()}
    mean = lambda loss, values: (loss.weights * values).sum() / loss.weights.sum()  # noqa: E731
    total = torch.stack([terms[name].weight * mean(loss, loss.values) for name, loss in losses.items()]).sum()
    total.backward()
    return Outcome(
        total.item(),
        {name: mean(loss, loss.values).item() for name, loss in losses.items()},
        {f"{name}_{key}": mean(loss, stat).item() for name, loss in losses.items() for key, stat in loss.stats.items()},
        gradients_of(model),
    )


def run(
    model: PreTrainedModel, start: PreTrainedModel, batch: Mapping[Role, Rows], terms: Terms, **options: Any
) -> Outcome:
    with torch.no_grad():
        known = ScoringEngine(start).states(batch, union_of_needs(terms).reference)
    step = ScoringEngine(model, **options)(batch, terms, known)
    step.loss.backward()
    return Outcome(step.loss.item(), step.losses, step.stats, gradients_of(model))


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 1e-5) -> None:
    """Each gradient to a share of its own length, and of 1 % of all of them where it is shorter."""
    assert found.keys() == expected.keys()
    floor = 1e-2 * torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    assert floor > 0
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= tolerance * torch.maximum(gradient.norm(), floor), name


def assert_equal_outcomes(found: Outcome, expected: Outcome) -> None:
    assert found.loss == pytest.approx(expected.loss, rel=1e-5, abs=1e-6)
    assert found.losses == pytest.approx(expected.losses, rel=1e-5, abs=1e-6)
    assert found.stats == pytest.approx(expected.stats, rel=1e-5, abs=1e-6)
    assert_same(found.gradients, expected.gradients)


@every_case
@pytest.mark.parametrize("config", FAMILIES.values(), ids=list(FAMILIES))
def test_a_step_is_the_plain_recipe(config, terms, batch):
    start, model, twin = build(config, 1), build(config), build(config)
    expected = plain(twin, copy.deepcopy(start), batch, terms)
    assert_equal_outcomes(run(model, start, batch, terms), expected)
    assert model.config._attn_implementation == NAME  # it was packed


@every_case
@pytest.mark.parametrize("change", [with_bias, with_cap])
def test_other_heads(change, terms, batch):
    config = FAMILIES["llama"]
    start, model, twin = (change(build(config, seed)) for seed in (1, 0, 0))
    expected = plain(twin, copy.deepcopy(start), batch, terms)
    assert_equal_outcomes(run(model, start, batch, terms), expected)
    model.zero_grad()
    assert_equal_outcomes(run(model, start, batch, terms, logits_mib=0), expected)


@pytest.mark.parametrize("name", ["npo", "kl", "rmu", "rmu beside nll", "dpo"])
@pytest.mark.parametrize("checkpointing", ["full", "selective"])
@pytest.mark.parametrize("family", ["llama", "gpt2 tied"])
def test_recomputed_blocks(family, checkpointing, name, batch):
    start, model, twin = build(FAMILIES[family], 1), build(FAMILIES[family]).train(), build(FAMILIES[family])
    expected = plain(twin, copy.deepcopy(start), batch, CASES[name])
    checkpoint_blocks(model, checkpointing)
    assert_equal_outcomes(run(model, start, batch, CASES[name]), expected)


@pytest.fixture(autouse=True)
def _share_every_token(monkeypatch):
    """Rows of tests are short: attention with masks from the first shared token on."""
    monkeypatch.setattr("lit_unlearn.engine.packing.MIN_SHARED", 1)


@every_case
@pytest.mark.parametrize("family", ["llama", "gpt2 tied"])
def test_eager_attention_is_padded_and_the_same(family, terms, batch):
    start, model, twin = (build(FAMILIES[family], seed, "eager") for seed in (1, 0, 0))
    expected = plain(twin, copy.deepcopy(start), batch, terms)
    assert_equal_outcomes(run(model, start, batch, terms), expected)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("name", ["npo", "kl attended", "rmu"])
def test_a_sliding_window_is_padded_and_the_same(name, batch):
    config = MistralConfig(sliding_window=3, num_key_value_heads=2, **SHAPE)
    start, model, twin = build(config, 1), build(config), build(config)
    before = model.config.to_dict()
    assert not take_part(model)
    assert model.config._attn_implementation == "sdpa"
    expected = plain(twin, copy.deepcopy(start), batch, CASES[name])
    assert_equal_outcomes(run(model, start, batch, CASES[name]), expected)
    assert model.config.to_dict() == before


def test_who_takes_part_still_does():
    model = build(FAMILIES["llama"])
    assert [take_part(model), take_part(model), can_pack(model)] == [True] * 3


@pytest.mark.parametrize("logits_mib", [0, 256])
@pytest.mark.parametrize("round_to", [1, 16])
def test_slices_and_rounding_change_nothing(logits_mib, round_to, batch):
    hidden = {"hidden": Term(0.5, objective("rmu", layer=1)), "retained": Term(2.0, objective("hidden_match", layer=0))}
    config, terms = FAMILIES["llama"], CASES["bss"] | CASES["dpo"] | hidden
    start, model, twin = build(config, 1), build(config), build(config)
    expected = plain(twin, copy.deepcopy(start), batch, terms)
    assert_equal_outcomes(run(model, start, batch, terms, logits_mib=logits_mib, round_to=round_to), expected)


@pytest.mark.parametrize("name", ["npo", "kl attended"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_predicts_nothing(attention, name, batch):
    """A row without a prompt: its first token is labelled, and what stands before it is padding or nothing."""
    start, model, other = (build(FAMILIES["llama"], seed, attention) for seed in (1, 0, 0))
    rows = rows_of((HEADER, (20, 1)), ((), (20, 21, 1)), ((), (22, 23, 24, 1)))
    right = batch | {Role.forget: rows, Role.retain: rows}
    left = batch | {role: moved(rows, 1, 3) for role in (Role.forget, Role.retain)}
    expected = run(other, start, right, CASES[name])
    assert_equal_outcomes(run(model, start, left, CASES[name]), expected)
    assert_equal_outcomes(plain(build(FAMILIES["llama"], 0, attention), start, left, CASES[name]), expected)


# What a step costs.


def beginnings(batch: Mapping[Role, Rows], roles: Sequence[Role]) -> set[tuple[int, ...]]:
    rows = [ids for role in roles for ids, _ in sequences(batch[role])]
    return {tuple(ids[:end]) for ids in rows for end in range(1, len(ids) + 1)}


@every_case
def test_one_forward_of_the_distinct_beginnings(terms, batch):
    model, start, shapes = build(FAMILIES["llama"]), build(FAMILIES["llama"], 1), []
    assert can_pack(model)  # which tries it once
    note = lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape))  # noqa: E731
    model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    run(model, start, batch, terms)
    assert shapes == [(1, len(beginnings(batch, list(union_of_needs(terms).policy))))]


@pytest.fixture
def logits_seen(monkeypatch):
    """(positions of each call of a head, logits alive at once after it)."""
    sizes: list[int] = []
    alive: list[int] = []
    living: list[weakref.ref] = []
    call = Head.__call__

    def noting(head: Head, hidden: Tensor) -> Tensor:
        logits = call(head, hidden)
        living.append(weakref.ref(logits.untyped_storage()))
        sizes.append(len(hidden))
        alive.append(sum(storage() is not None for storage in living))
        return logits

    def untried(model: PreTrainedModel) -> bool:
        with monkeypatch.context() as context:
            context.setattr(Head, "__call__", call)
            return can_pack(model)

    monkeypatch.setattr(Head, "__call__", noting)
    monkeypatch.setattr(scoring, "can_pack", untried)
    return sizes, alive


LENGTHS = (3, 9, 1, 0, 14, 40, 2, 11)
"""Answer lengths; 40 alone is above the budgets below."""


def long_batch(make_encoded, roles: Sequence[Role], vocabulary: int = 160) -> dict[Role, Rows]:
    return {role: pad(make_encoded(LENGTHS, seed, vocabulary)) for seed, role in enumerate(roles)}


@pytest.mark.parametrize(("name", "copies"), [("grad_ascent", 1), ("bst", 1), ("kl", LOGITS_COPIES)])
def test_the_head_sees_labelled_positions_within_the_budget(name, copies, make_model, make_encoded, logits_seen):
    model, start, batch = make_model(vocabulary=8192), make_model(1, 8192), long_batch(make_encoded, list(Role)[:2])
    run(model, start, batch, CASES[name], logits_mib=1)
    budget = 2**20 // (4 * 8192)
    few = [3 + 9 + 1 + 0 + 14, 40, 2 + 11]
    assert budget == 32
    forget, retain = logits_seen[0][:3], logits_seen[0][3:]
    assert forget == few
    if copies == 1:
        assert retain == few
    else:  # 5 positions at most, of the policy and of the reference
        assert retain[::2] == retain[1::2] == [3, 9, 1, 14, 40, 2, 11]


def test_a_pair_shares_the_budget(make_model, make_encoded, logits_seen):
    """The reference's positions come first and are gone before the policy's are there."""
    roles = [Role.forget, Role.alternate]
    model, start, batch = make_model(vocabulary=8192), make_model(1, 8192), long_batch(make_encoded, roles)
    run(model, start, batch, {"pair": CASES["dpo"]["pair"]}, logits_mib=1)
    sizes, alive = logits_seen
    slices = [(size, again) for size, again in zip(sizes[::2], sizes[1::2], strict=True)]
    rows = [(13, 13), (14, 14), (40, 40), (13, 13)]
    assert slices == [pair for pair in rows for _ in range(2)]
    assert max(alive) == 2


def test_terms_of_one_role_share_its_logits(make_model, batch, logits_seen):
    """Also through a third term that joins their roles."""
    forget, retain, alternate = (
        (batch[role].labels != -100).sum() for role in (Role.forget, Role.retain, Role.alternate)
    )
    simnpo, alike = Term(1.0, objective("simnpo")), Term(1.0, objective("simnpo", role=Role.alternate))
    known = ScoringEngine(make_model(1)).states(batch, CASES["dpo"]["pair"].objective.needs.reference)
    known = {role: replace(states, head=None, hidden=None) for role, states in known.items()}
    terms = {"forget": simnpo, "alternate": alike, "pair": CASES["dpo"]["pair"], "retain": NLL}
    ScoringEngine(make_model())(batch, terms, known)
    assert sum(logits_seen[0]) == forget + retain + alternate


@pytest.mark.parametrize("name", ["grad_ascent", "npo", "bst"])
def test_the_logits_of_one_role_are_alive_at_once(name, make_model, make_encoded, logits_seen):
    model, start, batch = make_model(vocabulary=8192), make_model(1, 8192), long_batch(make_encoded, list(Role)[:2])
    run(model, start, batch, CASES[name], logits_mib=1)
    assert len(logits_seen[1]) >= 6
    assert max(logits_seen[1]) == 1


class _Held:
    """A tensor that waits for the backward."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def wide_tensors(vocabulary: int) -> list[Tensor]:
    """What the interpreter holds, whoever made it."""
    gc.collect()
    return [found for found in gc.get_objects() if isinstance(found, Tensor) and vocabulary in found.shape]


def held_for_backward(model: PreTrainedModel, start: PreTrainedModel, batch, terms: Terms) -> list[Tensor]:
    """What the graph keeps once the engine has returned, but parameters."""
    with torch.no_grad():
        known = ScoringEngine(start).states(batch, union_of_needs(terms).reference)
    held: list[weakref.ref] = []
    vocabulary = model.config.vocab_size
    before = wide_tensors(vocabulary)

    def pack(tensor: Tensor) -> _Held:
        holder = _Held(tensor.detach())  # the tensor itself would hold the graph that holds it
        held.append(weakref.ref(holder))
        return holder

    with saved_tensors_hooks(pack, lambda holder: holder.tensor):
        step = ScoringEngine(model)(batch, terms, known)
    gc.collect()
    own = {weight.data_ptr() for weight in (*model.parameters(), *start.parameters())}
    tensors = [holder.tensor for holder in (reference() for reference in held) if holder is not None]
    kept = {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors if tensor.data_ptr() not in own}
    new = [tensor for tensor in wide_tensors(vocabulary) if not any(tensor is old for old in before)]
    wide = [tensor.shape for tensor in new if tensor.data_ptr() not in own]
    assert wide in ([], [model.lm_head.weight.shape]), "but the gradient of the head itself"
    assert step.loss.requires_grad
    return list(kept.values())


@pytest.mark.parametrize("name", ["grad_ascent", "npo", "bst", "kl", "kl attended", "rmu", "dpo"])
def test_nothing_of_the_vocabulary_s_size_waits_for_the_backward(name, make_model, batch):
    sizes = []
    for vocabulary in (163, 1630):
        models = make_model(vocabulary=vocabulary), make_model(1, vocabulary)
        tensors = held_for_backward(*models, batch, CASES[name])
        assert all(vocabulary not in tensor.shape for tensor in tensors)
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in tensors))
    assert sizes[0] == sizes[1] > 0


def added(own_shape, left_shape, right_shape, out_shape=None, **kwargs) -> int:
    return mm_flop(left_shape, right_shape)


@pytest.mark.parametrize("trainable", [True, False])
def test_products_of_the_head(trainable, make_model, batch):
    """6 N V D with a head that learns, 4 N V D with a frozen one, 2 N V D without gradients."""
    terms, counts = CASES["grad_ascent"], {}
    positions = int(sum((batch[role].labels != -100).sum() for role in (Role.forget, Role.retain)))
    for vocabulary in (160, 1160):
        model = make_model(vocabulary=vocabulary)
        model.lm_head.requires_grad_(trainable)
        assert can_pack(model)  # which tries it once
        with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added}) as step:
            ScoringEngine(model)(batch, terms, {}).loss.backward()
        with FlopCounterMode(display=False) as value, torch.no_grad():
            ScoringEngine(model)(batch, terms, {})
        assert (model.lm_head.weight.grad is not None) == trainable
        counts[vocabulary] = step.get_total_flops(), value.get_total_flops()
    step, value = (more - less for more, less in zip(counts[1160], counts[160], strict=True))
    assert step == (6 if trainable else 4) * positions * 1000 * 32
    assert value == 2 * positions * 1000 * 32


# What it refuses, and parts of a loss.


@dataclass(frozen=True)
class Unsteady:
    """Weights that follow the numbers, which no slice may do."""

    needs = Needs({Role.forget: Ask()})

    def __call__(self, policy, reference) -> Loss:
        values = policy[Role.forget].sequence_logps
        return Loss(values, 1.0 + values.detach().square())


def test_weights_that_depend_on_values_are_refused(policy, batch):
    terms = {"plain": Term(1.0, objective("grad_ascent")), "unsteady": Term(1.0, Unsteady())}
    with pytest.raises(ValueError, match="term unsteady: the weights"):
        ScoringEngine(policy)(batch, terms, {})


def test_roles_that_do_not_pair_are_refused(policy, reference, batch):
    few = batch | {Role.alternate: batch[Role.retain]}
    known = ScoringEngine(reference).states(few, CASES["dpo"]["pair"].objective.needs.reference)
    with pytest.raises(ValueError, match=r"\[3, 5\] rows"):
        ScoringEngine(policy)(few, {"pair": CASES["dpo"]["pair"]}, known)


def test_a_gradient_can_be_taken_once(policy, batch):
    step = ScoringEngine(policy)(batch, CASES["grad_ascent"], {})
    step.loss.backward(retain_graph=True)
    before = {name: gradient.clone() for name, gradient in gradients_of(policy).items()}
    with pytest.raises(RuntimeError, match="can be taken once"):
        step.loss.backward()
    assert all(torch.equal(gradient, before[name]) for name, gradient in gradients_of(policy).items())


def test_a_gradient_follows_the_factor_of_the_loss(make_model, batch):
    models = make_model(), make_model()
    for model, factor in zip(models, (1.0, -0.25), strict=True):
        (factor * ScoringEngine(model)(batch, CASES["grad_ascent"], {}).loss).backward()
    once, scaled = map(gradients_of, models)
    assert_same(scaled, {name: -0.25 * gradient for name, gradient in once.items()})


@pytest.mark.parametrize(
    ("name", "apart"),
    [
        ("bss", ["forget"]),
        ("bss", ["belief", "retain"]),
        ("bss", ["forget", "belief", "retain"]),
        ("two terms of one role", ["belief"]),
        ("rmu beside nll", ["retain"]),
        ("rmu", ["forget"]),
    ],
)
@pytest.mark.parametrize("head", [lambda model: model, with_bias], ids=["plain head", "head with bias"])
def test_terms_apart(name, apart, head, make_model, batch):
    """As under GRU: the gradient of the terms apart, then that of all, each weight's once."""
    make = lambda seed=0: head(make_model(seed))  # noqa: E731
    start, terms = make(1), CASES[name]
    with torch.no_grad():
        known = ScoringEngine(start).states(batch, union_of_needs(terms).reference)
    whole, part = make(), make()
    expected = ScoringEngine(whole)(batch, terms, known)
    expected.loss.backward()
    alone = ScoringEngine(part)(batch, {term: terms[term] for term in apart}, known)
    alone.loss.backward()

    model = make()
    step = ScoringEngine(model)(batch, terms, known, apart=apart)
    assert expected.apart is None
    assert step.apart is not None
    assert step.losses == pytest.approx(expected.losses)
    assert step.stats == pytest.approx(expected.stats)
    assert step.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
    assert step.apart.item() == pytest.approx(alone.loss.item(), rel=1e-6)
    rest = sum(term.weight * step.losses[key] for key, term in terms.items() if key not in apart)
    assert step.loss.item() == pytest.approx(step.apart.item() + rest, rel=1e-5)
    names, weights = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(step.apart, weights, retain_graph=True, allow_unused=True)
    assert_same({key: g for key, g in zip(names, found, strict=True) if g is not None}, gradients_of(part))
    step.loss.backward()
    assert_same(gradients_of(model), gradients_of(whole))


def test_other_weights_take_the_place_of_the_terms_own(make_model, batch):
    terms, model, other = CASES["grad_ascent"], make_model(), make_model()
    weights = {"forget": 0.0, "retain": 2.0}
    step = ScoringEngine(model)(batch, terms, {}, weights)
    step.loss.backward()
    ScoringEngine(other)(batch, {"retain": Term(2.0, objective("nll"))}, {}).loss.backward()
    assert step.loss.item() == pytest.approx(2.0 * step.losses["retain"])
    assert step.losses.keys() == terms.keys()
    assert_same(gradients_of(model), gradients_of(other))


@every_case
def test_no_gradient_is_formed_where_none_is_wanted(terms, make_model, batch):
    model, start = make_model(), make_model(1)
    with torch.no_grad():
        known = ScoringEngine(start).states(batch, union_of_needs(terms).reference)
        found = ScoringEngine(model)(batch, terms, known)
    expected = ScoringEngine(model)(batch, terms, known)
    assert not found.loss.requires_grad
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
    assert (found.losses, found.stats) == (pytest.approx(expected.losses), pytest.approx(expected.stats))
    assert not gradients_of(model)


def test_a_term_without_any_label_adds_nothing(make_model, batch):
    empty = replace(batch[Role.forget], labels=torch.full_like(batch[Role.forget].labels, -100))
    model, other = make_model(), make_model()
    step = ScoringEngine(model)(batch | {Role.forget: empty}, CASES["grad_ascent"], {})
    step.loss.backward()
    ScoringEngine(other)(batch, {"retain": NLL}, {}).loss.backward()
    assert step.losses["forget"] == 0.0
    assert_same(gradients_of(model), gradients_of(other))
