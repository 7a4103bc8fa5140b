"""`sameguard demo`: the whole product on toy data in about a minute. Parsing and printing only; the work is in evaluation.demo."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from sameguard.errors import ConfigurationError

if TYPE_CHECKING:
    from sameguard.evaluation.demo import DemoResult, Theft


def demo_command(
    out: Annotated[Path, typer.Option(help="Folder for the artefact and the picture.")] = Path("demo-output"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    budget: Annotated[int, typer.Option(min=1, help="Queries that the thief may send.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON instead of a table.")] = False,
) -> None:
    """Fit SAME on handwritten digits, calibrate it, and watch a thief with and without the guard; needs no download.

    Example: sameguard demo --out demo-output
    """
    try:
        from sameguard.cli.progress import stage_bars
        from sameguard.evaluation.demo import DemoConfig, run_demo
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"demo fits models and needs {error.name}, which is not installed: pip install 'sameguard[train]'.") from error
    with stage_bars() as progress:
        result = run_demo(out, DemoConfig(seed=seed, budget=budget), progress)
    if as_json:
        typer.echo(json.dumps(result.to_json(), indent=2))
        return
    Console().print(_table(result))
    typer.echo(f"artefact: {result.artefact}\npicture:  {result.picture}")
    typer.echo("One seed on toy data (8x8 digits, a small victim): this shows how the parts work together, not how good SAME is.")


def _table(result: "DemoResult") -> Table:
    table = Table("", "value", "measured on", title="SAME on scikit-learn's digits, and a Knockoff thief with a proxy of letters and symbols")
    digits = f"{result.test} test digits"
    table.add_row("victim accuracy", _percent(result.victim_accuracy), digits)
    table.add_row("auxiliary agrees with victim", _percent(result.agreement), digits)
    table.add_section()
    promised = f"at most {_percent(result.promised_rate)}"
    table.add_row("honest queries refused: promised", promised, f"{result.calibration_n} calibration digits, {_interval(result.promised_interval)}")
    realised = _percent(result.false_positive_rate)
    table.add_row("honest queries refused: found", realised, f"{digits}, {_interval(result.false_positive_interval)}")
    table.add_row("AUROC, thief vs honest", f"{result.auroc:.3f}", f"{result.n_pos} glyphs, {result.n_neg} digits, {_range(result.auroc_interval)}")
    table.add_section()
    _add_theft(table, "no guard", result.open, digits)
    _add_theft(table, "guarded", result.guarded, digits)
    return table


def _add_theft(table: Table, name: str, theft: "Theft", digits: str) -> None:
    table.add_row(f"{name}: thief's queries answered", _percent(theft.answered / theft.used), f"{theft.answered} of {theft.used}")
    table.add_row(f"{name}: substitute accuracy", _percent(theft.accuracy), f"{digits}; guessing gives 10 %")
    table.add_row(f"{name}: substitute fidelity", _percent(theft.fidelity), digits)


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def _interval(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"95 %: {100 * low:.1f} to {100 * high:.1f} %"


def _range(interval: tuple[float, float]) -> str:
    return f"95 %: {interval[0]:.3f} to {interval[1]:.3f}"
