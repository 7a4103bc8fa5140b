"""A progress bar per training stage on stderr, with loss and time left."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sameguard.training import ProgressEvent


class StageBars:
    """Turns ProgressEvents into one bar for each stage."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, object] = {}

    def __call__(self, event: ProgressEvent) -> None:
        if event.stage not in self._tasks:
            self._tasks[event.stage] = self._bars.add_task(event.stage, total=event.steps, note="")
        loss = "" if math.isnan(event.loss) else f"loss {event.loss:.4g}  "
        left = f"{int(event.seconds_left // 60)}:{int(event.seconds_left % 60):02d} left" if event.step < event.steps else "done"
        self._bars.update(self._tasks[event.stage], completed=event.step, total=event.steps, note=loss + left)


@contextmanager
def stage_bars() -> Iterator[StageBars]:
    columns = (
        TextColumn("{task.description:>15}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(file=sys.stderr), transient=False, refresh_per_second=4) as bars:
        yield StageBars(bars)
