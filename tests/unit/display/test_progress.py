"""Phases, totals and times, by a clock the test moves."""

import pytest

from lit_unlearn.display.costs import Left
from lit_unlearn.display.phases import Planned, State
from lit_unlearn.display.progress import Progress
from lit_unlearn.display.words import clock, to_come


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


PLAN = [
    Planned("finetune target", "training", 40.0),
    Planned("finetune retain", "training", 36.0),
    Planned("ask original", "asking"),
    Planned("train", "training", 20.0, {"asking": 3}),
    Planned("ask unlearned", "asking"),
    Planned("save", amount=0),
]


@pytest.fixture
def time() -> Clock:
    return Clock()


@pytest.fixture
def run(time: Clock) -> Progress:
    return Progress(PLAN, time)


def go(run: Progress, time: Clock, title: str, seconds: float, total: int | None = None, steps: int = 0) -> None:
    """Begin a phase and let time pass while it takes its steps; it stays open."""
    run.begin(Planned(title), total, 0)
    time.now += seconds
    run.open[-1].done += steps


def ask(run: Progress, time: Clock, title: str, given: float, own: float) -> None:
    """A whole phase of two parts, of four batches each."""
    run.begin(Planned(title, "asking"), None, 0)
    for part, seconds in (("given", given), ("own", own)):
        part = run.begin_part(part, 4)
        for _ in range(4):
            time.now += seconds / 4
            run.advance_part(part)
    run.end()


def states(run: Progress) -> list[str]:
    return [phase.state.value for phase in run.phases]


def test_nothing_is_known_at_first(run: Progress):
    assert run.left_of_run() == Left(0.0, False)


def test_a_training_s_time_left_comes_from_its_own_steps_and_tells_of_the_next(run: Progress, time: Clock):
    go(run, time, "finetune target", 10.0, total=100, steps=25)
    assert run.fraction(run.phases[0]) == 0.25
    assert run.left(run.phases[0]) == Left(30.0, True)
    # a row takes 10 s / (0.25 * 40 rows) = 1 s: 30 for the rest, 36 and 20 for the others; asking is not known
    assert run.left_of_run() == Left(86.0, False)


def test_phases_to_come_cost_what_their_kind_has_cost(run: Progress, time: Clock):
    go(run, time, "finetune target", 80.0, total=100)
    run.end()
    go(run, time, "finetune retain", 72.0, total=100)
    run.end()
    assert run.left_of_run() == Left(40.0, False)  # 2 s a row, 20 rows
    ask(run, time, "ask original", 1.0, 3.0)
    assert run.left_of_run() == Left(40.0 + 3 * 4.0 + 4.0, True)  # saving has no amount: it is not foreseen
    assert states(run) == ["done", "done", "done", "waiting", "waiting", "waiting"]


def test_what_runs_inside_is_not_the_outer_phase_s_own_time(run: Progress, time: Clock):
    for title in ("finetune target", "finetune retain"):
        go(run, time, title, 1.0, total=10)
        run.end()
    ask(run, time, "ask original", 1.0, 3.0)
    go(run, time, "train", 6.0, total=10, steps=3)
    ask(run, time, "ask epoch 1", 1.0, 3.0)
    train = run.phases[3]
    assert (run.elapsed(train), run.seconds(train)) == (10.0, 6.0)
    assert run.left(train) == Left(7 * 2.0 + 2 * 4.0, True)
    run.begin(Planned("ask epoch 2", "asking"), None, 0)
    part = run.begin_part("given", 4)
    time.now += 0.5
    part.done = 2
    assert run.left(train) == Left(14.0 + 0.5 + 3.0 + 4.0, True)  # of the second asking 0.5 and 3, of the third 4
    assert run.seconds(train) == 6.0
    assert len(run.phases) == len(PLAN)  # what runs inside is not listed


def test_parts_know_their_time_once_their_kind_has_been_seen(run: Progress, time: Clock):
    run.begin(PLAN[2], None, 0)
    part = run.begin_part("given", 4)
    time.now += 1.0
    run.advance_part(part)
    assert run.left(run.phases[2]) == Left(3.0, False)  # what comes after this part is not known
    assert run.fraction(run.phases[2]) == 0.25  # of the part
    run.end()
    ask(run, time, "ask unlearned", 2.0, 6.0)
    run.begin(Planned("ask again", "asking"), None, 0)
    time.now += 2.0
    assert run.left(run.open[0]) == Left((1.0 + 8.0) / 2 - 2.0, True)  # no part begun: by the kind's mean
    part = run.begin_part("given", 4)
    time.now += 0.5
    assert run.left(run.open[0]) == Left(1.5 + 6.0, True)
    assert run.fraction(run.open[0]) == pytest.approx(2.5 / (2.5 + 7.5))


def test_a_resumed_training_counts_only_what_it_does_itself(run: Progress, time: Clock):
    run.begin(Planned("train"), 10, 5)  # half of its 20 rows and of its 3 evaluations are behind it
    assert states(run)[:4] == ["skipped", "skipped", "skipped", "running"]
    time.now += 4.0
    run.open[0].done += 1
    assert run.fraction(run.phases[3]) == 0.6
    assert run.left(run.phases[3]).seconds == 16.0
    time.now += 16.0
    run.open[0].done += 4
    run.end()
    assert run.costs.of("training", 10.0) == Left(20.0, True)


def test_an_unplanned_phase_is_listed_where_it_happens(run: Progress, time: Clock):
    go(run, time, "finetune target", 1.0)
    run.end()
    go(run, time, "download", 1.0)
    assert [phase.planned.title for phase in run.phases][:3] == ["finetune target", "download", "finetune retain"]
    assert states(run)[:3] == ["done", "running", "waiting"]


def test_a_stopped_phase_teaches_nothing(run: Progress, time: Clock):
    go(run, time, "finetune target", 5.0, total=10)
    assert run.end(State.stopped).state is State.stopped
    assert not run.costs.of("training", 1.0).exact


def test_times_in_words():
    assert [clock(seconds) for seconds in (0, 59.6, 750, 11045)] == ["0:00", "1:00", "12:30", "3:04:05"]
    assert to_come(Left(40.0, True)) == "0:40 left"
    assert to_come(Left(40.0, False)) == "> 0:40 left"
    assert to_come(Left(0.2, False)) == ""
