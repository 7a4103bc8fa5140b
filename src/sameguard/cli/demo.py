"""`sameguard demo`: the whole product on toy data in about a minute. Parsing and printing only; the work is in evaluation.demo."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from sameguard.errors import ConfigurationError

if TYPE_CHECKING:
    from sameguard.evaluation.demo import DemoResult


def demo_command(
    out: Annotated[Path, typer.Option(help="Folder for the artefact and the picture.")] = Path("demo-output"),
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of everything random.")] = 0,
    budget: Annotated[int, typer.Option(metavar="N", min=1, help="Queries that the thief may send.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON instead of a table.")] = False,
) -> None:
    """Fit SAME on handwritten digits, calibrate it, and watch a thief with and without the guard; needs no download.

    Example: sameguard demo --out demo-output
    """
    try:
        from sameguard.cli.progress import stage_bars
        from sameguard.evaluation.demo import DemoConfig, run_demo
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"demo fits models and needs {error.name}, which is not installed: pip install 'sameguard[train]'."
        ) from error
    with stage_bars() as progress:
        result = run_demo(out, DemoConfig(seed=seed, budget=budget), progress)
    if as_json:
        typer.echo(json.dumps(result.to_json(), indent=2))
        return
    Console().print(_table(result))
    typer.echo(f"artefact: {result.artefact}\npicture:  {result.picture}")
    typer.echo("One seed on toy data (8x8 digits, a small victim): this shows how the parts work together, not how good SAME is.")


def _table(result: "DemoResult") -> Table:
    table = Table("", "value", "measured on", title="SAME on handwritten digits, and a Knockoff thief who asks about letters")
    digits = f"{result.test} test digits"
    table.add_row("victim accuracy", _percent(result.victim_accuracy), digits)
    table.add_row("auxiliary agreement", _percent(result.agreement), digits)
    table.add_section()
    promised = f"<= {_percent(result.promised_rate)}"
    table.add_row("honest refused, promise", promised, f"{result.calibration_n} digits: {_interval(result.promised_interval)}")
    realised = _percent(result.false_positive_rate)
    table.add_row("honest refused, found", realised, f"{digits}: {_interval(result.false_positive_interval)}")
    low, high = result.auroc_interval
    table.add_row("AUROC", f"{result.auroc:.3f}", f"{result.n_pos} glyphs, {result.n_neg} digits: {low:.3f} to {high:.3f}")
    for name, theft in (("no guard", result.open), ("guarded", result.guarded)):
        table.add_section()
        table.add_row(f"{name}: answered", _percent(theft.answered / theft.used), f"{theft.answered} of {theft.used} queries of the thief")
        table.add_row(f"{name}: accuracy", _percent(theft.accuracy), f"substitute on {digits}")
        table.add_row(f"{name}: fidelity", _percent(theft.fidelity), f"substitute vs victim on {digits}")
    table.caption = "Ranges: 95 %, by the choice of queries alone. Guessing has accuracy 10 %."
    return table


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def _interval(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"
