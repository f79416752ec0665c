"""Imports run downwards only, nothing hides under TYPE_CHECKING, and every module can be imported alone."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lit_unlearn
from lit_unlearn.command.console import COMMANDS

PACKAGE = Path(lit_unlearn.__file__).parent
FLOORS = [
    {"errors", "files", "parallel", "slurm", "types"},
    {"command", "display", "halving", "schemas"},
    {"objectives", "benchmarks"},
    {"data"},
    {"engine"},
    {"models", "generation", "memory"},
    {"recording", "evaluation", "reference"},
    {"strategies"},
    {"training"},
    {"callbacks"},
    {"config"},
    {"run"},
    {"train", "finetune", "evaluate", "alternates", "speed", "sweep", "notebook", "__main__"},
    {"__init__"},
]
"""Lowest first; a name is a module or a whole folder, whose files may import each other. The package's root hands out
``unlearn`` and ``step_loss`` when asked, so it stands on everything and nothing may import from it."""
LIGHT = ["lit_unlearn", "lit_unlearn.train", "lit_unlearn.finetune", "lit_unlearn.evaluate", "lit_unlearn.__main__"]
LIGHT += [f"lit_unlearn.{room}.__main__" for room in ("alternates", "speed", "sweep")]
HEAVY = {"torch", "lightning", "transformers", "datasets", "wandb", "matplotlib", "scipy"}
ROOT, ROOM = 12, 9
FAMILIES = {"objectives", "metrics", "schedules", "benchmarks"}
"""Folders of one kind of thing each, which may grow."""

FILES = sorted(PACKAGE.rglob("*.py"))


def name(path: Path) -> str:
    parts = ("lit_unlearn", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(part for part in parts if part != "__init__")


def unit(module: str) -> str:
    """The module or folder of the floors that a dotted name lies in."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(path: Path) -> set[str]:
    """Dotted names of this package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            below = {f"{module}.{alias.name}" for alias in node.names}
            found |= {module} | (below & {name(file) for file in FILES})
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    found = {module for module in found if module.split(".")[0] == "lit_unlearn"}
    return found - ({"lit_unlearn"} if len(found) > 1 else set())


def test_every_module_has_a_floor():
    assert len(FILES) > 40
    named = [entry for floor in FLOORS for entry in floor]
    assert len(named) == len(set(named))
    assert {unit(name(path)) for path in FILES} == set(named)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_run_downwards(path):
    floor = {entry: number for number, entries in enumerate(FLOORS) for entry in entries}
    here = unit(name(path))
    upwards = [module for module in imports(path) if unit(module) != here and floor[unit(module)] >= floor[here]]
    assert not upwards


def test_no_circle_between_files():
    below = {name(path): imports(path) - {name(path)} for path in FILES}
    for package in [module for module in below if (PACKAGE / Path(*module.split(".")[1:])).is_dir()]:
        below[package] -= {"lit_unlearn"}
    while below:
        free = {module for module, needed in below.items() if not needed & below.keys()}
        assert free, f"a circle among {sorted(below)}"
        below = {module: needed for module, needed in below.items() if module not in free}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_nothing_is_imported_under_type_checking_or_late(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert "TYPE_CHECKING" not in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    late = [
        node for function in functions for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    ours = [node for node in late if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lit_unlearn")]
    assert not ours


def test_every_module_imports_alone():
    """Each from a state in which no module of the package is loaded, in one process that keeps the libraries."""
    script = """
import importlib, sys
for module in sys.argv[1:]:
    for loaded in [name for name in sys.modules if name.split(".")[0] == "lit_unlearn"]:
        del sys.modules[loaded]
    try:
        importlib.import_module(module)
    except Exception as error:
        sys.exit(f"{module}: {error!r}")
"""
    modules = [name(path) for path in FILES]
    done = subprocess.run([sys.executable, "-c", script, *modules], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr


def test_entry_points_import_nothing_heavy():
    """So that a wrong key is answered at once."""
    script = "import importlib, sys; [importlib.import_module(m) for m in sys.argv[1:]]; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script, *LIGHT], capture_output=True, text=True, cwd=PACKAGE.parent)
    loaded = set(done.stdout.split())
    assert "lit_unlearn.config.schema" in loaded, done.stderr
    assert not HEAVY & loaded


def test_every_command_is_listed():
    entries = {
        name(path).removesuffix(".__main__").split(".", 1)[1] for path in FILES if "start(main)" in path.read_text()
    }
    assert entries == set(COMMANDS)


def test_rooms_do_not_fill_up():
    assert len(list(PACKAGE.glob("*.py"))) <= ROOT
    rooms = {path.parent for path in FILES} - {PACKAGE}
    assert len(rooms) > 15
    crowded = {room.name: n for room in rooms if (n := len(list(room.glob("*.py"))) - 1) > ROOM}
    assert crowded.keys() <= FAMILIES


def test_files_and_functions_are_short():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 220, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                assert node.end_lineno - node.lineno < 50, f"{path}:{node.lineno} {node.name}"


def test_the_readme_names_every_room():
    text = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    table = text[text.index("## Where things are") : text.index("## Objectives")]
    named = set(re.findall(r"`(\w+)/?`", table))
    assert {entry for floor in FLOORS for entry in floor} - {"__init__", "__main__"} <= named
