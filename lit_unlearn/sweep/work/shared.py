"""What points have in common and is made once: target and retain model, what these answer, scores of the start.

Each lies in a directory named by a digest of the settings it depends on. One point makes it and holds the directory
meanwhile; others wait, and one of them takes over where the first was killed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from lit_unlearn.config.schema import Config
from lit_unlearn.files import write_json
from lit_unlearn.recording.lock import InUse, is_held, locked
from lit_unlearn.strategies.settings import CUT
from lit_unlearn.sweep.plan import Point, Sweep
from lit_unlearn.sweep.settings import flat
from lit_unlearn.sweep.work.calls import Failed, call

_OF_ONE_RUN = (
    *("output_dir", "resume", "overwrite", "check", "debug", "logging", "export", "terms", "optim", "beliefs"),
    *("schedules", "squeeze", "data.batch_size", "data.micro_batch_size", "data.alternates", "trainer.max_epochs"),
    *("trainer.max_steps", "trainer.log_every_n_steps", "model.lora", "model.reference", "model.reference_cache"),
    *(f"trainer.checkpoint_every_n_{unit}" for unit in ("epochs", "steps", "minutes")),
    "trainer.keep_checkpoints",
)
"""What neither ``finetune`` nor ``evaluate`` reads. All other settings count, those to come included."""
_NOT_OF_MODELS = (*_OF_ONE_RUN, "evaluation")
_OF_TRAINING = tuple(f"evaluation.{key}" for key in ("keep_best", "early_stop", "disruption"))
_NOT_OF_ANSWERS = (
    *(*_OF_ONE_RUN, "finetune", "strategy"),
    *(f"evaluation.{key}" for key in ("every_n_epochs", "metrics", "selection")),
    *_OF_TRAINING,
)
_OWN_FAULTS = {"data.alternates": "refusals"}
"""In place of a file that both commands open though nothing comes of it: without it, its own point fails alone."""
_LOOK_SECONDS = 1.0


def with_shared(sweep: Sweep, point: Point) -> Point:
    """The point with what it shares in place of what it would make itself; waits until that is there.

    Raises:
        Failed: it could not be made.
    """
    config = point.config()
    if config.model.reference != "resident" and config.model.reference_cache is None:
        point = point.having({"model.reference_cache": str(sweep.shared_dir / "reference")})
    retain_model = config.evaluation.retain_model
    if config.finetune is not None:
        if not _is_common(sweep, models_key, config):
            return point
        models = _models(sweep, point, models_key(config))
        point = point.having({"finetune": None, "model.path": str(models / "target")})
        retain_model = str(models / "retain")
    if not _is_common(sweep, answers_key, config):
        return point.having({"evaluation.retain_model": retain_model})
    directory = sweep.shared_dir / f"answers-{answers_key(config)}"
    if retain_model is not None:
        records = _answers(directory / "retain", point, retain_model)
        point = point.having({"evaluation.retain_model": None, "evaluation.retain_records": str(records)})
    model = point.config().model.path
    if model is not None and _starts_as_saved(config) and config.evaluation.original_records is None:
        records = _answers(directory / "original", point, model)
        point = point.having({"evaluation.original_records": str(records)})
    return point


def _starts_as_saved(config: Config) -> bool:
    """Whether the model before unlearning answers as ``evaluate`` finds it: whole, and with no weight rounded."""
    lora = config.model.lora
    rounds = config.optim.name == "adamw_8bit" or (lora is not None and lora.base != "full")
    return config.strategy.name not in CUT and not rounds


def models_key(config: Config) -> str:
    """Of the models that ``finetune`` makes."""
    return _digest(config, _NOT_OF_MODELS)


def answers_key(config: Config) -> str:
    """Of what the models answer that are known before unlearning."""
    return _digest(config, _NOT_OF_ANSWERS, models_key(config) if config.finetune else "")


def _digest(config: Config, without: Sequence[str], *more: str) -> str:
    leaves = flat(asdict(config))
    free = (*without, "seed") if config.model.path is not None and config.finetune is None else without
    kept = {key: leaves[key] for key in leaves if not any(key == one or key.startswith(f"{one}.") for one in free)}
    return hashlib.sha256(json.dumps([kept, *more], sort_keys=True, default=str).encode()).hexdigest()[:12]


def _is_common(sweep: Sweep, key: Callable[[Config], str], config: Config) -> bool:
    """Whether two points have it; what only one needs is made by its run."""
    alike = (point for point in sweep.points if key(point.on(sweep.config.day).config()) == key(config))
    return len(list(islice(alike, 2))) == 2


def _models(sweep: Sweep, point: Point, key: str) -> Path:
    """Directory of ``target`` and ``retain``."""
    directory = sweep.shared_dir / f"models-{key}"
    made = directory / "models"

    def are_whole() -> bool:
        return all((made / kind / "config.json").is_file() for kind in ("target", "retain"))

    def make() -> None:
        # Settings that do not count differ between points, and a run goes on only with those it was started with.
        first = directory / "started.json"
        if not first.is_file():
            write_json(first, point.having(_OWN_FAULTS).arguments())
        call("finetune", [*json.loads(first.read_text()), f"output_dir={made}", "resume=auto"], directory / "log.txt")

    _make_once(directory, made, are_whole, make)
    return made


def _answers(directory: Path, point: Point, model: str) -> Path:
    """Directory of the records."""
    made = directory / "run"
    settings: dict[str, Any] = {"finetune": None, "model.path": model, "evaluation.retain_model": None}
    settings |= {"evaluation.retain_records": None, "evaluation.original_records": None}
    settings |= dict.fromkeys(_OF_TRAINING)  # it may read what needs the retain model
    arguments = [*point.having(settings | _OWN_FAULTS).arguments(), f"output_dir={made}", "overwrite=true"]
    make = partial(call, "evaluate", arguments, directory / "log.txt")
    _make_once(directory, made, (made / "metrics.json").is_file, make)
    return made / "records" / "evaluated"


def _make_once(directory: Path, run_dir: Path, is_whole: Callable[[], bool], make: Callable[[], None]) -> None:
    """``make`` fills ``run_dir``, within ``directory``, which who makes it holds."""
    directory.mkdir(parents=True, exist_ok=True)
    while not is_whole():
        try:
            if not is_held(run_dir):  # by a command whose task was killed
                with locked(directory):
                    if not is_whole():
                        make()
                continue
        except InUse:
            pass
        except Failed as failed:
            raise Failed(failed.code, f"{directory.name}: {failed.reason}", failed.terminated) from failed
        time.sleep(_LOOK_SECONDS)
