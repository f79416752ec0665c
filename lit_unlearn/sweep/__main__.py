"""``python -m lit_unlearn.sweep VERB SWEEP [key=value ...]``: many runs from one file."""

from __future__ import annotations

from lit_unlearn.command.console import Command, start
from lit_unlearn.sweep.plan import Sweep
from lit_unlearn.sweep.read import VERBS, listed_sweeps, read
from lit_unlearn.sweep.settings import SweepConfig

_STAGES = {
    "list": ("lit_unlearn.sweep.outcome.told:tell_points",),
    "run": ("lit_unlearn.sweep.checks:check_points", "lit_unlearn.sweep.work.here:run"),
    "submit": ("lit_unlearn.sweep.checks:check_points", "lit_unlearn.sweep.work.slurm:submit"),
    "status": ("lit_unlearn.sweep.outcome.told:tell_states",),
    "collect": ("lit_unlearn.sweep.outcome.table:collect",),
}
_OF_ONE_POINT = ("lit_unlearn.sweep.work.task:carry_out",)


def _stages(sweep: Sweep) -> tuple[str, ...]:
    return _OF_ONE_POINT if sweep.verb == "run" and sweep.config.point is not None else _STAGES[sweep.verb]


main = Command(
    "sweep",
    read,
    _stages,
    usage="VERB SWEEP [key=value ...]",
    example="run quickstart jobs=2",
    schema=SweepConfig,
    words=True,
    resumes=True,
    listing=lambda: {
        "VERB": "; ".join(f"{verb}: {what}" for verb, what in VERBS.items()),
        "SWEEP": f"{', '.join(listed_sweeps())}, the path of a YAML file, or the directory of a sweep that was started",
    },
)

if __name__ == "__main__":
    start(main)
