"""The display in a real pseudo-terminal, read back as a person would see it."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

from tests.integration.test_train import CONF

ROWS, COLUMNS = 40, 100
SCRIPT = """
import logging, sys, time, warnings
from lit_unlearn.command.console import hush
from lit_unlearn.display.phases import Planned
from lit_unlearn.display.screen import advance, display, phase, show, track
hush()
log = logging.getLogger("lit_unlearn.test")
with display("a run", [Planned("train", "training", 4), Planned("ask", "asking"), Planned("save", amount=0)]):
    with phase("train", total=4):
        for step in range(4):
            advance(f"epoch {step + 1} of 4")
            show({"train/forget_loss": 1.5 + step, "eval/agg": 0.25}, step)
            time.sleep(0.3)
            if step == 1:
                log.warning("a message [with brackets] " + 40 * "long " + "end")
                warnings.warn("a warning")
                print("a print")
    with phase("ask"):
        for _ in track(range(2), "own answers"):
            time.sleep(0.7)
        if len(sys.argv) > 1:
            raise KeyboardInterrupt
    with phase("save"):
        pass
print("the table")
"""


class Terminal:
    """A process in a pseudo-terminal, and its output laid out by the few codes that a display uses."""

    def __init__(self, command: list[str]) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"},
            preexec_fn=lambda: (os.setsid(), fcntl.ioctl(0, termios.TIOCSCTTY, 0)),  # so that ^C interrupts it
        )
        os.close(slave)
        self.output = b""

    def read(self, until: bytes | None = None, seconds: float = 120.0) -> str:
        """Everything so far, up to the end or until something has been seen."""
        limit = time.monotonic() + seconds
        while (rest := limit - time.monotonic()) > 0 and not (until and until in self.output):
            try:
                if select.select([self.master], [], [], rest)[0]:
                    self.output += os.read(self.master, 65536)
            except OSError:  # Linux's way to say that the other side is closed
                break
        return self.output.decode()

    def screen(self) -> list[str]:
        lines, row, column = [""], 0, 0
        for code in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", self.output.decode()):
            if code == "\r":
                column = 0
            elif code == "\n":
                row += 1
                lines += [""] * (row + 1 - len(lines))
            elif code.endswith("A") and code.startswith("\x1b"):
                row = max(0, row - int(code[2:-1] or 1))
            elif code == "\x1b[2K":
                lines[row] = ""
            elif not code.startswith("\x1b"):
                lines[row] = lines[row].ljust(column)[:column] + code + lines[row][column + len(code) :]
                column += len(code)
        return [line.rstrip() for line in lines]


def run(*arguments: str) -> Terminal:
    terminal = Terminal([sys.executable, "-c", SCRIPT, *arguments])
    terminal.read()
    terminal.process.wait(20)
    return terminal


def test_one_frame_is_redrawn_and_messages_stay_whole_above_it():
    terminal = run()
    output, screen = terminal.output.decode(), [line for line in terminal.screen() if line]
    assert terminal.process.returncode == 0, output
    message = screen[: next(index for index, line in enumerate(screen) if "UserWarning" in line)]
    assert " ".join(message) == "a message [with brackets] " + 40 * "long " + "end"
    assert any(line.endswith("UserWarning: a warning") for line in screen)
    assert "a print" in screen
    expected = ["a run done in", "\u2713 train", "\u2713 ask", "\u2713 save", "the table"]
    assert [re.sub(r" \d:\d\d$", "", " ".join(line.split())) for line in screen[-5:]] == expected
    assert sum("a run" in line for line in screen) == 1  # nothing of the earlier frames is left
    assert output.count("epoch 2 of 4") >= 1
    assert output.count("own answers 1/2") >= 1
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")  # the cursor is back


def test_an_interrupted_phase_is_marked_and_the_terminal_left_clean():
    terminal = run("interrupt")
    output, screen = terminal.output.decode(), terminal.screen()
    assert terminal.process.returncode != 0
    assert any(re.match(r"  a run   stopped after \d:\d\d$", line) for line in screen)
    assert any(re.match(r"  x  ask +\d:\d\d$", line) for line in screen)
    assert any(re.match(r"  \u00b7  save$", line) for line in screen)
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")


def test_a_real_run_stopped_by_the_keyboard_ends_with_one_line(tmp_path: Path):
    line = [sys.executable, "-m", "lit_unlearn.train", f"conf={CONF}", f"output_dir={tmp_path / 'run'}"]
    terminal = Terminal([*line, "finetune.max_epochs=100000", "logging.mode=disabled"])
    try:
        assert " of 100000" in terminal.read(until=b" of 100000")
        os.write(terminal.master, b"\x03")
        terminal.read(seconds=60)
        screen = [line for line in terminal.screen() if line]
        assert terminal.process.poll() == 130 or terminal.process.wait(20) == 130, screen
    finally:
        terminal.process.kill()
    assert screen[0] == "^C" or screen[0].startswith("  run   stopped after")
    assert re.match(r"  x  finetune the target model +\d:\d\d$", next(line for line in screen if "target" in line))
    assert screen[-1].startswith("interrupted: what was written is whole")
    ours = re.compile(r"\^C|  run   stopped|  [x\u00b7]  |interrupted")
    assert all(ours.match(line) for line in screen), screen
