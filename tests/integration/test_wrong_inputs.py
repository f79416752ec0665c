"""Whatever a user gets wrong: exit code 2, one or two lines that name it and say what to do, nothing written."""

import signal
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from string import Template
from typing import NamedTuple

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from lit_unlearn.command.console import COMMANDS, start
from tests.integration.shelf import make_files, make_models

HERE = Path(__file__).parent


class Wrong(NamedTuple):
    command: str
    arguments: tuple[str, ...]
    named: str
    advice: str


def table() -> list[Wrong]:
    """The rows of wrong_inputs.txt."""
    found, heading = [], []
    for line in (HERE / "wrong_inputs.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            heading = line.removeprefix("== ").partition(": ")[0].split()
        elif line and not line.startswith("#"):
            arguments, named, advice = f" {line}".split(" | ")
            given = [argument.strip() for argument in arguments.split("  ") if argument.strip()]
            found.append(Wrong(heading[0], (*heading[1:], *given), named, advice))
    return found


TABLE = table()


@pytest.fixture(scope="module")
def shelf(
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    disable_progress_bar()  # as the commands do before transformers is imported
    root = tmp_path_factory.mktemp("shelf")
    make_models(root / "models", make_model(vocabulary=len(tokenizer), num_layers=2), tokenizer)
    make_files(root / "files")
    return root


def written(directory: Path) -> dict[Path, tuple[int, int]]:
    """When each file was changed last, and its size."""
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    """What is not refused would run, some of it for minutes."""

    def give_up(number: int, frame: object) -> None:
        pytest.fail("it is not refused: it runs")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_the_table_is_whole():
    assert len(TABLE) >= 150
    assert len({(row.command, row.arguments) for row in TABLE}) == len(TABLE)
    assert {row.command for row in TABLE} == COMMANDS.keys()


@pytest.mark.parametrize("row", TABLE, ids=lambda row: " ".join((row.command, *row.arguments)))
def test_a_wrong_input_is_told(
    row: Wrong, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    if torch.cuda.is_available() and any("=cuda" in text or "adamw_paged" in text for text in row.arguments):
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    places = {"TINY": HERE / "tiny.yaml", "MODELS": shelf / "models", "FILES": shelf / "files"}
    arguments = [Template(argument).substitute(places) for argument in row.arguments]
    for name, _, value in (argument[4:].partition("=") for argument in arguments if argument.startswith("env:")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["command", *(text for text in arguments if not text.startswith("env:"))])
    before = written(shelf)
    module = import_module(f"lit_unlearn.{row.command}")
    main = getattr(module, "main", None) or import_module(f"{module.__name__}.__main__").main
    with pytest.raises(SystemExit) as left:
        start(main)
    told = capfd.readouterr()
    assert left.value.code == 2
    assert told.out == ""
    assert len(told.err.splitlines()) <= 2
    assert told.err.splitlines()[-1].startswith("error: ")
    assert len(told.err) < 600
    assert row.named in told.err
    assert row.advice in told.err
    assert not list(tmp_path.iterdir())
    assert written(shelf) == before
