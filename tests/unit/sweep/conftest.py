"""A sweep over learning rates and seeds, read as the command line reads it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lit_unlearn.command.arguments import parse
from lit_unlearn.sweep.plan import Sweep
from lit_unlearn.sweep.read import read

TINY = Path(__file__).parents[2] / "integration" / "tiny.yaml"
LINES = f"""
conf: {TINY}
settings: {{evaluation: {{every_n_epochs: 0}}}}
grid: {{optim.lr: [1.0e-3, 2.0e-3]}}
seeds: [0, 1]
"""


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Sweep]:
    """``sweep("list", "jobs=2", lines=...)``; its directory is ``runs/sweeps/rates`` below ``tmp_path``."""
    monkeypatch.chdir(tmp_path)

    def make(verb: str = "list", *arguments: str, lines: str = LINES) -> Sweep:
        Path("rates.yaml").write_text(lines)
        return read(parse([verb, "rates.yaml", *arguments], words=True))

    return make
