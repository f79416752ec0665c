"""Mutants of one room against the room's own tests, a seeded sample of them: ``python tests/mutation.py ROOM``.

mutmut does the work, as pyproject.toml sets it; here its two lists are narrowed to one room and the mutants drawn, in a
copy of the sources under build/mutation, so that nothing here changes. Not collected by pytest, not part of CI.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parents[1]
SHARED = {"objectives": ["tests/contract/test_objectives.py", "tests/parity"]}
"""Tests of a room besides ``tests/unit/<room>``."""


def main() -> None:
    rooms = [path.name for path in sorted((HERE / "tests/unit").iterdir()) if path.is_dir()]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("room", choices=rooms)
    parser.add_argument("--sample", type=int, default=150, help="mutants tried, of all that there are")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--children", type=int, default=1, help="mutants tried at once")
    options = parser.parse_args()
    copy = copy_of_sources(options.room)
    mutmut(copy, "none")  # writes all mutants, times the tests, and ends there: no mutant has this name
    names = sorted(results(copy))
    drawn = random.Random(options.seed).sample(names, min(options.sample, len(names)))
    if not names or mutmut(copy, "--max-children", str(options.children), *drawn):
        sys.exit(f"mutmut has failed; see {copy / 'mutmut.log'}")
    report(copy, drawn, len(names))


def copy_of_sources(room: str) -> Path:
    """The files that git knows or would take, with mutmut set to the room."""
    copy = HERE / "build/mutation" / room
    shutil.rmtree(copy, ignore_errors=True)
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=HERE, check=True, capture_output=True, text=True).stdout.splitlines():
        if (HERE / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(HERE / name, copy / name)
    tests = [f"tests/unit/{room}", *SHARED.get(room, [])]
    settings = (copy / "pyproject.toml").read_text()
    for key, value in (("only_mutate", [f"lit_unlearn/{room}/*"]), ("pytest_add_cli_args_test_selection", tests)):
        settings, count = re.subn(rf"(?ms)^{key} = \[.*?\]$", f"{key} = {json.dumps(value)}", settings)
        assert count == 1, key
    assert tomllib.loads(settings)["tool"]["mutmut"]["pytest_add_cli_args_test_selection"] == tests
    (copy / "pyproject.toml").write_text(settings)
    return copy


def mutmut(copy: Path, *arguments: str) -> int:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # or it would find HERE
    with (copy / "mutmut.log").open("a") as log:
        command = [sys.executable, "-m", "mutmut", "run", *arguments]
        return subprocess.run(command, cwd=copy, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode


def results(copy: Path) -> dict[str, int | None]:
    """Mutant -> exit status of its tests, None where it was not tried."""
    found: dict[str, int | None] = {}
    for path in (copy / "mutants").rglob("*.py.meta"):
        found |= json.loads(path.read_text())["exit_code_by_key"]
    return found


def report(copy: Path, drawn: list[str], number: int) -> None:
    """The score and the difference that each survivor makes; what no test reaches has survived too."""
    status = results(copy)
    alive = sorted(name for name in drawn if status[name] in (0, 5, 33, None))  # 5, 33: no test
    for name in alive:
        shown = subprocess.run([sys.executable, "-m", "mutmut", "show", name], cwd=copy, capture_output=True, text=True)
        changed = [line for line in shown.stdout.splitlines() if re.match(r"[-+](?![-+])", line)]
        print("\n".join([f"{name}{' (no test gets there)' if status[name] == 33 else ''}", *changed, ""]))
    killed = len(drawn) - len(alive)
    print(f"{killed} of {len(drawn)} mutants killed ({killed / len(drawn):.0%}), drawn from {number}")


if __name__ == "__main__":
    main()
