"""What an attack has paid for is kept until it is done: a ledger without being asked, found again by the same command.

It lies beside the file of `--save-queries`, else in the working directory, and goes when the attack has ended well; a ledger that the user
named stays. Its name holds a digest of what chooses the queries, so that another attack does not meet it.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from sameguard.endpoint import Endpoint
from sameguard.errors import InvalidDataError
from sameguard.ledger import Ledger

# of the command line: they change how queries are sent or what is done with the result, not which are sent
NO_MATTER = {"test", "judge", "ledger", "save_queries", "as_json", "header", "requests_per_second", "batch_rows"}


def default_ledger(given: Mapping[str, Any], save_queries: Path | None) -> Path | None:
    """Where answers are kept when the user names no ledger; None, said on stderr, where nothing can be written there."""
    folder = Path.cwd() if save_queries is None else save_queries.parent
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not os.access(there, os.W_OK):
        typer.echo(f"answers are not kept: {there} cannot be written to; --ledger FILE names another place.", err=True)
        return None
    known = {name: str(value) for name, value in given.items() if name not in NO_MATTER}
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]
    return folder / f"sameguard-attack-{digest}.ledger"


@contextmanager
def answers_kept(endpoint: Endpoint, path: Path | None, *, lasting: bool) -> Iterator[Endpoint]:
    """The endpoint with a ledger before it. lasting: the file stays when all went well.

    Where the block ends otherwise, by an error or Ctrl-C, says on stderr what is kept and how to go on.
    """
    if path is None:
        yield endpoint
        return
    kept = Ledger(endpoint, path)
    if kept.recorded:
        typer.echo(f"{kept.recorded:,} answers are in {path}: they are not asked for again.", err=True)
    try:
        yield kept
    except InvalidDataError:  # the ledger is another attack's, or the thief's data do not fit: the same command would end there again
        raise
    except BaseException:  # Ctrl-C too; it goes on upwards
        rows = Ledger(endpoint, path).recorded
        if rows:
            typer.echo(f"{rows:,} answers are kept in {path}: the same command goes on from there.", err=True)
        raise
    if not lasting:
        path.unlink(missing_ok=True)


@contextmanager
def interrupted_is_130() -> Iterator[None]:
    """Ctrl-C ends the command with the exit code that shells expect, and no traceback."""
    try:
        yield
    except KeyboardInterrupt as stop:
        typer.echo("interrupted.", err=True)
        raise typer.Exit(130) from stop
