"""`sameguard audit`: ask the decision log of a guard what was decided, about whom, and how much of it."""

import json
import re
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sameguard.errors import ConfigurationError
from sameguard.server.audit_reading import MILD, AuditSummary, Record, read_audit, summarise

TABLE_ROWS = 20
NARROW, WIDE = 80, 100  # columns: a table is never narrower, so that no number is cut, and shows request ids from WIDE on
SPAN = re.compile(r"(\d+)([smhd])")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
COLUMNS: dict[str, dict[str, Any]] = {  # what matters most on the left; words may wrap, numbers do not
    "time": {"no_wrap": True},
    "outcome (verdict)": {"no_wrap": True},
    "score": {"min_width": 9, "justify": "right"},
    "rows": {"no_wrap": True, "justify": "right"},
    "status": {"min_width": 13},
    "principal": {"no_wrap": True},
    "request": {"no_wrap": True},
}
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
    """Show what a guard decided, from its decision log.

    A table has the last requests, with their ids where the terminal is wide enough; --json has every field. The exit code is 1 where the log
    has damaged lines, which are skipped.

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
    if summary or as_json:
        chosen = records if tail is None else deque(records, maxlen=tail)
        _print_summary(summarise(chosen), as_json) if summary else _print_lines(chosen)
    else:
        _print_table(records, tail or TABLE_ROWS)
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


def _print_lines(records: Iterable[Record]) -> None:
    for record in records:
        typer.echo(json.dumps(record))


def _print_summary(found: AuditSummary, as_json: bool) -> None:
    typer.echo(json.dumps(asdict(found), indent=2)) if as_json else Console().print(_summary_table(found))


def _print_table(records: Iterable[Record], limit: int) -> None:
    numbered = deque(enumerate(records, 1), maxlen=limit)
    last = [record for _, record in numbered]
    console = Console(width=max(NARROW, Console().width))
    if not last:
        console.print("no request meets these conditions")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name, style in COLUMNS.items():
        if name != "request" or console.width >= WIDE:
            table.add_column(name, **style)
    for record in last:
        cells = (
            _whole_time(record)[5:], _outcome(record), _score(record), record["rows"], _status(record), record["principal"][:8],
            record["request_id"][:24],
        )  # fmt: skip
        table.add_row(*[_printable(str(cell)) for cell in cells[: len(table.columns)]])
    console.print(table)
    between = f"from {_whole_time(last[0])} to {_whole_time(last[-1])} UTC"
    console.print(_printable(f"the last {len(last)} of {numbered[-1][0]:,} requests, {between}"), soft_wrap=True)


def _whole_time(record: Record) -> str:
    return record["time"][:19].replace("T", " ")


def _outcome(record: Record) -> str:
    """What the client got; in brackets what the policy said, where it was something else: in shadow mode, or outside the roll-out."""
    verdict = record["verdict"]
    return record["outcome"] if verdict in ("", record["outcome"]) else f"{record['outcome']} ({verdict})"


def _status(record: Record) -> str:
    """The HTTP status, and whatever explains it."""
    level, proof = record.get("level"), record.get("proof")
    parts = (
        record.get("status"),
        f"level {level}" if level else "",
        record.get("reason"),
        record.get("degraded"),
        proof and f"proof {proof}",
    )
    return " ".join(str(part) for part in parts if part)


def _score(record: Record) -> str:
    """The whole score; in brackets stage A's, where it settled the matter, or may have for some row of a batch."""
    whole, early = record["score"], record["stage_a_score"]
    parts = [] if whole is None else [f"{whole:.4g}"]
    if early is not None and (whole is None or (record["rows"] > 1 and record["verdict"] not in MILD)):
        parts.append(f"({early:.4g})")
    return " ".join(parts)


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
        table.add_row({"stage_a_score": "stage-A score"}.get(part, part), line or "none")
    return table


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


def _printable(text: str) -> Text:
    """A log holds what clients sent: nothing of it may reach the terminal as a control sequence or as markup."""
    return Text("".join(character if character.isprintable() else "�" for character in text))
