"""The phases of a run, told to the display before the first of them begins."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from pathlib import Path

from lit_unlearn.benchmarks.base import Benchmark
from lit_unlearn.callbacks.evaluation import LAST
from lit_unlearn.callbacks.reference_cache import STORING
from lit_unlearn.callbacks.squeeze_probe import DRAWING
from lit_unlearn.config.schema import FinetuneConfig
from lit_unlearn.display.phases import Planned
from lit_unlearn.evaluation.evaluator import ASKING, asking_title
from lit_unlearn.evaluation.records import are_complete
from lit_unlearn.run.prepare import KINDS, Study
from lit_unlearn.types import Role, union_of_needs

UNLEARNING, SAVING = "unlearn", "save"
TRAINING = "training"
"""Kind of the phases that train; their amount is the number of rows trained on."""


def finetuning_title(kind: str) -> str:
    return f"finetune the {kind} model"


def missing_models(directory: Path) -> list[str]:
    """Those of ``KINDS`` that an earlier start has not finetuned."""
    return [kind for kind in KINDS if not (directory / kind / "config.json").is_file()]


def plan_finetuning(finetune: FinetuneConfig, benchmark: Benchmark, directory: Path) -> list[Planned]:
    """Of the models that are not in ``directory`` yet."""
    return [
        Planned(finetuning_title(kind), TRAINING, len(benchmark.finetune_split(kind)) * finetune.max_epochs)
        for kind in missing_models(directory)
    ]


def plan_run(study: Study, benchmark: Benchmark, run_dir: Path) -> list[Planned]:
    """A resumed run's phases are those that its start has not finished, as far as the files tell."""
    config = study.config
    phases = plan_finetuning(config.finetune, benchmark, run_dir / "finetune") if config.finetune else []
    if config.squeeze is not None:
        phases.append(Planned(DRAWING))
    models = ["retain_model"] if config.finetune or config.evaluation.retain_model else []
    for name in [*models, "original"]:
        if not are_complete(run_dir / "records" / name):
            phases.append(plan_asking(name))
    phases += [Planned(STORING)] * (bool(study.plan.stored) + (config.evaluation.disruption is not None))
    asked = ["unlearned"] if config.evaluation.keep_best is None else [LAST, "unlearned"]
    return [*phases, _plan_unlearning(study), *map(plan_asking, asked), Planned(SAVING, amount=0)]


def plan_asking(name: str) -> Planned:
    return Planned(asking_title(name), ASKING)


def _plan_unlearning(study: Study) -> Planned:
    config, trainer = study.config, study.config.trainer
    roles = union_of_needs(study.terms).policy
    rows = len(study.rows.get(Role.forget) or next(iter(study.rows.values())))
    per_epoch = ceil(rows / config.data.batch_size)
    epochs = trainer.max_epochs if trainer.max_steps < 0 else min(trainer.max_epochs, trainer.max_steps / per_epoch)
    every = config.evaluation.every_n_epochs
    within: Mapping[str, float] = {ASKING: ceil(epochs / every) - 1} if every else {}
    return Planned(UNLEARNING, TRAINING, rows * epochs * len(roles), within)
