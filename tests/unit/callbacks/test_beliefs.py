"""BS-S: beliefs of every prompt, met by example id, drawn evenly, the same for any ranks, and kept by a checkpoint."""

from collections import Counter
from dataclasses import replace

import lightning as L
import pytest
import torch

from lit_unlearn.callbacks import belief_sampler
from lit_unlearn.callbacks.belief_sampler import BeliefSampler
from lit_unlearn.callbacks.settings import BeliefConfig
from lit_unlearn.data.beliefs import Belief, BeliefStore
from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.data.tokenize import pad
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.objectives import OBJECTIVES
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.training.settings import OptimConfig
from lit_unlearn.types import Role, Term

BST, NPO = OBJECTIVES["bst"], OBJECTIVES["npo"]
NUM_ROWS, LENGTHS = 6, (5, 1, 9, 3, 4, 7)
EVERY = list(range(NUM_ROWS))


class Run:
    """A small BS-S run; the prompts of every refresh are noted."""

    def __init__(self, terms, config, engine, rows, end, fit, reference=None, keep_text=True) -> None:
        self.store = BeliefStore(config.per_step)
        self.data = UnlearnData({Role.forget: rows}, 2, seed=0, store=self.store)
        self.module = UnlearnModule(engine, terms, OptimConfig(lr=1e-3, warmup_epochs=0), reference)
        self.sampler = BeliefSampler(self.store, self.data, config, end, 0, keep_text)
        self.fit = lambda *callbacks, **options: fit(self.module, self.data, [self.sampler, *callbacks], **options)


@pytest.fixture
def refreshes(monkeypatch) -> list[list[tuple]]:
    """Prompts of each call of generate; the answers are real."""
    calls, generate = [], belief_sampler.generate

    def counted(model, prompts, *rest):
        calls.append([prompt.ids for prompt in prompts])
        return generate(model, prompts, *rest)

    monkeypatch.setattr(belief_sampler, "generate", counted)
    return calls


@pytest.fixture
def make_run(make_model, make_encoded, make_end, fit, refreshes):
    def make(terms=None, reference=None, ids_from=100, keep_text=True, **config) -> Run:
        terms = terms or {"forget": Term(0.5, BST()), "belief": Term(0.5, BST(role=Role.belief))}
        settings = BeliefConfig(**{"num_samples": 2, "max_new_tokens": 6, "batch_size": 4, **config})
        rows = make_encoded(LENGTHS, first_id=ids_from)
        return Run(terms, settings, ScoringEngine(make_model()), rows, make_end(1, 2, 3, 4), fit, reference, keep_text)

    return make


def test_weight_zero_is_the_base_loss(make_run, make_model, make_encoded, fit, refreshes):
    base_terms = {"forget": Term(1.0, BST())}
    module = UnlearnModule(ScoringEngine(make_model()), base_terms, OptimConfig(lr=1e-3, warmup_epochs=0))
    base = fit(module, UnlearnData({Role.forget: make_encoded(LENGTHS)}, 2, 0), max_epochs=2)
    assert not refreshes  # no term reads beliefs: nothing is generated
    zero = make_run({**base_terms, "belief": Term(0.0, BST(role=Role.belief))}).fit(max_epochs=2)
    assert [step["train/loss"] for step in zero] == pytest.approx([step["train/loss"] for step in base], rel=1e-5)


def test_weights_make_the_loss(make_run):
    terms = {"forget": Term(0.7, BST()), "belief": Term(0.3, BST(role=Role.belief))}
    for step in make_run(terms).fit(max_epochs=1):
        assert step["train/loss"] == pytest.approx(0.7 * step["train/forget_loss"] + 0.3 * step["train/belief_loss"])
        assert abs(step["train/belief_loss"] - step["train/forget_loss"]) > 1e-3


def test_a_refresh_covers_every_prompt_by_id(make_run, refreshes):
    run = make_run()
    run.fit(max_epochs=1)  # author bug: only the micro-batch that triggered the refresh was cached
    assert set(run.store.beliefs) == set(range(100, 100 + NUM_ROWS))
    prompts = {row.id: row.prompt for row in run.data.rows[Role.forget]}
    assert Counter(refreshes[0]) == dict.fromkeys(prompts.values(), 2)
    for row in run.store.draw(run.data.rows[Role.forget][::-1], 3):
        assert row.prompt == prompts[row.id]
        assert row.answer in [belief.tokens for belief in run.store.beliefs[row.id]] or row.weight == 0


@pytest.mark.parametrize(
    ("config", "epochs", "sampled_before_steps"),
    [
        ({"every_n_epochs": 2}, 5, [0, 6, 12]),
        ({"every_n_epochs": 1}, 3, [0, 3, 6]),
        ({"every_n_epochs": None}, 4, [0]),  # off-policy
        ({"every_n_epochs": None, "every_n_steps": 2}, 3, [0, 2, 4, 6, 8]),
        ({"every_n_epochs": None, "every_n_steps": 4}, 3, [0, 4, 8]),
        ({"every_n_epochs": None, "every_n_steps": 3}, 2, [0, 3]),
    ],
)
def test_refresh_schedule(make_run, refreshes, config, epochs, sampled_before_steps):
    """Three steps an epoch. Each window's prompts are sampled before it, exactly those."""
    run, seen = make_run(**config), []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append((len(refreshes), [run.data.rows[Role.forget][i - 100] for i in batch[Role.forget].example_id]))

    run.fit(Watch(), max_epochs=epochs)
    assert run.store.rounds == len(refreshes) == len(sampled_before_steps)
    assert [before for before, _ in seen] == [
        sum(at <= step for at in sampled_before_steps) for step in range(len(seen))
    ]
    if "every_n_steps" in config:
        for number, prompts in enumerate(refreshes[:-1], 1):  # the last window runs on past the end
            window = {row.prompt for before, rows in seen for row in rows if before == number}
            assert set(prompts) == window


def test_empties_and_duplicates_are_dropped_and_counted(make_run, tokenizer, monkeypatch):
    run, logged = make_run(num_samples=6), {}
    (blank,) = tokenizer(" ")["input_ids"]
    samples = [(7, 8, 1), (1,), (7, 8, 1), (), (9, 1), (blank, 1)]  # three say nothing, one is repeated
    monkeypatch.setattr(belief_sampler, "generate", lambda model, prompts, *rest: samples * (len(prompts) // 6))
    monkeypatch.setattr(UnlearnModule, "loggers", property(lambda self: [self]))
    monkeypatch.setattr(UnlearnModule, "log_metrics", lambda self, stats, step: logged.update(stats), raising=False)
    run.fit(max_epochs=1, max_steps=1)
    assert all([b.tokens for b in beliefs] == [(7, 8, 1), (9, 1)] for beliefs in run.store.beliefs.values())
    kept = {name: logged[f"beliefs/{name}"] for name in ("kept", "empty", "duplicates", "mean_tokens")}
    assert kept == {"kept": 2 * NUM_ROWS, "empty": 3 * NUM_ROWS, "duplicates": NUM_ROWS, "mean_tokens": 2.5}


@pytest.mark.parametrize("drop", [False, True])
def test_samples_that_say_the_true_answer_are_counted_and_dropped_if_asked(make_run, monkeypatch, drop):
    """Whichever token ends them; a prompt that only has such samples goes without weight."""
    run, logged = make_run(num_samples=3, drop_targets=drop, per_step="all"), {}
    rows = run.data.rows[Role.forget]
    kinds = {row.prompt: [row.answer, (*row.answer[:-1], 2), (9, 1) if row.id > 101 else row.answer] for row in rows}
    mute = next(row for row in rows if len(row.answer) == 1)  # its true answer says nothing: such samples are empty
    monkeypatch.setattr(
        belief_sampler, "generate", lambda model, prompts, *rest: [s for p in prompts[::3] for s in kinds[p.ids]]
    )
    monkeypatch.setattr(UnlearnModule, "loggers", property(lambda self: [self]))
    monkeypatch.setattr(UnlearnModule, "log_metrics", lambda self, stats, step: logged.update(stats), raising=False)
    steps = run.fit(max_epochs=1)
    assert mute.id == 101
    assert logged["beliefs/target_share"] == pytest.approx((3 + 4 * 2) / 18)
    assert logged["beliefs/empty"] == 3
    of_first, of_last = run.store.beliefs[100], run.store.beliefs[105]
    assert len(of_first) == (0 if drop else 2)
    assert [belief.tokens for belief in of_last] == ([(9, 1)] if drop else kinds[rows[5].prompt])
    assert logged["beliefs/duplicates"] == (0 if drop else 1)
    weights = {row.id: row.weight for row in run.store.draw(rows, 0)}
    assert (weights[100], weights[105]) == ((0, 1) if drop else (1 / 2, 1 / 3))
    assert all(torch.isfinite(torch.tensor(step["train/belief_loss"])) for step in steps)


def test_one_is_drawn_uniformly_whatever_the_ranks(make_encoded):
    rows = make_encoded(LENGTHS)
    store = BeliefStore("one", 0, {row.id: [Belief((7 + i, 1), 0.0) for i in range(3)] for row in rows})
    counts = Counter(drawn.answer[0] for step in range(500) for drawn in store.draw(rows, step))
    expected = 500 * NUM_ROWS / 3
    assert sum((counts[token] - expected) ** 2 / expected for token in (7, 8, 9)) < 13.8  # chi-square, p = .001
    for step in range(20):
        together = {drawn.id: drawn for drawn in store.draw(rows, step)}
        assert {d.id: d for part in (rows[0::2], rows[1::2]) for d in store.draw(part, step)} == together
        assert all(drawn.weight == 1 for drawn in together.values())
    draws = [tuple(drawn.answer for drawn in store.draw(rows, step)) for step in range(20)]
    assert len(set(draws)) > 10
    assert any(len(set(draw)) > 1 for draw in draws)


def test_all_is_the_mean_over_prompts_of_the_mean_over_samples(policy, make_encoded):
    first, second, third = make_encoded((3, 3, 3))
    beliefs = {0: [Belief((7, 8, 1), 0.0)], 1: [Belief((i, 9, 1), 0.0) for i in (5, 6, 7)], 2: []}
    drawn = BeliefStore("all", 0, beliefs).draw([first, second, third], 0)
    assert [(row.id, row.weight) for row in drawn] == [(0, 1), *[(1, 1 / 3)] * 3, (2, 0)]
    objective, engine = BST(role=Role.belief), ScoringEngine(policy)
    value = lambda rows: engine({Role.belief: pad(rows)}, {"b": Term(1.0, objective)}, {}).losses["b"]  # noqa: E731
    means = [value([row]) for row in drawn[:4]]
    assert value(drawn) == pytest.approx((means[0] + sum(means[1:]) / 3) / 2, rel=1e-5)


def test_modes_and_random_state_survive_a_refresh(make_run):
    run = make_run()
    run.module.engine.model.base_model.layers[0].eval()
    run.fit(max_epochs=1)
    modes = [m.training for m in run.module.modules()]
    assert len(set(modes)) == 2
    before = torch.random.get_rng_state()
    run.sampler._refresh(run.module, [0, 1])
    assert [m.training for m in run.module.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), before)


def test_each_refresh_draws_anew_from_a_policy_that_stays(make_run):
    run = make_run(num_samples=4)
    run.fit(max_epochs=1)
    found = []
    for round in (1, 2, 1):  # the number of refreshes so far names the stream
        run.store.rounds = round
        run.sampler._refresh(run.module, EVERY)
        found.append({id: [belief.tokens for belief in beliefs] for id, beliefs in run.store.beliefs.items()})
    first, second, again = found
    assert again == first
    assert all(set(first[id]) != set(second[id]) for id in first)


@pytest.mark.parametrize("with_reference", [False, True])
def test_state_survives_torch_save(make_run, reference, tmp_path, with_reference):
    start = ScoringEngine(reference) if with_reference else None
    objective = NPO(role=Role.belief) if with_reference else BST(role=Role.belief)
    run = make_run({"forget": Term(0.5, BST()), "belief": Term(0.5, objective)}, start)
    run.fit(max_epochs=1)
    torch.save(run.sampler.state_dict(), tmp_path / "state.pt")
    other = make_run()
    other.sampler.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.store.beliefs == run.store.beliefs
    assert other.store.rounds == run.store.rounds == 1
    kept = [belief for beliefs in other.store.beliefs.values() for belief in beliefs]
    assert len(kept) >= NUM_ROWS
    for belief in kept:
        assert belief.logp < 0
        assert (belief.reference_logps is None) != with_reference
        assert not with_reference or len(belief.reference_logps or ()) == len(belief.tokens)


def test_reference_scores_of_beliefs_are_the_references(make_run, reference):
    run = make_run({"belief": Term(1.0, NPO(role=Role.belief))}, ScoringEngine(reference), per_step="all")
    run.fit(max_epochs=1, max_steps=1)
    rows = [row for row in run.store.draw(run.data.rows[Role.forget], 0) if row.answer]
    theirs = reference(**{k: getattr(pad(rows), k) for k in ("input_ids", "attention_mask")}).logits.log_softmax(-1)
    for index, row in enumerate(rows):
        at = torch.arange(len(row.answer)) + len(row.prompt) - 1
        expected = theirs[index, at, torch.tensor(row.answer)]
        torch.testing.assert_close(torch.tensor(row.reference_logps), expected, rtol=1e-4, atol=1e-4)


def resumed(make_run, state: dict, first_epoch: int, **config) -> Run:
    """A run whose sampler is given ``state`` where Lightning loads a checkpoint, and which begins at a later epoch."""
    run = make_run(keep_text=False, **config)

    class Checkpoint(L.Callback):
        def on_fit_start(self, trainer, pl_module) -> None:
            run.sampler.load_state_dict(state)

        def on_train_start(self, trainer, pl_module) -> None:
            trainer.fit_loop.epoch_progress.current.processed = first_epoch  # type: ignore[attr-defined]
            trainer.fit_loop.epoch_progress.current.completed = first_epoch

    run.fit(Checkpoint(), max_epochs=first_epoch + 1)
    return run


@pytest.mark.parametrize(
    ("config", "first_epoch", "anew"),
    [
        ({"every_n_epochs": 1}, 1, True),
        ({"every_n_epochs": 2}, 1, True),
        ({"every_n_epochs": None, "every_n_steps": 2}, 1, True),
        ({"every_n_epochs": None}, 1, False),
    ],
)
def test_without_text_no_belief_is_in_a_checkpoint(make_run, refreshes, caplog, config, first_epoch, anew):
    """All prompts have beliefs again before a step meets them; those of a run that samples once are the same."""
    run = make_run(keep_text=False, **config)
    run.fit(max_epochs=1)
    state = run.sampler.state_dict()
    assert state == {"rounds": run.store.rounds}
    assert not caplog.text
    refreshes.clear()
    again = resumed(make_run, state, first_epoch, **config)
    assert again.store.beliefs.keys() == run.store.beliefs.keys() == set(range(100, 100 + NUM_ROWS))
    assert ("beliefs are sampled anew" in caplog.text) == anew
    assert again.store.rounds > run.store.rounds if anew else again.store.beliefs == run.store.beliefs
    assert len(refreshes[0]) == 2 * (4 if "every_n_steps" in config else NUM_ROWS)


def by_prompt(run: Run, refreshes: list[list[tuple]]) -> list[set[int]]:
    """Ids of the prompts of each refresh."""
    ids = {row.prompt: row.id for row in run.data.rows[Role.forget]}
    return [{ids[prompt] for prompt in prompts} for prompts in refreshes]


def test_only_stale_beliefs_are_sampled_again(make_run, refreshes, monkeypatch):
    """A policy that stays keeps its beliefs; one that moves loses those it has moved away from."""
    logged: list[float] = []
    monkeypatch.setattr(UnlearnModule, "loggers", property(lambda self: [self]))
    note = lambda self, stats, step: logged.append(stats["beliefs/refreshed"])  # noqa: E731
    monkeypatch.setattr(UnlearnModule, "log_metrics", note, raising=False)
    run = make_run(every_n_epochs=1, stale_after=0.3)
    run.fit(max_epochs=1)
    run.sampler._refresh(run.module, EVERY)
    first = {id: list(beliefs) for id, beliefs in run.store.beliefs.items()}
    run.sampler._refresh(run.module, EVERY)  # nothing has moved
    assert run.store.beliefs == first
    assert by_prompt(run, refreshes)[-1] == set()

    assert len(run.store.beliefs[101]) == len(run.store.beliefs[102]) == 2
    for id, place, change in ((101, 0, 0.4), (102, 1, 0.4), (100, 0, 0.2), (103, 0, -5.0)):
        sampled = run.store.beliefs[id][place]  # as if by a policy that was surer by so many nats
        run.store.beliefs[id][place] = replace(sampled, logp=sampled.logp + change)
    run.store.beliefs[104] = []
    before = {id: list(beliefs) for id, beliefs in run.store.beliefs.items()}
    run.sampler._refresh(run.module, EVERY)
    assert by_prompt(run, refreshes)[-1] == {101, 102, 104}
    assert {id for id in before if run.store.beliefs[id] != before[id]} == {101, 102, 104}
    assert logged[-2:] == [0.0, 3.0]
    assert run.store.rounds == 4

    with torch.no_grad():  # a real move
        run.module.engine.model.get_output_embeddings().weight.mul_(-1)
    run.sampler._refresh(run.module, EVERY)
    assert by_prompt(run, refreshes)[-1] == set(before)


def test_a_fit_samples_stale_prompts_only(make_run, refreshes):
    run = make_run(every_n_epochs=1, stale_after=0.05)
    run.fit(max_epochs=4)
    counts = [len(ids) for ids in by_prompt(run, refreshes)]
    assert run.store.rounds == len(counts) == 4
    assert counts[0] == NUM_ROWS
    assert 0 < sum(counts[1:]) < 3 * NUM_ROWS
    assert set(run.store.beliefs) == set(range(100, 100 + NUM_ROWS))


@pytest.mark.parametrize(
    "fields",
    [
        {"stale_after": 0},
        {"stale_after": 0.5, "every_n_epochs": None},
        {"every_n_steps": 1},
        {"num_samples": 0},
        {"every_n_epochs": 0},
        {"temperature": 0},
        {"top_p": 0},
        {"top_p": 1.1},
    ],
)
def test_wrong_fields_are_refused(fields):
    with pytest.raises(ValueError, match=r"must|exclude"):
        BeliefConfig(**fields)
