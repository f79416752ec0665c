"""What Optuna (https://optuna.org) proposes for the points of a search: one trial each, whoever works on it and when.

The study is a journal, a file to which all processes on all machines append. Optuna is imported where it is needed: it
is an extra.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from lit_unlearn.errors import UserError
from lit_unlearn.files import write_json
from lit_unlearn.sweep.outcome.numbers import choosing, read_metrics
from lit_unlearn.sweep.plan import Point, Sweep
from lit_unlearn.sweep.settings import SearchConfig

TRIAL, JOURNAL = "trial.json", "study.journal"
"""In a point's directory what it was given; in the sweep's what all were."""
_POINT = "point"


def settled(sweep: Sweep, point: Point) -> Point:
    """With what Optuna has proposed for it before; as it is where nothing was, or there is no search."""
    path = sweep.task_dir(point.number) / TRIAL
    return point.having(json.loads(path.read_text(encoding="utf-8"))["settings"]) if path.is_file() else point


def propose(sweep: Sweep, point: Point) -> Point:
    """With its trial's settings, which are written into its directory; those it has had before, where it had any.

    Called by who holds the point's directory.
    """
    search = sweep.config.search
    path = sweep.task_dir(point.number) / TRIAL
    if search is None or path.is_file():
        return settled(sweep, point)
    for number in _untold(sweep, search, point.number):
        tell(sweep, number)
    trial = _trial(sweep, search, point.number)
    chosen = {key: _suggested(trial, key, spec) for key, spec in search.space.items()}
    write_json(path, {"trial": trial.number, "settings": chosen})
    return settled(sweep, point)


def tell(sweep: Sweep, number: int) -> None:
    """The value of a finished point; a model that breaks a constraint counts as worse than all that keep to them."""
    search, metrics = sweep.config.search, read_metrics(sweep, number)
    if search is None or metrics is None:
        return
    import optuna

    value = sweep.rule.value(*choosing(metrics))
    state = optuna.trial.TrialState.PRUNED if value is None else optuna.trial.TrialState.COMPLETE
    trial = _trial(sweep, search, number)
    with suppress(optuna.exceptions.UpdateFinishedTrialError):  # another was quicker
        _study(sweep, search, number).tell(trial.number, value, state, skip_if_finished=True)


def ends(search: SearchConfig) -> list[dict[str, Any]]:
    """Two points of the space, at opposite corners."""
    first = {key: spec["choices"][0] if "choices" in spec else spec["low"] for key, spec in search.space.items()}
    last = {key: spec["choices"][-1] if "choices" in spec else spec["high"] for key, spec in search.space.items()}
    return [first, last]


def check_installed() -> None:
    """Raises UserError without Optuna."""
    if find_spec("optuna") is None:
        raise UserError("search needs Optuna: pip install -e '.[sweep]'")


def _untold(sweep: Sweep, search: SearchConfig, number: int) -> list[int]:
    """Points that may have finished and were killed before they said so."""
    import optuna

    running = (optuna.trial.TrialState.RUNNING,)
    trials = _study(sweep, search, number).get_trials(deepcopy=False, states=running)
    return [trial.user_attrs[_POINT] for trial in trials if _POINT in trial.user_attrs]


def _trial(sweep: Sweep, search: SearchConfig, number: int) -> Any:
    """The point's; a point that was killed while it was given one finds it again, for it is made with the number."""
    import optuna

    study = _study(sweep, search, number)
    for trial in study.get_trials(deepcopy=False):
        if trial.user_attrs.get(_POINT) == number:
            return optuna.trial.Trial(study, trial._trial_id)
    new = optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING, user_attrs={_POINT: number})
    return optuna.trial.Trial(study, study._storage.create_new_trial(study._study_id, new))


def _study(sweep: Sweep, search: SearchConfig, number: int) -> Any:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    samplers = optuna.samplers
    seed = (sweep.points[number].config().seed << 16) + number  # each process draws for itself
    tpe = search.sampler == "tpe"
    sampler = samplers.TPESampler(seed=seed, constant_liar=True) if tpe else samplers.RandomSampler(seed=seed)
    backend = JournalFileBackend(str(sweep.directory / JOURNAL))
    return optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        sampler=sampler,
        study_name=sweep.name,
        direction="maximize" if sweep.rule.mode == "max" else "minimize",
        load_if_exists=True,
    )


def _suggested(trial: Any, key: str, spec: Mapping[str, Any]) -> Any:
    if "choices" in spec:
        return json.loads(trial.suggest_categorical(key, [json.dumps(choice) for choice in spec["choices"]]))
    low, high, step, log = spec["low"], spec["high"], spec.get("step"), spec.get("log", False)
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(key, low, high, step=step or 1, log=log)
    return trial.suggest_float(key, low, high, step=step, log=log)
