"""`sameguard score-log`: recorded queries scored again, offline. It needs neither torch nor a model server."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from sameguard.runtime.query_log import ENGINES, LogSummary, score_log
from sameguard.runtime.query_log.run import BATCH_ROWS


def score_log_command(
    artifact: Annotated[Path, typer.Argument(help="Directory of a calibrated artefact.")],
    queries: Annotated[str, typer.Argument(help="A .jsonl, .npz or .parquet file, a directory or a quoted glob of such files.")],
    out: Annotated[Path, typer.Option("--out", help="Where the rows go: .parquet, .jsonl, .csv or .npz.")],
    engine: Annotated[str, typer.Option("--engine", help=f"Where to score: {' or '.join(ENGINES)}; the scores are equal.")] = "local",
    workers: Annotated[int | None, typer.Option("--workers", help="Batches at once: local 1 with all cores, ray 2 with one each.")] = None,
    batch_rows: Annotated[int, typer.Option("--batch-rows", help="Rows of one batch: bounds the memory.")] = BATCH_ROWS,
    rate: Annotated[float | None, typer.Option("--rate", help="Another false-positive rate than the stored one.")] = None,
    stage_a_only: Annotated[
        bool, typer.Option("--stage-a-only", help="Leave recorded answers aside: what the queries alone tell.")
    ] = False,
    canonical: Annotated[bool, typer.Option("--canonical", help="Inputs are canonical already, not what clients send.")] = False,
    allow_errors: Annotated[bool, typer.Option("--allow-errors", help="Rows without a score are no finding: exit with 0.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that is there.")] = False,
) -> None:
    """Score recorded queries again, and write each row with its score, flag and p-value, or the reason why it has none.

    A log has `inputs`, `probs` (without them only stage A is scored), and any other columns, which are carried along.
    The exit code is 1 where a row could not be scored.

    Example: sameguard score-log guard/ queries.jsonl --out scores.csv
    """
    columns = ("rows", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("rows", total=None)
        summary = score_log(
            artifact,
            queries,
            out,
            engine=engine,
            workers=workers,
            batch_rows=batch_rows,
            rate=rate,
            stage_a_only=stage_a_only,
            canonical=canonical,
            overwrite=overwrite,
            progress=lambda done, rows: bar.update(task, completed=done, total=rows),
        )
    for line in _lines(summary, out):
        typer.echo(line, err=True)
    if summary.errors and not allow_errors:
        raise typer.Exit(1)


def _lines(summary: LogSummary, out: Path) -> list[str]:
    scored = summary.answered + summary.stage_a_only
    lines = [f"{summary.rows} rows, {summary.flagged} flagged ({summary.flagged_share:.2%} of {scored} scored): {out} [{summary.engine}]"]
    if summary.answered:
        lines.append(f"calibrated: {summary.threshold}")
    if summary.stage_a_only:
        lines.append(
            f"{summary.stage_a_only} rows by stage A alone (no answers recorded, or --stage-a-only): flagged is what stage A refuses, which has "
            "a part of the promise only; p_value is among benign stage-A scores"
        )
    if summary.errors:
        lines.append(f"{summary.errors} rows without a score, see column error; first: {summary.first_error}")
    return lines
