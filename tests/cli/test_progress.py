"""Progress where nobody looks at a terminal: a line now and then, neither silence nor a flood."""

import io
import itertools
import math
import threading

from rich.console import Console
from rich.progress import Progress, TextColumn

from sameguard.cli.progress import LINE_SECONDS, StageBars, StageLines, said_meanwhile, stage_bars
from sameguard.training import ProgressEvent


def told(events, seconds_each=0.0):
    lines, now = [], [0.0]
    report = StageLines(lines.append, lambda: now[0])
    for event in events:
        report(event)
        now[0] += seconds_each
    return lines


def test_a_quick_stage_says_each_tenth_of_it():
    events = [ProgressEvent("queries", step, 1000, math.nan, 61.0) for step in range(1, 1001)]
    lines = told(events)
    assert lines[0] == "queries: 1 of 1,000  1:01 left"
    assert lines[1].startswith("queries: 100 of 1,000")
    assert lines[-1] == "queries: 1,000 of 1,000  done"
    assert len(lines) == 11


def test_a_slow_stage_says_that_it_lives():
    events = [ProgressEvent("queries", step, 10_000, math.nan, 9e4) for step in range(1, 41)]
    assert len(told(events, seconds_each=LINE_SECONDS / 4)) == 10


def test_each_stage_speaks_for_itself_and_tells_its_loss():
    lines = told([ProgressEvent("autoencoder", 1, 2, 0.25, 1.0), ProgressEvent("auxiliary", 1, 2, 0.5, 1.0)])
    assert lines == ["autoencoder: 1 of 2  loss 0.25  0:01 left", "auxiliary: 1 of 2  loss 0.5  0:01 left"]


def test_a_step_of_minutes_says_what_has_changed_meanwhile():
    heard, twice = [], threading.Event()
    counted = itertools.count()

    def hear(text):
        heard.append(text)
        if len(heard) == 2:
            twice.set()

    with said_meanwhile(hear, lambda: f"{min(next(counted), 2)} asked", seconds=0.001):
        assert twice.wait(20)
    assert heard == ["1 asked", "2 asked"]


def test_what_is_no_terminal_gets_lines(capsys):
    with stage_bars() as report:
        report.say("knockoff: 64 queries")
        report(ProgressEvent("queries", 64, 64, math.nan, 0.0))
    assert capsys.readouterr().err == "knockoff: 64 queries\nqueries: 64 of 64  done\n"


def test_a_terminal_gets_bars_with_lines_above_them():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Progress(TextColumn("{task.description}"), TextColumn("{task.fields[note]}"), console=console) as bars:
        report = StageBars(bars)
        report.say("knockoff: [64] queries")
        report(ProgressEvent("queries", 64, 64, math.nan, 0.0))
    written = console.file.getvalue()
    assert "knockoff: [64] queries" in written
    assert "done" in written
