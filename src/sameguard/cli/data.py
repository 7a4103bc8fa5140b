"""The verbs of `sameguard data`: fetch the official files of a set, list what is found where, show one set.

Parsing and printing only. Errors from sameguard.errors pass through to the top-level command, which turns them into one sentence.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from sameguard.cli.sources import SizeOption, load_data
from sameguard.data.dataset import Split
from sameguard.data.fetch import fetch
from sameguard.data.official import OFFICIAL
from sameguard.data.registry import GENERATED, locate, names

data_app = typer.Typer(no_args_is_help=True, help="Fetch, list and show data sets.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="A name that `sameguard data list` prints.")]
Root = Annotated[Path, typer.Option("--data-root", envvar="SAMEGUARD_DATA", help="Folder below which the data sets lie.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@data_app.command("fetch")
def fetch_command(
    name: Name,
    data_root: Root = Path("data"),
    base_url: Annotated[str | None, typer.Option(help="A mirror that has the official files under their official names.")] = None,
) -> None:
    """Download the official files of a set, check them and unpack them where they are looked for.

    Example: sameguard data fetch mnist --data-root data
    """
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def show(file: str, done: int, total: int | None) -> None:
            if file not in tasks:
                tasks[file] = bars.add_task(file, total=total)
            bars.update(tasks[file], completed=done, total=total)

        fetched = fetch(name, data_root, base_url, show)
    if fetched.downloaded_bytes:
        typer.echo(f"{name}: {fetched.downloaded_bytes:,} bytes downloaded and checked, in {fetched.folder}")
    else:
        typer.echo(f"{name}: already there and right, in {fetched.folder}; nothing was downloaded")


@data_app.command("list")
def list_command(data_root: Root = Path("data"), as_json: Json = False) -> None:
    """List the data sets: which are found below the data root, and where.

    Example: sameguard data list --json
    """
    rows = [_found(name, data_root) for name in names()]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("name", "found", "fetch")
    for row in rows:
        found = "made on call" if row["generated"] else row["found"] or "no"
        table.add_row(row["name"], escape(found), "yes" if row["fetchable"] else "no")
    Console().print(table)


@data_app.command("show")
def show_command(
    name: Annotated[str, typer.Argument(metavar="NAME|PATH", help="A data set's name, an .npz of arrays, or a folder of images.")],
    data_root: Root = Path("data"),
    size: SizeOption = None,
    as_json: Json = False,
) -> None:
    """Show how many inputs of what shape and how many classes a data set has, a named one or your own.

    Example: sameguard data show digits
    """
    found = load_data(name, data_root, size)
    parts = {part: _described(split) for part, split in (("train", found.train), ("test", found.test)) if split is not None}
    if as_json:
        typer.echo(json.dumps({"name": name, **parts}, indent=2))
        return
    table = Table("part", "inputs", "shape", "classes", title=name)
    for part, facts in parts.items():
        table.add_row(part, f"{facts['inputs']:,}", "x".join(map(str, facts["shape"])), str(facts["classes"]))
    Console().print(table)


def _found(name: str, root: Path) -> dict[str, Any]:
    layout = locate(name, root)
    where = None if layout is None else root / layout.folder / (layout.files[0] if len(layout.files) == 1 else "")
    return {
        "name": name,
        "found": None if where is None else str(where.absolute()),
        "generated": name in GENERATED,
        "fetchable": name in OFFICIAL,
    }


def _described(split: Split) -> dict[str, Any]:
    return {"inputs": len(split), "shape": list(split.input_shape), "classes": split.classes}
