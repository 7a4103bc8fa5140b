"""`sameguard evaluate` and `sameguard report`: the laboratory's tables and figures. Parsing and printing only; the work is in evaluation."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sameguard.cli.fit import PAUSED, check_seconds
from sameguard.cli.sources import RootOption
from sameguard.errors import ConfigurationError

if TYPE_CHECKING:
    from sameguard.evaluation.run import Outcome, PlanEvent

FINDING = 1  # exit code where something could not be made


def evaluate_command(
    out: Annotated[Path, typer.Option(help="Results folder: new, or one to go on with.")],
    scale: Annotated[str, typer.Option(help="tiny (digits, minutes), cpu (MNIST, CIFAR-10) or paper (for an accelerator).")] = "tiny",
    table: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="1 to 4, or a name that the plan has (attacks, thieves, enforcement); repeatable."),
    ] = None,
    figure: Annotated[list[str] | None, typer.Option(metavar="N", help="1, 2, 4, 5, 6 or 7; repeatable.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of fits and attacks; the victim stays the same.")] = 0,
    data_root: RootOption = Path("data"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    time_budget: Annotated[
        float | None, typer.Option(help="Seconds after which to stop cleanly (exit code 75); the same command goes on.")
    ] = None,
    save_queries: Annotated[
        bool, typer.Option("--save-queries", help="Also write each attack's queries as .npz below OUT/queries.")
    ] = False,
    reuse: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Output folder of benchmarks/real_data.py whose fit is taken over; repeatable."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the plan and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Run the laboratory: attacks, detectors and every table and figure of the paper, as far as they are not there yet.

    Example: sameguard evaluate --table 1 --scale tiny --out results/tiny
    """
    check_seconds("--time-budget", time_budget)
    run = _laboratory()
    names = tuple([f"table-{name}" if name.isdigit() else name for name in table or []] + [f"figure-{name}" for name in figure or []])
    if dry_run:
        run.check_folder(out, scale)
        _print_plan(scale, names)
        return
    order = run.Order(out, scale, names, seed, data_root, device, tuple(reuse or ()), save_queries)
    from sameguard.training import RunControl, TrainingPausedError

    with _plan_bar() as progress:
        try:
            outcomes = run.evaluate(order, RunControl().with_time_budget(time_budget), progress)
        except TrainingPausedError as pause:
            typer.echo(f"{pause}\nThe same command goes on from there.", err=True)
            raise typer.Exit(130 if "interrupted" in str(pause) else PAUSED) from pause
        except KeyboardInterrupt as stop:
            typer.echo("interrupted; the same command goes on from there.", err=True)
            raise typer.Exit(130) from stop
    if as_json:
        typer.echo(json.dumps([_outcome(outcome) for outcome in outcomes], indent=1))
    else:
        Console().print(_outcome_table(outcomes))
        typer.echo(f"Report: sameguard report {out}")
    lost = [f"{outcome.exhibit.title}: no {entry['what']}: {entry['why']}" for outcome in outcomes for entry in outcome.missing]
    for sentence in dict.fromkeys(lost):
        typer.echo(f"missing: {sentence}", err=True)
    if lost:
        raise typer.Exit(FINDING)


def report_command(
    out: Annotated[Path, typer.Argument(help="Results folder of sameguard evaluate.")],
    html: Annotated[Path | None, typer.Option(help="Where to write the page, default OUT/report.html.")] = None,
) -> None:
    """Write one self-contained HTML page and Markdown tables of everything that a results folder holds.

    Example: sameguard report results/tiny
    """
    _laboratory()
    from sameguard.evaluation.report import write_report

    for path in write_report(out, html):
        typer.echo(str(path))


def _laboratory() -> Any:
    try:
        from sameguard.evaluation import run
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"the laboratory trains models and needs {error.name}: pip install 'sameguard[train]'.") from error
    return run


def _print_plan(scale: str, names: tuple[str, ...]) -> None:
    from sameguard.evaluation.exhibits import steps
    from sameguard.evaluation.scenarios import select

    table = Table("table or figure", "setting", "attacks", "stages")
    for exhibit in select(scale, names):
        table.add_row(exhibit.key, exhibit.setting.title, ", ".join(row.name for row in exhibit.attacks), str(len(steps(exhibit))))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _outcome(outcome: "Outcome") -> dict[str, Any]:
    return {
        "name": outcome.exhibit.key, "result": None if outcome.path is None else str(outcome.path), "cached": outcome.cached,
        "seconds": round(outcome.seconds, 1), "missing": list(outcome.missing),
    }  # fmt: skip


def _outcome_table(outcomes: list["Outcome"]) -> Table:
    table = Table("table or figure", "result", "seconds", "missing")
    for outcome in outcomes:
        state = "none" if outcome.path is None else "was there" if outcome.cached else "made"
        table.add_row(outcome.exhibit.key, state, f"{outcome.seconds:.0f}", ", ".join(entry["what"] for entry in outcome.missing))
    return table


@contextmanager
def _plan_bar() -> Iterator[Callable[["PlanEvent"], None]]:
    """One bar over the whole plan on stderr, with the stage that is running; plain lines where stderr is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        lines = PlanLines(partial(typer.echo, err=True))
        yield lines
        lines.close()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=console, refresh_per_second=4) as bars:
        task = bars.add_task("plan", total=1.0, left="")

        def show(event: "PlanEvent") -> None:
            inner = "" if event.inner is None else f" ({event.inner.stage} {event.inner.step}/{event.inner.steps})"
            left = f"{int(event.seconds_left // 3600)}:{int(event.seconds_left % 3600 // 60):02d}:{int(event.seconds_left % 60):02d} left"
            bars.update(task, completed=event.share, description=f"{event.step}/{event.steps} {event.title}{inner}", left=left)

        yield show


class PlanLines:
    """A line for each step that makes something, and one for all that were cached before it."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say
        self._made: set[str] = set()
        self._cached, self._steps, self._told = 0, 0, 0

    def __call__(self, event: "PlanEvent") -> None:
        self._cached, self._steps = event.cached, event.steps
        if event.making and event.title not in self._made:
            self._made.add(event.title)
            self.close()
            self._say(f"[{event.step}/{event.steps}] {event.title}, about {event.seconds_left / 60:.0f} min left")

    def close(self) -> None:
        """Tells of the cached steps that nobody was told of yet."""
        if self._cached > self._told:
            self._say(f"{self._cached} of {self._steps} steps cached")
            self._told = self._cached
