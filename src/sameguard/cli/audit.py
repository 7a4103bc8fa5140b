"""`sameguard audit`: ask the decision log of a guard what was decided, about whom, and how much of it."""

import json
import re
import time
from collections import deque
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sameguard.errors import ConfigurationError
from sameguard.server.audit_reading import AuditSummary, Record, read_audit, summarise

TABLE_ROWS = 20
SPAN = re.compile(r"(\d+)([smhd])")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
TimeOption = "an ISO date or time (UTC unless it says otherwise), or how long ago: 30m, 2h, 7d."


def audit_command(
    path: Annotated[Path, typer.Argument(help="The guard's audit.path; rotated files beside it are read too.")],
    since: Annotated[str | None, typer.Option(help=f"From here on: {TimeOption}")] = None,
    until: Annotated[str | None, typer.Option(help=f"Up to here: {TimeOption}")] = None,
    outcome: Annotated[
        str | None, typer.Option(help="What the client got: allow, coarsen, challenge, too-costly, refuse, failed, denied.")
    ] = None,
    verdict: Annotated[
        str | None, typer.Option(help="What the policy said, acted upon or not: allow, coarsen, challenge, too-costly, refuse.")
    ] = None,
    principal: Annotated[str | None, typer.Option(help="The principal's digest, or how it begins.")] = None,
    digest: Annotated[str | None, typer.Option(help="The query's digest, or how it begins.")] = None,
    request_id: Annotated[str | None, typer.Option("--request-id", help="The request's id, or how it begins.")] = None,
    summary: Annotated[bool, typer.Option("--summary", help="Counts, flagged share and score quantiles instead of records.")] = False,
    tail: Annotated[
        int | None, typer.Option("--tail", help=f"The last N records only; a table shows {TABLE_ROWS} unless told otherwise.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: a record a line, or one summary.")] = False,
) -> None:
    """Show what a guard decided, from its decision log. Exit code 1: the log has damaged lines, which were skipped.

    Example: sameguard audit audit.jsonl --since 24h --verdict refuse --summary
    """
    if tail is not None and tail < 1:
        raise ConfigurationError(f"--tail must be at least 1, got {tail}.")
    now = time.time()
    records = read_audit(
        path,
        since=None if since is None else _moment("--since", since, now),
        until=None if until is None else _moment("--until", until, now),
        outcome=outcome,
        verdict=verdict,
        principal=principal,
        digest=digest,
        request_id=request_id,
    )
    limit = tail if as_json or summary or tail is not None else TABLE_ROWS
    chosen = records if limit is None else deque(records, maxlen=limit)
    if summary:
        found = summarise(chosen)
        typer.echo(json.dumps(asdict(found), indent=2)) if as_json else Console().print(_summary_table(found))
    elif as_json:
        for record in chosen:
            typer.echo(json.dumps(record))
    else:
        Console().print(_table(chosen))
    if records.damaged:
        typer.echo(f"{records.damaged} damaged lines were skipped.", err=True)
        raise typer.Exit(1)


def _moment(name: str, text: str, now: float) -> float:
    """Unix seconds of a time, or of so long before now."""
    if (span := SPAN.fullmatch(text)) is not None:
        return now - int(span[1]) * SECONDS[span[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError(f"{name} must be {TimeOption.removesuffix('.')}, got {text!r}.") from error
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def _table(records: Any) -> Table:
    table = Table("time", "request", "principal", "rows", "verdict", "outcome", "status", "score", "proof", "reason")
    for record in records:
        cells = (
            record["time"][:19].replace("T", " "), record["request_id"][:12], record["principal"][:12], record["rows"], record["verdict"],
            record["outcome"], record.get("status", ""), _score(record), record.get("proof", ""), record.get("reason", ""),
        )  # fmt: skip
        table.add_row(*[_printable(str(cell)) for cell in cells])
    return table


def _score(record: Record) -> str:
    """The whole score; in brackets stage A's, where it settled the matter."""
    if record["score"] is not None:
        return f"{record['score']:.4g}"
    return "" if record["stage_a_score"] is None else f"({record['stage_a_score']:.4g})"


def _summary_table(found: AuditSummary) -> Table:
    table = Table(show_header=False)
    table.add_row("requests", f"{found.requests:,} ({found.rows:,} queries)")
    if found.first is not None:
        table.add_row("from, to", _printable(f"{found.first}, {found.last}"))
    table.add_row("outcomes", _counts(found.outcomes))
    table.add_row("verdicts", _counts(found.verdicts))
    if found.flagged_share is not None and found.interval is not None:
        low, high = found.interval
        table.add_row(
            "flagged", f"{found.flagged:,} of {found.judged:,} judged: {found.flagged_share:.2%} (95 % interval {low:.2%} to {high:.2%})"
        )
    for part, quantiles in found.scores.items():
        line = ", ".join(f"{float(quantile):.0%}: {value:.4g}" for quantile, value in quantiles.items())
        table.add_row(part.replace("_", " "), line or "none")
    return table


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


def _printable(text: str) -> Text:
    """A log holds what clients sent: nothing of it may reach the terminal as a control sequence or as markup."""
    return Text("".join(character if character.isprintable() else "�" for character in text))
