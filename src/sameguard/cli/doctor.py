"""`sameguard doctor`: doors that bypass the guard, and settings that weaken it."""

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sameguard.errors import ConfigurationError
from sameguard.server.doctor import VERDICTS, Finding, run_doctor
from sameguard.server.settings import Settings, UpstreamSettings
from sameguard.server.settings_reading import read_settings

WORST_FIRST = ("problem", "warning", "unknown", "ok")
COLOURS = {"ok": "green", "warning": "yellow", "problem": "bold red", "unknown": "cyan"}


def doctor_command(
    config: Annotated[Path | None, typer.Option("--config", help="The guard's settings file; the environment counts as for serve.")] = None,
    upstream: Annotated[str | None, typer.Option("--upstream", help="Instead: the model server's address alone.")] = None,
    model: Annotated[str, typer.Option("--model", help="The guarded model's name, with --upstream.")] = "model",
    dialect: Annotated[str, typer.Option("--dialect", help="oip, tf-serving or plain-json, with --upstream.")] = "oip",
    timeout_seconds: Annotated[float, typer.Option("--timeout", help="Seconds of patience with each probe.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Probe the model server for doors that bypass the guard; run it where the guard runs. The exit code is 1 where there is a problem.

    It sends GET requests and opens connections, never an inference request.

    Example: sameguard doctor --config guard.yaml
    """
    chosen, settings = _what_to_probe(config, upstream, model, dialect)
    if not timeout_seconds > 0:
        raise ConfigurationError(f"--timeout must be positive, got {timeout_seconds}.")
    findings = asyncio.run(run_doctor(chosen, settings, seconds=timeout_seconds))
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        _print(findings)
    if any(finding.verdict == "problem" for finding in findings):
        raise typer.Exit(1)


def _what_to_probe(config: Path | None, upstream: str | None, model: str, dialect: str) -> tuple[UpstreamSettings, Settings | None]:
    if (config is None) == (upstream is None):
        raise ConfigurationError(f"doctor must be given --config or --upstream, got {'neither' if config is None else 'both'}: give one.")
    if config is not None:
        settings = read_settings(config)
        return settings.upstream, settings
    try:
        return UpstreamSettings.model_validate({"url": upstream, "model": model, "dialect": dialect}), None
    except ValidationError as error:
        first = error.errors()[0]
        option = {"url": "upstream"}.get(str(first["loc"][0]), first["loc"][0])
        raise ConfigurationError(f"--{option} is not valid: {first['msg'].removeprefix('Value error, ')}.") from error


def _print(findings: list[Finding]) -> None:
    """The worst first; what is well in one line each."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for verdict in WORST_FIRST:
        for finding in findings:
            if finding.verdict == verdict:
                table.add_row(Text(verdict, COLOURS[verdict]), _told(finding))
    Console().print(table)
    typer.echo(", ".join(f"{[finding.verdict for finding in findings].count(verdict)} {verdict}" for verdict in VERDICTS))


def _told(finding: Finding) -> Text:
    text = Text.assemble((finding.check, "bold"), f": {finding.found}")
    return text.append(f"\n-> {finding.remedy}") if finding.remedy else text
