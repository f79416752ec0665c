"""Pictures of a run, drawn from its history and its metrics alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lit_unlearn.files import replacing
from lit_unlearn.recording.history import SQUEEZE_CURVES, SQUEEZE_INDICES, Curves, read_history
from lit_unlearn.recording.keys import evaluation_key

# Okabe-Ito colours, told apart by colour-blind readers; a role keeps its colour in every picture.
VERMILION, BLUE, GREEN, ORANGE, PURPLE = "#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7"
BLACK, GREY = "#000000", "#777777"
WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}

Styles = Mapping[str, tuple[str, str, str]]
"""Metric name to legend label, colour, marker."""
LOGPS = {"train/forget_logp": ("forget answers", VERMILION, "o"), "train/retain_logp": ("retain answers", BLUE, "s")}
EVALUATIONS = {
    evaluation_key("forget_probability"): ("forget probability (down)", VERMILION, "o"),
    evaluation_key("forget_extraction_strength"): ("forget extraction strength (down)", ORANGE, "^"),
    evaluation_key("model_utility"): ("model utility (up)", BLUE, "s"),
}
SQUEEZE_LOOK = zip((VERMILION, BLUE, GREEN, ORANGE, BLACK), "os^vD", strict=True)
SQUEEZE = {m: (label, *look) for (m, label), look in zip(SQUEEZE_CURVES.items(), SQUEEZE_LOOK, strict=True)}
INDEX_LOOK = zip((PURPLE, BLUE), "os", strict=True)
INDICES = {m: (label, *look) for (m, label), look in zip(SQUEEZE_INDICES.items(), INDEX_LOOK, strict=True)}
INDEX, INDEX_UNIT = "Likely responses against target", "change of likely - target (nats)"
SQUEEZE_PANELS = {
    INDEX: (INDICES, INDEX_UNIT),
    "Belief mass": ({"squeeze/belief_mass": ("belief mass", PURPLE, "o")}, "probability"),
    "Entropy at forget positions": ({"squeeze/entropy": ("entropy", PURPLE, "o")}, "nats per token"),
}
"""Title to curves and unit."""
POINTS = {"original": (BLACK, "s"), "unlearned": (VERMILION, "*"), "retain_model": (BLUE, "D")}
MAX_MARKERS = 40
"""A curve with more points than this is drawn as its raw trace, faint, under its running mean."""
STEP = "optimizer step"
PROBABILITY_RANGE = (-0.03, 1.03)


def draw(run_dir: Path, numbers: Mapping[str, Mapping[str, float]]) -> list[Path]:
    """Draw all pictures of a run as far as it is, into ``run_dir/plots``; the paths of those that show something.

    Args:
        run_dir: its ``history.csv`` is read.
        numbers: of the models known so far, by name; those in ``POINTS`` are marked.
    """
    history = read_history(run_dir / "history.csv")
    mem, utility = evaluation_key("mem"), dict(history.get(evaluation_key("utility"), []))
    way = [(value, utility[step], step) for step, value in history.get(mem, []) if step in utility]
    known = {name: numbers[name] for name in POINTS if name in numbers and {"mem", "utility"} <= numbers[name].keys()}
    points = {name: (of["mem"], of["utility"]) for name, of in known.items()}
    plots = run_dir / "plots"
    plots.mkdir(exist_ok=True)
    drawn = {
        plots / "forget_retain.png": lambda path: forget_retain(history, path),
        plots / "squeeze.png": lambda path: squeeze(history, path),
        plots / "trade_off.png": lambda path: trade_off(points, path, way),
    }
    return [path for path, picture in drawn.items() if picture(path)]


def forget_retain(history: Curves, path: Path) -> bool:
    """What the training does to forget and retain answers, beside what the evaluations saw; False: nothing to draw."""
    panels = [curves for curves in (_present(history, LOGPS), _present(history, EVALUATIONS)) if curves]
    if not panels:
        return False
    figure = _figure(5.0 * len(panels) if len(panels) > 1 else 7.0, 4.2)
    for axes, curves in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _curves(axes, history, curves)
        _legend(axes, columns=2)
        if curves.keys() <= LOGPS.keys():
            _label(axes, "Answers during training", STEP, "mean token log-prob (nats)")
        else:
            _label(axes, "Evaluations", STEP, "score (0 to 1)")
            axes.set_ylim(*PROBABILITY_RANGE)
    _save(figure, path)
    return True


def squeeze(history: Curves, path: Path) -> bool:
    """Where the probability taken from the target goes; False: nothing to draw."""
    curves = _present(history, SQUEEZE)
    panels = [title for title, (of_panel, _) in SQUEEZE_PANELS.items() if _present(history, of_panel)]
    if not curves and not panels:
        return False
    figure = _figure(9.0, 4.4 * bool(curves) + 2.9 * bool(panels))
    mosaic: list[Any] = [["curves"] * max(len(panels), 1)] * bool(curves) + [panels] * bool(panels)
    axes_of = figure.subplot_mosaic(mosaic, height_ratios=[4.4, 2.9][: len(mosaic)])
    if curves:
        _curves(axes_of["curves"], history, curves)
        title = "Forget prompts: true answers and the original model's own"
        _label(axes_of["curves"], title, STEP, "mean token log-prob (nats)")
        _legend(axes_of["curves"], columns=5)
    for title in panels:
        of_panel, unit = SQUEEZE_PANELS[title]
        _curves(axes_of[title], history, _present(history, of_panel))
        _label(axes_of[title], title, STEP, unit)
    if INDEX in panels:
        axes_of[INDEX].axhline(0, color=GREY, linewidth=0.8, zorder=0)
        axes_of[INDEX].legend(frameon=False, fontsize=7.5)
    _save(figure, path)
    return True


def trade_off(
    points: Mapping[str, tuple[float, float]], path: Path, trajectory: Sequence[tuple[float, float, int]] = ()
) -> bool:
    """Forgetting against utility; False: nothing to draw.

    Args:
        points: (Mem, utility) of ``original``, ``unlearned`` and ``retain_model``, those that are known.
        path: the PNG file to write.
        trajectory: (Mem, utility, step) of the evaluations during training.
    """
    known = {name: point for name, point in points.items() if all(map(math.isfinite, point))}
    way = sorted((p for p in trajectory if all(map(math.isfinite, p))), key=lambda p: p[2])
    if not known and not way:
        return False
    figure = _figure(7.4, 7.2)
    axes = figure.subplots()
    _equal_agg(axes)
    if way:
        mem, utility, steps = np.array(way, dtype=float).T
        axes.plot(mem, utility, color=GREY, linewidth=1.2, zorder=2)
        dots = axes.scatter(mem, utility, c=steps, cmap="cividis", s=36, zorder=3, edgecolors="white", linewidths=0.6)
        if len(way) > 1:
            figure.colorbar(dots, ax=axes, label=STEP, shrink=0.8, pad=0.02, ticks=MaxNLocator(6, integer=True))
        dots.set_label("evaluations during training")
    for name, (mem, utility) in known.items():
        colour, marker = POINTS.get(name, (PURPLE, "o"))
        label, size = name.replace("_", " "), 16 if marker == "*" else 9
        axes.plot([mem], [utility], marker, color=colour, ms=size, markeredgecolor="white", zorder=4, label=label)
    axes.set(xlim=PROBABILITY_RANGE, ylim=PROBABILITY_RANGE, aspect="equal")
    _label(axes, "Forgetting against utility", "Mem (0 to 1, higher: more forgotten)", "utility (0 to 1)")
    axes.grid(False)  # the lines of equal Agg are the grid
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    _save(figure, path)
    return True


def _equal_agg(axes: Axes) -> None:
    """Lines of equal Agg, the harmonic mean of both coordinates."""
    for agg in np.arange(1, 10) / 10:
        mem = np.linspace(agg / (2 - agg), 1.0, 200)  # from utility 1 to Mem 1
        utility = agg * mem / (2 * mem - agg)
        axes.plot(mem, utility, color="#c4c4c4", linewidth=0.8, zorder=0)
        axes.text(1.0, utility[-1], f"Agg {agg:.1f}", fontsize=7, color=GREY, ha="right", va="center", bbox=WHITE)


def _present(history: Curves, styles: Styles) -> Styles:
    return {metric: style for metric, style in styles.items() if _finite(history, metric)[0].size}


def _finite(history: Curves, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values [n] of a metric, without NaN and infinities: no axis can show them."""
    points = np.array(history.get(metric, ()), dtype=float).reshape(-1, 2)
    steps, values = points[np.isfinite(points[:, 1])].T
    return steps, values


def _curves(axes: Axes, history: Curves, styles: Styles) -> None:
    for metric, (label, colour, marker) in styles.items():
        steps, values = _finite(history, metric)
        if len(steps) <= MAX_MARKERS:
            axes.plot(steps, values, color=colour, marker=marker, markersize=4, linewidth=1.5, label=label)
        else:
            axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3)
            axes.plot(steps, _running_mean(values, len(values) // 20), color=colour, linewidth=1.8, label=label)


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over the ``width`` points on each side, fewer at the ends: no lag, no invented padding."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - width, 0), np.minimum(at + width + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")  # no pyplot: no global state to leak
    FigureCanvasAgg(figure)
    return figure


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if x == STEP:
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(axes: Axes, columns: int) -> None:
    """Below the axes, where it covers no line."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=columns, frameon=False, fontsize=8.5)


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
