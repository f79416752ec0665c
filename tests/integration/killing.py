"""Whole runs in processes that a test may kill; forked from a server that has imported what takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from pathlib import Path

from lit_unlearn.train import main

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.integration.killing", "lit_unlearn.config.checks", "lit_unlearn.run.unlearn"])


def run(argv: list[str], output: str) -> None:
    """In the child: the command itself, its words in a file."""
    with open(output, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    main(argv)


def start(argv: list[str], output: Path):
    """A run on its way."""
    process = SERVER.Process(target=run, args=(argv, str(output)))
    process.start()
    return process


def finish(argv: list[str], output: Path) -> float:
    """Run to the end; the seconds it took."""
    started = time.monotonic()
    process = start(argv, output)
    process.join()
    assert process.exitcode == 0, output.read_text()[-3000:]
    return time.monotonic() - started


def kill_after(argv: list[str], output: Path, seconds: float) -> bool:
    """kill -9 after so long; False: it had ended before."""
    process = start(argv, output)
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -9), output.read_text()[-3000:]
    return process.exitcode == -9


def kill_while_writing(argv: list[str], output: Path, directory: Path, number: int) -> bool:
    """kill -9 while the ``number``-th file of ``directory`` is being written; False: the write was quicker."""
    process = start(argv, output)
    seen: set[str] = set()
    while process.is_alive():
        try:
            found = {name for name in os.listdir(directory) if name.endswith(".tmp")} - seen
        except FileNotFoundError:
            continue
        seen |= found
        if found and len(seen) == number:
            process.kill()
            process.join()
            return (directory / found.pop()).exists()
    assert process.exitcode == 0, output.read_text()[-3000:]
    return False
