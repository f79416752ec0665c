"""One grammar for all commands, and what a user sees of it."""

import os
import subprocess
import sys
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import pytest

from lit_unlearn.callbacks.schedules import SCHEDULES
from lit_unlearn.command.arguments import Arguments, parse
from lit_unlearn.command.console import COMMANDS, start
from lit_unlearn.command.fields import explain
from lit_unlearn.config.load import FAMILIES
from lit_unlearn.config.schema import Config
from lit_unlearn.errors import UserError
from lit_unlearn.objectives import OBJECTIVES


def test_a_line_is_sorted_into_its_parts():
    arguments = parse(["status", "a/b", "x=1", "x=2", "y={a: 'b=c'}", "optim=?"], words=True)
    assert arguments.words == ("status", "a/b")
    assert arguments.settings == {"x": "2", "y": "{a: 'b=c'}"}
    assert arguments.asked == ("optim",)
    assert not arguments.help
    assert parse(["x=1", "--help"]).help
    assert parse(["-h"]).help


@pytest.mark.parametrize("argument", ["word", "--x=1", "-v", "=1", ""])
def test_what_is_no_setting_is_refused_where_no_words_are_taken(argument: str):
    with pytest.raises(UserError, match="cannot read"):
        parse([argument])


@pytest.mark.parametrize("argument", ["--x=1", "-v", "=1", ""])
def test_options_are_no_words(argument: str):
    with pytest.raises(UserError, match="a verb, paths and key=value"):
        parse([argument], words=True)


class Colour(StrEnum):
    red = "red"
    blue = "blue"


@dataclass
class Wheel:
    """Turns.

    Raises:
        ValueError: it is square.
    """

    size: float = 0.5
    """In metres;
    ``0``: none."""


@dataclass
class Cart:
    """Rolls."""

    load: int
    """In kg."""
    colour: Colour = Colour.red
    gear: Literal["low", "high"] | None = None
    spare: Wheel | None = None
    wheels: dict[str, Wheel | None] = field(default_factory=dict)
    motor: dict[str, Any] = field(default_factory=dict)


def test_a_field_is_told_with_type_default_and_meaning():
    assert explain(Cart, "load", {}) == "  load  int  = required\n      In kg."
    assert explain(Cart, "colour", {}) == "  colour  red | blue  = red"
    assert explain(Cart, "gear", {}) == "  gear  low | high | null  = null"
    assert explain(Cart, "spare.size", {}) == "  spare.size  float  = 0.5\n      In metres; 0: none."


def test_sections_names_of_ones_own_and_families():
    table = {"motor": "lit_unlearn.objectives:OBJECTIVES"}
    turned = "Turns.\n\n  {}size  float  = 0.5\n      In metres; 0: none."
    assert explain(Cart, "spare", {}) == "spare: " + turned.format("spare.")
    assert explain(Cart, "wheels", {}) == "wheels.NAME: " + turned.format("wheels.NAME.")
    assert explain(Cart, "wheels.left", {}) == "wheels.left: " + turned.format("wheels.left.")
    assert [line.split()[0] for line in explain(Cart, "motor", table).splitlines()[2:]] == list(OBJECTIVES)
    assert "\n  beta  float  = 0.1\n" in explain(Cart, "motor.npo", table)
    with pytest.raises(UserError, match=r"motor\.nppo=\?: unknown; choose among bst"):
        explain(Cart, "motor.nppo", table)


@pytest.mark.parametrize(
    ("key", "message"),
    [("wheel", "there is no section 'wheel'; choose among load, colour"), ("spare.siz", "spare has no setting 'siz'")],
)
def test_an_unknown_section_names_those_there_are(key: str, message: str):
    with pytest.raises(UserError, match=message):
        explain(Cart, key, {})


@pytest.mark.parametrize("section", [field.name for field in fields(Config)])
def test_every_section_of_a_run_can_be_asked(section: str):
    assert section in explain(Config, section, FAMILIES)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_can_be_asked(name: str):
    told = explain(Config, f"terms.forget.objective.{name}", FAMILIES)
    assert all(f"  {field.name}  " in told for field in fields(OBJECTIVES[name]))


def test_every_schedule_can_be_asked():
    told = explain(Config, "schedules", FAMILIES)
    assert all(f"  {name} " in told for name in SCHEDULES)


def command(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    line = [sys.executable, "-m", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, cwd=cwd, env=environment)


def test_the_package_lists_its_commands():
    done = command("lit_unlearn")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()[2:]] == list(COMMANDS)


def test_a_command_that_is_written_as_a_word_is_no_success():
    done = command("lit_unlearn", "train", "conf=quickstart")
    assert done.returncode == 2
    assert "python -m lit_unlearn.train" in done.stderr


@pytest.mark.parametrize(("name", "advice"), [("train", "resume=true goes on"), ("evaluate", "start it again")])
def test_an_interruption_advises_what_the_command_can(
    name: str, advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(arguments: Arguments) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os._exit", sys.exit)
    monkeypatch.setattr("sys.argv", ["command", "conf=quickstart"])
    with pytest.raises(SystemExit) as left:
        start(replace(import_module(f"lit_unlearn.{name}").main, load=interrupted))
    assert left.value.code == 130
    assert advice in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_helps(name: str, capsys: pytest.CaptureFixture[str]):
    module = import_module(f"lit_unlearn.{name}")
    main = getattr(module, "main", None) or import_module(f"lit_unlearn.{name}.__main__").main
    main(["--help"])
    assert capsys.readouterr().out.startswith(f"python -m lit_unlearn.{name} ".rstrip())
    main(["-h"])
    assert COMMANDS[name] in capsys.readouterr().out


@pytest.mark.parametrize("name", ["train", "speed"])
def test_a_process_ends_with_one_line_and_code_2(name: str, tmp_path: Path):
    """All other wrong inputs stand in tests/integration/wrong_inputs.txt."""
    wrong = command(f"lit_unlearn.{name}", "--such", cwd=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stdout == ""
    assert wrong.stderr.startswith("error: cannot read '--such'")
    assert len(wrong.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback():
    done = command("lit_unlearn.train", "conf=quickstart", "optim.lrr=1", "debug=true")
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "UserError" in done.stderr
