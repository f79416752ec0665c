"""The squeezing probe: bands of the original model's own responses, watched while the policy moves."""

import math

import lightning as L
import pytest
import torch

from lit_unlearn.callbacks import squeeze_probe
from lit_unlearn.callbacks.settings import SqueezeConfig
from lit_unlearn.callbacks.squeeze_probe import BANDS, SqueezeProbe
from lit_unlearn.data.datamodule import UnlearnData
from lit_unlearn.data.tokenize import Encoded
from lit_unlearn.engine.answers import score_answers
from lit_unlearn.engine.scoring import ScoringEngine
from lit_unlearn.objectives import GradAscent
from lit_unlearn.training.module import UnlearnModule
from lit_unlearn.training.settings import OptimConfig
from lit_unlearn.types import Role, Term


@pytest.fixture
def run(make_model, make_encoded, make_end, fit):
    """Unlearn a few rows under the probe; the probe and what it logged."""

    def go(config: SqueezeConfig, control=()):
        rows = make_encoded((5, 4, 6, 3))
        probe = SqueezeProbe(rows, config, make_end(1), 0, control)
        logged: list[tuple[int, dict[str, float]]] = []

        class Sink:
            def log_metrics(self, metrics, step):
                logged.append((step, metrics))

        engine = ScoringEngine(make_model())
        module = UnlearnModule(engine, {"forget": Term(1.0, GradAscent())}, OptimConfig(lr=3e-3, warmup_epochs=0))
        module.__class__ = type("Module", (UnlearnModule,), {"loggers": [Sink()]})
        fit(module, UnlearnData({Role.forget: rows}, 4, 0), [probe], max_epochs=5)
        return probe, logged, rows, engine

    return go


def test_beams_are_banded_by_probability_and_leave_the_target_out(run, make_model):
    config = SqueezeConfig(num_prompts=2, num_beams=10, max_new_tokens=5, every_n_steps=2)
    probe, logged, rows, _ = run(config)
    (forget,) = probe.watched
    assert [row.id for row in forget.targets] == [0, 3]
    start = logged[0][1]
    assert start["squeeze/high"] > start["squeeze/mid"] > start["squeeze/low"]
    targets = {row.answer for row in rows}
    assert all(row.answer not in targets for band in BANDS for row in forget.bands[band])
    assert len(forget.bands["high"]) < len(forget.bands["mid"]) == len(forget.bands["low"])


def test_the_target_is_left_out_whichever_token_ends_it(make_model, make_encoded, make_end, monkeypatch):
    rows = make_encoded((5, 2))
    probe = SqueezeProbe(rows, SqueezeConfig(num_prompts=2, num_beams=5), make_end(1, 2), 0)
    found = {row.prompt: [(*row.answer[:-1], 2), *((7 + i, 8, 1) for i in range(5))] for row in rows}
    monkeypatch.setattr(squeeze_probe, "beam_search", lambda model, prompt, *rest: found[prompt.ids])
    bands = probe._draw_bands(ScoringEngine(make_model()), probe.watched[0])
    assert sorted(row.answer for band in BANDS for row in bands[band]) == sorted(2 * [(7 + i, 8, 1) for i in range(5)])


def test_the_curve_follows_the_policy_and_the_indices_are_their_definition(run, make_encoded):
    config = SqueezeConfig(num_prompts=4, num_beams=5, max_new_tokens=5, every_n_steps=2)
    probe, logged, _, engine = run(config, make_encoded((4, 5), seed=1))
    assert [step for step, _ in logged] == [0, 2, 4, 5]
    first, last = logged[0][1], logged[-1][1]
    assert last["squeeze/target"] < first["squeeze/target"] - 0.1
    for prefix in ("squeeze/", "squeeze/retain_"):
        assert first[f"{prefix}index"] == 0.0
        change = {name: last[prefix + name] - first[prefix + name] for name in ("high", "target")}
        assert last[f"{prefix}index"] == pytest.approx(change["high"] - change["target"])
    assert abs(last["squeeze/index"] - last["squeeze/retain_index"]) > 0.01
    now = probe.measure(engine)
    assert {f"squeeze/{name}": value for name, value in now.items()} == pytest.approx(
        {name: value for name, value in last.items() if not name.endswith("index")}
    )


def test_the_control_is_watched_as_if_it_were_forgotten(make_model, make_encoded, make_end):
    """Same protocol, same model: the retain rows' numbers are those that a probe of them alone finds."""
    rows, retain, config = make_encoded((5, 2)), make_encoded((4, 3), seed=1), SqueezeConfig(2, num_beams=5)
    engine = ScoringEngine(make_model())

    def start(probe: SqueezeProbe) -> dict[str, float]:
        for watched in probe.watched:
            watched.bands = probe._draw_bands(engine, watched)
        return probe.measure(engine)

    both = start(SqueezeProbe(rows, config, make_end(1), 0, retain))
    alone = start(SqueezeProbe(retain, config, make_end(1), 0))
    assert {name: both[f"retain_{name}"] for name in alone} == alone
    assert {name: both[name] for name in alone} == start(SqueezeProbe(rows, config, make_end(1), 0))
    assert len(both) == 2 * len(alone)


def test_a_prompt_counts_once_whatever_the_number_of_its_responses(make_model, make_encoded, make_end):
    rows = make_encoded((5, 2, 3))
    probe, engine = SqueezeProbe(rows, SqueezeConfig(), make_end(1), 0), ScoringEngine(make_model())
    answers = {0: [(5, 1), (6, 1), (7, 8, 1)], 1: [(9, 1)]}  # none of the third prompt
    told = {id: [Encoded(id, rows[id].prompt, answer) for answer in of_prompt] for id, of_prompt in answers.items()}
    probe.watched[0].bands = {"high": [row for of_prompt in told.values() for row in of_prompt], "mid": []}
    means = [[answer.mean_logp for answer in score_answers(engine, of_prompt, 8)] for of_prompt in told.values()]
    numbers = probe.measure(engine)
    assert numbers["high"] == pytest.approx((sum(means[0]) / 3 + means[1][0]) / 2)
    assert math.isnan(numbers["mid"])


def test_only_rank_0_draws_the_bands(make_model, make_encoded, make_end, monkeypatch):
    """The other ranks take what it found."""
    rows, found = make_encoded((5, 2)), {band: [] for band in BANDS}
    probe = SqueezeProbe(rows, SqueezeConfig(num_prompts=2), make_end(1), 0)
    offered: list[object] = []
    monkeypatch.setattr(squeeze_probe, "rank", lambda: 1)
    monkeypatch.setattr(squeeze_probe, "broadcast_object", lambda drawn: offered.append(drawn) or found)
    monkeypatch.setattr(squeeze_probe, "beam_search", None)
    module = UnlearnModule(ScoringEngine(make_model()), {"forget": Term(1.0, GradAscent())}, OptimConfig())
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy._lightning_module = module
    module.trainer = trainer
    probe.setup(trainer, module, "fit")
    assert (probe.watched[0].bands, offered) == (found, [{}])


def test_statistics_at_the_target_are_those_of_the_whole_distribution(make_model, make_encoded, make_end):
    model, rows = make_model(), make_encoded((5, 2))
    probe = SqueezeProbe(rows, SqueezeConfig(num_prompts=2, top_k=7), make_end(1), 0)
    numbers = probe.measure(ScoringEngine(model))
    expected = {"target": [], "argmax": [], "belief_mass": [], "entropy": []}
    for row in rows:
        logps = model(torch.tensor([row.prompt + row.answer])).logits[0, len(row.prompt) - 1 : -1].log_softmax(-1)
        expected["target"].append(logps.gather(-1, torch.tensor(row.answer)[:, None]).mean())
        expected["argmax"].append(logps.max(-1).values.mean())
        expected["belief_mass"].append(logps.exp().topk(7).values.sum(-1).mean())
        expected["entropy"].append(-(logps.exp() * logps).sum(-1).mean())
    for name, values in expected.items():
        assert numbers[name] == pytest.approx(torch.stack(values).mean().item(), rel=1e-5)


def test_token_rank_bands_are_ordered_and_drawn_again_when_resumed(run, caplog):
    """No checkpoint holds them; the numbers it does hold tell whether they are the same."""
    config = SqueezeConfig(num_prompts=2, protocol="token_rank", num_responses=3, max_new_tokens=4, every_n_steps=9)
    probe, logged, _, _ = run(config)
    start = logged[0][1]
    assert start["squeeze/high"] > start["squeeze/mid"] > start["squeeze/low"]
    assert all(len(probe.watched[0].bands[band]) == 6 for band in BANDS)
    again, _, _, _ = run(config)
    assert (again.watched, again.start) == (probe.watched, probe.start)
    assert probe.state_dict() == {"start": probe.start}
    again.load_state_dict(probe.state_dict())
    assert again.start == probe.start
    assert not caplog.text
    again.load_state_dict({"start": probe.start | {"high": probe.start["high"] - 0.1}})
    assert "other responses than before the interruption" in caplog.text
