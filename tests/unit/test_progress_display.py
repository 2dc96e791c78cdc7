"""What a person sees: bars on a terminal, few plain lines in a log, the same line of each step."""

import io
import logging

import pytest

from pipeline.errors import UserError
from pipeline.progress import TimeLeft, not_progress, open_progress, step_line
from pipeline.progress_display import PlainDisplay
from pipeline.step_record import StepRecord

RECORD = StepRecord(
    step=3,
    version=3,
    elapsed_s=60.0,
    metrics={
        "reward/mean": 0.412,
        "rollout/searches_per_question": 2.1,
        "rollout/redundant_searches": 0.25,
        "buffer/staleness_mean": 0.8,
        "buffer/staleness_max": 1.0,
        "learner/wait_s": 4.2,
        "buffer/filtered": 7.0,
        "buffer/failed": 1.0,
    },
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_step_line_says_all_that_was_asked_for():
    assert step_line(RECORD, 30, 540.0) == (
        "step 3/30  reward 0.412  searches 2.10  redundant 0.25  staleness 0.80  (max 1)  "
        "learner waited 4.2 s  filtered 7  failed 1  9 min 0 s left"
    )


def test_time_left_follows_the_last_steps():
    clock = Clock()
    left = TimeLeft(10, clock=clock)
    assert left.seconds() is None
    for step, now in ((1, 20.0), (2, 40.0)):
        clock.now = now
        left.done(step)
    assert left.seconds() == 160.0
    clock.now = 45.0  # five seconds into the third step
    assert left.seconds() == 155.0


def test_a_time_limit_bounds_the_time_left():
    clock = Clock()
    left = TimeLeft(1000, limit_s=60.0, clock=clock)
    clock.now = 20.0
    left.done(1)
    assert left.seconds() == 40.0


def test_without_a_terminal_there_are_plain_lines():
    out = io.StringIO()
    with open_progress("auto", stream=out) as progress, progress.training(30) as training:
        training.record(RECORD)
    lines = out.getvalue().splitlines()
    assert lines[0] == "training: begins, 30 in all"
    assert lines[1].startswith("step 3/30  reward 0.412")
    assert lines[2].startswith("training: done, 3 in ")
    assert "\x1b" not in out.getvalue()


def test_plain_lines_of_a_long_phase_are_few():
    clock = Clock()
    out = io.StringIO()
    display = PlainDisplay(out, clock)
    display.open(1, "evaluate", 1000)
    for done in range(1, 1001):
        clock.now += 0.125  # exact; 12.5 s for each tenth
        display.update(1, done, "")
    lines = out.getvalue().splitlines()[1:]
    assert lines == [f"evaluate: {done} of 1000" for done in range(100, 1001, 100)]


def test_on_a_terminal_there_is_a_bar_and_the_step_lines_stay(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    out = Terminal()
    with open_progress("auto", stream=out) as progress, progress.training(30) as training:
        training.record(RECORD)
        progress.line("all is drawn")
    assert "\x1b[" in out.getvalue()
    assert "step 3/30  reward 0.412" in out.getvalue()
    assert "groups filtered 7, failed 1 so far" in out.getvalue()


def test_words_of_the_policy_are_not_read_as_markup(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with open_progress("bar", stream=out) as progress:
        progress.line("query [bold]x[/nonsense]")
    assert "query [bold]x[/nonsense]" in out.getvalue()


def test_every_line_reaches_the_log_and_a_console_handler_can_leave_it_out(caplog):
    with caplog.at_level(logging.INFO), open_progress("none") as progress:
        progress.line("run directory: outputs/x")
    (record,) = [r for r in caplog.records if r.getMessage() == "run directory: outputs/x"]
    assert not not_progress(record)


def test_a_phase_that_fails_says_that_it_stopped():
    out = io.StringIO()
    with (
        pytest.raises(RuntimeError, match="engine"),
        open_progress("plain", stream=out) as progress,
        progress.phase("evaluate", total=5) as phase,
    ):
        phase.reach(2)
        raise RuntimeError("engine died")
    assert "evaluate: stopped, 2 in" in out.getvalue()


def test_an_unknown_mode_names_the_key_and_the_choices():
    with pytest.raises(UserError, match=r"tracker\.progress=fancy .* auto, bar, plain, none"):
        open_progress("fancy")
