"""Schedules in real fits: what they set is checked against arithmetic by hand, and survives a checkpoint."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch

from lit_unlearn.callbacks.schedules import SCHEDULES
from lit_unlearn.callbacks.schedules.anneal import Anneal
from lit_unlearn.callbacks.schedules.dual_weight import DualWeight
from lit_unlearn.callbacks.schedules.gradient_rectification import GradientRectification
from lit_unlearn.callbacks.schedules.retain_selection import RetainSelection
from lit_unlearn.config.schema import Config, TermConfig
from lit_unlearn.config.terms import build_terms
from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.engine.answers import score_answers
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.errors import UserError
from lit_unlearn.objectives import OBJECTIVES
from lit_unlearn.run.prepare import build_schedules
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.training.settings import OptimConfig, TrainerConfig
from lit_unlearn.types import Role, Term

GOLDEN = Path(__file__).parents[2] / "golden" / "objectives" / "expected.json"
PER_EPOCH = 2  # six forget rows in batches of four
GA, NLL = OBJECTIVES["grad_ascent"](), OBJECTIVES["nll"]()


class Sgd(UnlearnModule):
    """theta <- theta - 0.01 gradient, so that two weights differ by the gradient."""

    def configure_optimizers(self):
        return torch.optim.SGD([weight for weight in self.parameters() if weight.requires_grad], lr=0.01)


class Watch(L.Callback):
    """The gradient of each step as the optimizer sees it, and the weights of the retain rows."""

    def __init__(self) -> None:
        self.grads: list[dict[str, torch.Tensor]] = []
        self.rows: list[list[float]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.rows.append(batch[Role.retain].weight.tolist())

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.grads.append({name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None})


@pytest.fixture
def splits(make_encoded):
    return lambda: {
        Role.forget: make_encoded((5, 1, 9, 3, 4, 7)),
        Role.retain: make_encoded((2, 8, 3, 6), seed=1, first_id=40),
    }


@pytest.fixture
def run(policy, splits, fit):
    """(logged steps, module, data) of a fit from the same start each time."""

    def go(*callbacks: L.Callback, forget=GA, retain=NLL, weight=1.0, rows=None, epochs=3, **options):
        terms = {"forget": Term(1.0, forget), "retain": Term(weight, retain)}
        module = Sgd(ScoringEngine(copy.deepcopy(policy)), terms, OptimConfig())
        data = UnlearnData(rows or splits(), 4, seed=0)
        return fit(module, data, callbacks, max_epochs=epochs, **options), module, data

    return go


def column(steps: list[dict[str, float]], name: str) -> list[float]:
    return [step[f"train/{name}"] for step in steps]


def through_disk(callback: L.Callback, path: Path) -> dict:
    torch.save(callback.state_dict(), path)
    return torch.load(path, weights_only=True)


class Keep(L.Callback):
    """Keeps a checkpoint of one epoch's end."""

    def __init__(self, path: Path, epoch: int) -> None:
        self.path, self.epoch = path, epoch

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)


# DualWeight


def test_dual_weight_moves_after_every_step(run):
    steps, module, _ = run(DualWeight(step_size=0.5), retain=OBJECTIVES["constraint_nll"](eps=0.3), weight=2.0)
    weights, losses = column(steps, "retain_weight"), column(steps, "retain_loss")
    assert weights[0] == 2.0
    assert weights[1:] == pytest.approx([w + 0.5 * loss for w, loss in zip(weights[:-1], losses[:-1], strict=True)])
    assert losses[0] > 0.3  # it did move
    assert module.weights["retain"] == pytest.approx(weights[-1] + 0.5 * losses[-1])
    total = [w * r + f for w, r, f in zip(weights, losses, column(steps, "forget_loss"), strict=True)]
    assert column(steps, "loss") == pytest.approx(total, rel=1e-5)


def test_dual_weight_is_never_negative(run):
    steps, module, _ = run(DualWeight(), retain=OBJECTIVES["constraint_nll"](eps=50.0), epochs=1)
    assert column(steps, "retain_weight") == [1.0, 0.0]
    assert module.weights["retain"] == 0.0


def test_dual_weight_of_an_epoch_after_warm_up(run):
    steps, module, _ = run(DualWeight(warmup_epochs=1, every="epoch"), retain=OBJECTIVES["constraint_nll"](eps=0.3))
    losses = column(steps, "retain_loss")
    second = 1.0 + (losses[2] + losses[3]) / 2
    assert column(steps, "retain_weight") == pytest.approx([1, 1, 1, 1, second, second])
    assert module.weights["retain"] == pytest.approx(second + (losses[4] + losses[5]) / 2)


def test_dual_step_of_the_recorded_case(fit, policy):
    """PDU's corrected case: R = 0.536, eps = 0.3, lambda 1 -> 1.236."""
    cases = {case["name"]: case for case in json.loads(GOLDEN.read_text())["cases"]}
    expected, dual = cases["pdu_corrected"], DualWeight(step_size=1.0)
    module = UnlearnModule(ScoringEngine(policy), {"retain": Term(expected["kwargs"]["alpha"], NLL)}, OptimConfig())
    constraint = expected["retain_loss"] - expected["kwargs"]["retain_loss_eps"]
    trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", barebones=True)
    trainer._logger_connector._callback_metrics = {"train/retain_loss": torch.tensor(constraint, dtype=torch.float64)}
    dual.on_fit_start(trainer, module)
    dual.on_train_batch_end(trainer, module, None, None, 0)
    assert module.weights["retain"] == pytest.approx(expected["extra"]["dual_after_step"], rel=1e-9)


# Anneal


def test_anneal_is_the_formula_at_each_step(run):
    """k = 0.6, t0 = 1, T = 3 epochs of two steps: 0.6 (2 - t) / 3, then nothing."""
    steps, _, _ = run(Anneal(k=0.6, offset_epochs=1.0))
    assert column(steps, "forget_weight") == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0, 0.0])
    total = [
        w * f + r
        for w, f, r in zip(
            *(column(steps, name) for name in ("forget_weight", "forget_loss", "retain_loss")), strict=True
        )
    ]
    assert column(steps, "loss") == pytest.approx(total, rel=1e-5)


def test_anneal_over_its_own_number_of_epochs(run):
    steps, _, _ = run(Anneal(k=1.0, total_epochs=2, term="retain"))
    assert column(steps, "retain_weight") == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0, 0.0])
    steps, _, _ = run(Anneal(k=1.0), epochs=10, max_steps=4)  # the run's length is what it really has
    assert column(steps, "forget_weight") == pytest.approx([1.0, 0.75, 0.5, 0.25])


# RetainSelection


def influences(policy, module, rows) -> dict[int, float]:
    mean = lambda engine: [answer.mean_logp for answer in score_answers(engine, rows, 2)]  # noqa: E731
    before, after = mean(ScoringEngine(policy)), mean(module.engine)
    return {row.id: abs(b - a) for row, b, a in zip(rows, before, after, strict=True)}


@pytest.fixture
def moved(run, policy, splits) -> dict[int, float]:
    """I_con of each retain row after one epoch in which retain rows count for nothing."""
    _, module, _ = run(weight=0.0, epochs=1)
    found = influences(policy, module, splits()[Role.retain])
    assert len(set(found.values())) == 4
    return found


def test_selection_keeps_the_rows_that_moved_least(run, moved):
    watch, selection = Watch(), RetainSelection(keep_fraction=0.5)
    steps, _, data = run(watch, selection)
    least = sorted(sorted(moved, key=lambda id: moved[id])[:2])
    assert selection.kept == least
    assert {row.id: row.weight for row in data.rows[Role.retain]} == {id: float(id in least) for id in moved}
    first, later = watch.rows[:PER_EPOCH], watch.rows[PER_EPOCH:]
    assert {weight for weights in first for weight in weights} == {0.0}
    assert {weight for weights in later for weight in weights} == {0.0, 1.0}  # from the first step of epoch t1
    assert sum(watch.rows[PER_EPOCH]) > 0
    assert column(steps, "retain_loss")[:PER_EPOCH] == [0.0, 0.0]


def test_selection_by_influence_respects_the_rows_own_weights(run, moved, splits):
    bound = sum(sorted(moved.values())[2:]) / 2  # between the third and the fourth
    rows = splits()
    rows[Role.retain] = [replace(row, weight=0.25) for row in rows[Role.retain]]
    selection = RetainSelection(max_influence=bound)
    _, _, data = run(selection, rows=rows)
    expected = {id: 0.25 * (value < bound) for id, value in moved.items()}
    assert sorted(expected.values()) == [0.0, 0.25, 0.25, 0.25]
    assert {row.id: row.weight for row in data.rows[Role.retain]} == expected


def test_ties_go_to_the_lower_id():
    assert RetainSelection(keep_fraction=0.5).choose({7: 0.0, 3: 0.0, 5: 0.0, 1: 1.0}) == [3, 5]
    assert RetainSelection(keep_fraction=0.01).choose({7: 0.0, 3: 0.5}) == [7]


# GradientRectification


def parts(run, *callbacks, **options):
    """g_f and g_r of the first step, from two fits in which the other term weighs nothing."""
    found = []
    for name in ("forget", "retain"):
        watch, options_ = Watch(), {"epochs": 1, **options}
        other = Anneal(k=1e-30, term="retain" if name == "forget" else "forget")
        run(other, watch, **options_)
        found.append(watch.grads[0])
    return found


def dot(left, right) -> float:
    return sum((left[name].double() * right[name].double()).sum().item() for name in right)


def test_conflicting_gradient_is_made_orthogonal(run, splits):
    rows = splits()
    shared = {Role.forget: rows[Role.forget], Role.retain: [*rows[Role.forget][:4], *rows[Role.retain]]}
    g_f, g_r = parts(run, rows=shared)
    assert dot(g_f, g_r) < 0
    for update in ("forget", "total"):
        watch, gru = Watch(), GradientRectification(update=update)
        steps, _, _ = run(gru, watch, rows=shared, epochs=1)
        scale = dot(g_f, g_r) / dot(g_r, g_r)
        for name, grad in watch.grads[0].items():
            expected = g_f[name] - scale * g_r[name] + (g_r[name] if update == "total" else 0)
            torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-4)
        rectified = watch.grads[0]
        if update == "total":
            rectified = {name: grad - g_r[name] for name, grad in rectified.items()}
        size = (dot(rectified, rectified) * dot(g_r, g_r)) ** 0.5
        assert abs(dot(rectified, g_r)) < 1e-5 * size
        assert steps[0]["train/gru_projected"] == 1.0
        cosine = dot(g_f, g_r) / (dot(g_f, g_f) * dot(g_r, g_r)) ** 0.5
        assert steps[0]["train/gru_cosine"] == pytest.approx(cosine, rel=1e-4)
        assert cosine < -0.01


def test_without_conflict_nothing_is_touched(run):
    """Descent on the very rows that are retained: both gradients point the same way."""
    both = {"forget": NLL, "retain": NLL}
    plain, ours = Watch(), Watch()
    _, module, _ = run(plain, **both)
    steps, rectified, _ = run(GradientRectification(), ours, **both)
    assert column(steps, "gru_projected") == [0.0] * 6
    assert min(column(steps, "gru_cosine")) > 0.5
    for left, right in zip(plain.grads, ours.grads, strict=True):
        assert all(torch.equal(left[name], right[name]) for name in left)
    for left, right in zip(module.parameters(), rectified.parameters(), strict=True):
        assert torch.equal(left, right)


def test_mean_of_the_retain_gradient_is_the_recursion(run):
    """m_1 = gamma g_1, m_2 = (1 - gamma) m_1 + gamma g_2."""

    class Means(L.Callback):
        def __init__(self, gru) -> None:
            self.gru, self.seen, self.retain = gru, [], []

        def on_after_backward(self, trainer, pl_module) -> None:
            grads = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}
            self.retain.append({name: grad - self.gru.forget_grads[name] for name, grad in grads.items()})

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            self.seen.append({name: mean.clone() for name, mean in self.gru.mean.items()})

    gru = GradientRectification(gamma=0.7)
    means = Means(gru)
    run(gru, means, epochs=1)
    (m1, m2), (g1, g2) = means.seen, means.retain
    for name in m1:
        torch.testing.assert_close(m1[name], 0.7 * g1[name])
        torch.testing.assert_close(m2[name], 0.3 * 0.7 * g1[name] + 0.7 * g2[name])


def test_rectified_parts_carry_the_weights_of_now(run):
    g_f, _ = parts(run)
    gru = GradientRectification(gamma=1.0)
    seen: list[dict[str, torch.Tensor]] = []

    class Look(L.Callback):
        def on_after_backward(self, trainer, pl_module) -> None:
            seen.append(dict(gru.forget_grads))

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            assert pl_module.loss_apart is None  # the graph is let go

    run(Anneal(k=0.25), gru, Look(), epochs=1)
    for name, grad in seen[0].items():
        torch.testing.assert_close(grad, 0.25 * g_f[name])


# Checkpoints


def make_schedules() -> list[L.Callback]:
    return [
        DualWeight(step_size=0.1),
        Anneal(k=0.5),
        RetainSelection(keep_fraction=0.5),
        GradientRectification(),
    ]


@pytest.fixture
def resume(policy, splits):
    """(logged steps, module) of a fit that goes on from a checkpoint."""

    def go(path: Path, *callbacks: L.Callback, retain=NLL) -> tuple[list[dict[str, float]], UnlearnModule]:
        terms = {"forget": Term(1.0, GA), "retain": Term(1.0, retain)}
        module = Sgd(ScoringEngine(copy.deepcopy(policy)), terms, OptimConfig())
        steps = []

        class Record(L.Callback):
            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
                logged = trainer.callback_metrics.items()
                steps.append({name: value.item() for name, value in logged if name.startswith("train/")})

        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=3,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=[*callbacks, Record()],
        )
        trainer.fit(module, UnlearnData(splits(), 4, seed=0), ckpt_path=path, weights_only=True)
        return steps, module

    return go


@pytest.mark.parametrize("epoch", [0, 1])
def test_resumed_run_walks_the_straight_path(run, resume, tmp_path, epoch):
    """Resumed right after the choice of rows, and once all weights have moved, from a real trainer's checkpoint."""
    path = tmp_path / "epoch.ckpt"
    straight, module, _ = run(*make_schedules(), Keep(path, epoch), retain=OBJECTIVES["constraint_nll"](eps=0.3))
    steps, resumed = resume(path, *make_schedules(), retain=OBJECTIVES["constraint_nll"](eps=0.3))
    assert steps == straight[PER_EPOCH * (epoch + 1) :]
    for left, right in zip(module.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right)


def test_a_selection_resumed_before_it_has_chosen_knows_the_start_of_the_run(run, resume, tmp_path):
    """Rows are judged by how far they moved since step 0, not since the resume; t1 = 2, resumed at 1."""
    straight, resumed = (RetainSelection(start_epoch=2, keep_fraction=0.5) for _ in range(2))
    _, module, _ = run(straight, Keep(tmp_path / "epoch.ckpt", 0))
    steps, other = resume(tmp_path / "epoch.ckpt", resumed)
    assert len(steps) == 2 * PER_EPOCH
    assert resumed.start == straight.start
    assert resumed.kept == straight.kept
    for left, right in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right)


def test_states_survive_torch_save(run, tmp_path):
    ours = make_schedules()
    run(*ours, epochs=2)
    for left, right in zip(ours, make_schedules(), strict=True):
        right.load_state_dict(through_disk(left, tmp_path / "state.pt"))
        if isinstance(left, GradientRectification) and isinstance(right, GradientRectification):
            assert left.mean
            assert left.mean.keys() == right.mean.keys()
            assert all(torch.equal(left.mean[name], right.mean[name]) for name in left.mean)
        else:
            assert left.state_dict() == right.state_dict()
            assert isinstance(left, Anneal) or any(left.state_dict().values())


# Config


def config(schedules: dict[str, dict], **terms: str) -> Config:
    names = terms or {"forget": "grad_ascent", "retain": "nll"}
    nodes: dict[str, TermConfig | None] = {term: TermConfig({"name": name}) for term, name in names.items()}
    return Config(terms=nodes, schedules=schedules, trainer=TrainerConfig(max_epochs=3))


def built(written: Config):
    return build_schedules(written, build_terms(written))


GOOD = {
    "anneal": {"k": 0.2},
    "dual_weight": {"step_size": 5, "every": "epoch"},
    "retain_selection": {"keep_fraction": 0.9, "role": "retain"},
    "gradient_rectification": {"forget": ["forget"]},
}


def test_every_schedule_builds_from_yaml():
    assert GOOD.keys() == SCHEDULES.keys()
    assert [type(schedule) for schedule in built(config(GOOD))] == [SCHEDULES[name] for name in GOOD]


@pytest.mark.parametrize(
    ("schedules", "message"),
    [
        ({"annael": {"k": 1}}, "choose one of anneal, dual_weight"),
        ({"anneal": {"slope": 1}}, "slope"),
        ({"anneal": {}}, "k"),
        ({"anneal": {"k": 0.0}}, "k=0.0 must be above 0"),
        ({"anneal": {"k": 1, "offset_epochs": 3}}, "offset_epochs=3.0 must be below the run's 3 epochs"),
        ({"anneal": {"k": 1, "offset_epochs": 3, "total_epochs": 2}}, "total_epochs=2.0 must be above"),
        ({"anneal": {"k": 1, "term": "forgot"}}, "'forgot' is no term of this run; choose among forget, retain"),
        ({"dual_weight": {"term": "keep"}}, "'keep' is no term of this run; choose among forget, retain"),
        ({"dual_weight": {"step_size": -1}}, "step_size=-1.0 must be above 0"),
        ({"dual_weight": {"warmup_epochs": 3}}, "warmup_epochs=3 must be below the run's 3 epochs"),
        ({"dual_weight": {"every": "day"}}, "day"),
        ({"retain_selection": {}}, "set one of keep_fraction and max_influence"),
        ({"retain_selection": {"keep_fraction": 1, "max_influence": 1}}, "set one of"),
        ({"retain_selection": {"keep_fraction": 1.5}}, r"keep_fraction=1.5 must be in \(0, 1\]"),
        ({"retain_selection": {"max_influence": 0}}, "max_influence=0.0 must be above 0"),
        ({"retain_selection": {"keep_fraction": 1, "start_epoch": 0}}, "start_epoch=0"),
        ({"retain_selection": {"keep_fraction": 1, "start_epoch": 3}}, "start_epoch=3 must be below"),
        ({"retain_selection": {"keep_fraction": 1, "role": "alternate"}}, "choose among forget, retain"),
        ({"gradient_rectification": {"gamma": 0}}, r"gamma=0.0 must be in \(0, 1\]"),
        ({"gradient_rectification": {"retain": ["forget"]}}, "no common one"),
        ({"gradient_rectification": {"retain": ["keep"]}}, "retain: 'keep' is no term.*choose among forget, retain"),
        ({"dual_weight": {"term": "forget"}, "anneal": {"k": 1}}, "already moves the weight of term forget"),
        ({"pathlib:Path": {}}, "choose one of|must be a dataclass"),
    ],
)
def test_a_wrong_schedule_is_refused(schedules, message):
    with pytest.raises(UserError, match=message) as caught:
        built(config(schedules))
    assert "schedules" in str(caught.value)


def test_every_term_is_on_one_side_of_the_rectification():
    written = config({"gradient_rectification": {}}, forget="grad_ascent", belief="grad_ascent", retain="nll")
    with pytest.raises(UserError, match="add belief to forget or to retain"):
        built(written)
