"""Progress of a run on stderr: a bar for each stage on a terminal, now and then a line in a file, a pipe or a job's log."""

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sameguard.training import ProgressEvent

LINE_SECONDS = 30.0  # at the latest; a tenth of a stage comes sooner or later than that


class StageBars:
    """Turns ProgressEvents into one bar for each stage."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, object] = {}

    def __call__(self, event: ProgressEvent) -> None:
        if event.stage not in self._tasks:
            self._tasks[event.stage] = self._bars.add_task(event.stage, total=event.steps, note="")
        self._bars.update(self._tasks[event.stage], completed=event.step, total=event.steps, note=_note(event))

    def say(self, text: str) -> None:
        """A line above the bars."""
        self._bars.console.print(text, highlight=False, markup=False)


class StageLines:
    """Turns ProgressEvents into lines: the first of a stage, each tenth of it, and what comes LINE_SECONDS after the last line."""

    def __init__(self, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._last: dict[str, tuple[int, float]] = {}  # tenth and time of the last line

    def __call__(self, event: ProgressEvent) -> None:
        tenth, now = 10 * event.step // max(1, event.steps), self._clock()
        last_tenth, last_time = self._last.get(event.stage, (-1, now))
        if tenth > last_tenth or now - last_time >= LINE_SECONDS:
            self._last[event.stage] = (tenth, now)
            self._write(f"{event.stage}: {event.step:,} of {event.steps:,}  {_note(event)}")

    def say(self, text: str) -> None:
        self._write(text)


def _note(event: ProgressEvent) -> str:
    loss = "" if math.isnan(event.loss) else f"loss {event.loss:.4g}  "
    left = f"{int(event.seconds_left // 60)}:{int(event.seconds_left % 60):02d} left" if event.step < event.steps else "done"
    return loss + left


@contextmanager
def said_meanwhile(say: Callable[[str], object], what: Callable[[], str], seconds: float = LINE_SECONDS) -> Iterator[None]:
    """Says `what()` every so many seconds, where it has changed: for steps that take minutes."""
    done = threading.Event()

    def speak() -> None:
        last = what()
        while not done.wait(seconds):
            if (text := what()) != last:
                say(text)
                last = text

    thread = threading.Thread(target=speak, name="sameguard-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def stage_bars() -> Iterator[StageBars | StageLines]:
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield StageLines(lambda line: typer.echo(line, err=True))
        return
    columns = (
        TextColumn("{task.description:>15}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=False, refresh_per_second=4) as bars:
        yield StageBars(bars)
