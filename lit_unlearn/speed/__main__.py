"""``python -m lit_unlearn.speed [key=value ...]``: the plain recipe against ours, or the plan of a model's memory."""

from __future__ import annotations

from lit_unlearn.command.arguments import Arguments
from lit_unlearn.command.console import Command, start
from lit_unlearn.command.typed import read_overrides, typed
from lit_unlearn.speed.settings import SpeedConfig


def load(arguments: Arguments) -> SpeedConfig:
    return typed(SpeedConfig, "", read_overrides(arguments.settings))


main = Command(
    "speed",
    load,
    ("lit_unlearn.speed.compare:compare",),
    usage="[key=value ...]",
    example="plan=true model=llama8b rows=32",
    schema=SpeedConfig,
)

if __name__ == "__main__":
    start(main)
