"""The calls with and without a display, and without a terminal."""

import threading

import pytest

from lit_unlearn.display import lines
from lit_unlearn.display.numbers import Numbers
from lit_unlearn.display.phases import Planned
from lit_unlearn.display.progress import Progress
from lit_unlearn.display.screen import advance, begin, display, end, phase, show, track


def use_all() -> list[int]:
    with phase("train", total=2):
        advance("half")
        show({"train/forget_loss": 1.0}, 1)
        seen = list(track(range(3), "inner"))
        begin("ask")
        end()
    return seen


def test_without_a_display_all_calls_pass_silently(capsys: pytest.CaptureFixture[str]):
    assert use_all() == [0, 1, 2]
    with display("run", [Planned("train")], shown=False):
        assert use_all() == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_each_phase_ends_with_a_line(capsys: pytest.CaptureFixture[str]):
    with display("run", [Planned("train"), Planned("save")]):
        assert use_all() == [0, 1, 2]
        with phase("save"):
            assert list(track([4, 5], None)) == [4, 5]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "    0:00  1/2  train   done in 0:00   loss forget 1.000",
        "    0:00  2/2  save   done in 0:00",
    ]
    assert use_all() == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_an_exception_leaves_the_display_closed(capsys: pytest.CaptureFixture[str]):
    def fail() -> None:
        begin("train", total=5)  # as a callback does, which keeps no block open
        with phase("ask"):
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), display("run", [Planned("train"), Planned("save")]):
        fail()
    assert capsys.readouterr().err == "    0:00  1/2  train   stopped in 0:00\n"
    use_all()
    assert capsys.readouterr() == ("", "")


def test_other_threads_see_no_display(capsys: pytest.CaptureFixture[str]):
    with display("run", [Planned("train")]):
        thread = threading.Thread(target=use_all)
        thread.start()
        thread.join()
    assert capsys.readouterr() == ("", "")


def test_lines_come_from_time_to_time(capsys: pytest.CaptureFixture[str]):
    now = [0.0]
    run, numbers = Progress([Planned("train", "training", 50.0), Planned("ask", "asking")], lambda: now[0]), Numbers()
    painter = lines.Lines(run, numbers)
    run.begin(Planned("train"), 1000, 0)
    for step in range(1, 1001):
        now[0] += 1.0
        run.open[0].done = step
        painter.changed()
    told = capsys.readouterr().err.splitlines()
    # 10, 20, 30, 40, 50 s, then after a quarter of what has passed: 63 = 50 + 12.5, 79 = 63 + 15.75, ...
    assert [line.split()[0] for line in told][:7] == ["0:10", "0:20", "0:30", "0:40", "0:50", "1:03", "1:19"]
    assert told[0] == "    0:10  1/2  train     1%   16:30 left   (run: > 16:30 left)"
    assert len(told) == 24


def test_a_long_run_tells_something_every_minute(capsys: pytest.CaptureFixture[str]):
    now = [0.0]
    run = Progress([Planned("train")], lambda: now[0])
    painter = lines.Lines(run, Numbers())
    run.begin(Planned("train"), 100_000, 0)
    for minute in range(24 * 60):
        now[0] = 60.0 * minute
        run.open[0].done = minute
        painter.changed()
    assert len(capsys.readouterr().err.splitlines()) == pytest.approx(24 * 60, abs=15)
