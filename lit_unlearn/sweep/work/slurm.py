"""A sweep as an array of SLURM, and a job behind it that collects."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from lit_unlearn.config.files import find_conf, read_conf
from lit_unlearn.errors import UserError
from lit_unlearn.files import write_json
from lit_unlearn.sweep.outcome.states import JOBS, submitted, to_do
from lit_unlearn.sweep.plan import Point, Sweep
from lit_unlearn.sweep.read import begin
from lit_unlearn.sweep.settings import flat

_PACKAGE = Path(__file__).parents[2]
_UNKNOWN, _AUTO = "JOB", "auto"


def submit(sweep: Sweep) -> None:
    """Every point that is neither finished nor at work nor queued; ``dry_run`` only prints.

    Raises:
        UserError: points need different numbers of processes, or nobody knows how many, or SLURM refuses.
    """
    numbers = to_do(sweep)
    if not numbers:
        print(f"nothing to submit: all points of {sweep.directory} are done, at work or in the queue")
        return
    script = next(path for base in (_PACKAGE, _PACKAGE.parent) if (path := base / "slurm" / "array.sbatch").is_file())
    options = _options(sweep)
    printed = sweep.directory / "tasks" / "slurm-%A_%a.out"
    array = [f"--array={_ranges(numbers)}%{sweep.config.limit}", f"--job-name={sweep.name}", f"--output={printed}"]
    array_words = [*array, *options, str(script), str(sweep.directory)]
    if sweep.config.dry_run:
        print(shlex.join(["sbatch", *array_words]), shlex.join(["sbatch", *_report(sweep, _UNKNOWN)]), sep="\n")
        return
    sweep = begin(sweep)
    (sweep.directory / "tasks").mkdir(exist_ok=True)
    job = _sbatch(array_words)
    write_json(sweep.directory / JOBS, [*submitted(sweep), job])
    report = _sbatch(_report(sweep, job))
    print(f"array {job}: {len(numbers)} points, {sweep.config.limit} at a time; report {report} when they have ended")
    print(f"python -m lit_unlearn.sweep status {sweep.directory}")


def _report(sweep: Sweep, job: str) -> list[str]:
    """After all tasks, whatever became of them; of the options what says where a job may run."""
    where = {key: value for key, value in sweep.config.slurm.items() if key in ("partition", "account", "qos")}
    command = shlex.join(["python", "-m", "lit_unlearn.sweep", "collect", str(sweep.directory)])
    name, printed = f"--job-name={sweep.name}-report", f"--output={sweep.directory / 'report.txt'}"
    return [f"--dependency=afterany:{job}", name, printed, *_written(where), f"--wrap={command}"]


def _options(sweep: Sweep) -> list[str]:
    slurm = {key.replace("_", "-"): value for key, value in sweep.config.slurm.items()}
    trainers = [point.config().trainer for point in sweep.points]
    devices = [_AUTO if _is_auto(point) else point.config().trainer.devices for point in sweep.points]
    if len({(trainer.num_nodes, number) for trainer, number in zip(trainers, devices, strict=True)}) > 1:
        raise UserError(
            "points differ in trainer.devices or num_nodes, and the tasks of an array are alike: cut it in two"
        )
    trainer, processes = trainers[0], slurm.get("ntasks-per-node", devices[0])
    if processes == _AUTO:
        raise UserError(
            "trainer.devices=auto counts the GPUs of the machine that submits: give slurm.ntasks_per_node=N and "
            "slurm.gpus_per_node=N, or trainer.devices=N"
        )
    options: dict[str, Any] = {"nodes": trainer.num_nodes, "ntasks-per-node": processes}
    if trainer.accelerator == "cuda" and not any(key.startswith("g") for key in slurm):
        options["gpus-per-node"] = processes
    return _written(options | slurm)


def _is_auto(point: Point) -> bool:
    """By what is written: its config has counted."""
    written = flat(read_conf(find_conf(point.conf))) | flat(point.settings)
    return written.get("trainer.devices") == _AUTO


def _written(options: Mapping[str, Any]) -> list[str]:
    """``true`` is an option without a value; null leaves one out."""
    kept = {key.replace("_", "-"): value for key, value in options.items() if value is not None and value is not False}
    return [f"--{key}" if value is True else f"--{key}={value}" for key, value in kept.items()]


def _ranges(numbers: Sequence[int]) -> str:
    """``0-2,5``; ascending."""
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _sbatch(words: Sequence[str]) -> str:
    try:
        done = subprocess.run(["sbatch", "--parsable", *words], capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError("there is no sbatch here: submit where SLURM is, or use the verb run") from None
    if done.returncode:
        raise UserError(f"SLURM refuses: {' '.join(done.stderr.split())}; dry_run=true prints the command")
    return done.stdout.strip().partition(";")[0]  # of a federation, the cluster's name follows
