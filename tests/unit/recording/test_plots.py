"""The pictures: valid PNG files of a sensible size, whatever is missing, single or infinite."""

from __future__ import annotations

import math

import matplotlib.image
import numpy as np
import pytest

from lit_unlearn.recording.history import History
from lit_unlearn.recording.plots import _running_mean, draw, forget_retain, squeeze, trade_off

STEPS = range(0, 100, 10)
METRICS = [
    *("train/forget_logp", "train/retain_logp"),
    *("eval_forget/probability", "eval/model_utility", "eval_forget/extraction_strength"),
    *("squeeze/target", "squeeze/high", "squeeze/mid", "squeeze/low", "squeeze/argmax"),
    *("squeeze/index", "squeeze/retain_index", "squeeze/belief_mass", "squeeze/entropy"),
]
FULL = {name: [(step, -0.01 * step * i) for step in STEPS] for i, name in enumerate(METRICS)}
ONE = {name: points[-1:] for name, points in FULL.items()}
HOLES = {name: [(0, math.nan), (10, -math.inf), (20, -0.5)] for name in METRICS}
LONG = {"train/forget_logp": [(step, -float(step)) for step in range(500)]}
EMPTY = {"train/loss": [(0, 1.0)], "squeeze/target": [(0, -math.inf)], "train/forget_logp": [(0, math.nan)]}


def colours(path) -> int:
    """Distinct colours of the picture; also checks that it is a PNG 7 to 10 inches wide and that no litter is left."""
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = matplotlib.image.imread(path)
    assert 7 * 130 <= pixels.shape[1] <= 10 * 130 + 1
    assert 300 <= pixels.shape[0] <= 1000
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0))


@pytest.mark.parametrize("draw", [forget_retain, squeeze])
@pytest.mark.parametrize("history", [FULL, ONE, HOLES], ids=["full", "one", "holes"])
def test_a_picture_of_a_history(tmp_path, draw, history):
    assert draw(history, tmp_path / "a.png")
    assert colours(tmp_path / "a.png") > 50


@pytest.mark.parametrize("name", METRICS)
def test_any_metric_alone_is_drawn(tmp_path, name):
    draw = squeeze if name.startswith("squeeze/") else forget_retain
    assert draw({name: FULL[name]}, tmp_path / "a.png")
    assert colours(tmp_path / "a.png") > 20


def test_the_control_is_a_curve_of_its_own(tmp_path):
    squeeze(FULL, tmp_path / "with.png")
    squeeze({name: points for name, points in FULL.items() if "retain" not in name}, tmp_path / "without.png")
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()


def test_a_long_history_is_drawn(tmp_path):
    assert forget_retain(LONG, tmp_path / "a.png")
    assert colours(tmp_path / "a.png") > 20


@pytest.mark.parametrize("draw", [forget_retain, squeeze])
@pytest.mark.parametrize("history", [{}, EMPTY], ids=["empty", "other"])
def test_nothing_to_draw_writes_nothing(tmp_path, draw, history):
    assert not draw(history, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("points", "trajectory"),
    [
        (
            {"original": (0.05, 0.6), "unlearned": (0.6, 0.5), "retain_model": (0.6, 0.6)},
            [(0.1, 0.6, 5), (0.4, 0.5, 9)],
        ),
        ({"unlearned": (0.6, 0.5)}, []),
        ({"original": (math.nan, 0.5)}, [(0.0, 0.0, 0)]),
    ],
    ids=["full", "one", "holes"],
)
def test_a_picture_of_the_trade_off(tmp_path, points, trajectory):
    assert trade_off(points, tmp_path / "a.png", trajectory)
    assert colours(tmp_path / "a.png") > 50


def test_no_trade_off_writes_nothing(tmp_path):
    assert not trade_off({"original": (math.nan, 0.5)}, tmp_path / "a.png", [(0.1, math.inf, 3)])
    assert not list(tmp_path.iterdir())


def test_running_mean_has_no_lag_and_no_padding():
    # width 1: (1+2)/2, (1+2+6)/3, (2+6+4)/3, (6+4)/2
    assert _running_mean(np.array([1.0, 2.0, 6.0, 4.0]), 1).tolist() == [1.5, 3.0, 4.0, 5.0]


def test_all_pictures_of_a_run_that_goes_on(tmp_path):
    """What there is at the original's evaluation, then more of it; drawn from the history's keys alone."""
    history = History(tmp_path)
    history.log_metrics({"eval/mem": 0.1, "eval/utility": 0.6, "eval_forget/probability": 0.9}, step=0)
    original = {"original": {"mem": 0.1, "utility": 0.6}, "epoch-001": {"mem": 0.2, "utility": 0.6}}
    plots = tmp_path / "plots"
    assert draw(tmp_path, original) == [plots / "forget_retain.png", plots / "trade_off.png"]
    before = {path.name: path.read_bytes() for path in plots.iterdir()}
    assert len(before) == 2
    history.log_metrics({"squeeze/target": -1.0, "eval_forget/probability": 0.5}, step=2)
    history.log_metrics({"eval/mem": 0.4, "eval/utility": 0.5}, step=4)
    assert [path.name for path in draw(tmp_path, original)] == ["forget_retain.png", "squeeze.png", "trade_off.png"]
    assert all((plots / name).read_bytes() != picture for name, picture in before.items())
    assert draw(tmp_path, {"original": {"forget_probability": 0.5}})  # no aggregates: the trajectory alone
