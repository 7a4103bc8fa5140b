"""`sameguard serve`: the guard before a model server. Parsing and printing only."""

import asyncio
import sys
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from sameguard.errors import ConfigurationError
from sameguard.server.settings import Settings
from sameguard.server.settings_reading import read_settings


def serve_command(
    config: Annotated[Path | None, typer.Option("--config", help="YAML file; SAMEGUARD_* variables and flags win over it.")] = None,
    artifact: Annotated[Path | None, typer.Option(help="Directory of a calibrated artefact.")] = None,
    upstream: Annotated[str | None, typer.Option(metavar="URL", help="Base address of the model server.")] = None,
    model: Annotated[str | None, typer.Option(help="The model's name on that server.")] = None,
    output_name: Annotated[str | None, typer.Option(help="The output that holds the class scores.")] = None,
    dialect: Annotated[str | None, typer.Option(help="oip, tf-serving or plain-json.")] = None,
    mode: Annotated[str | None, typer.Option(help="shadow: log and always allow (default); enforce: act.")] = None,
    policy: Annotated[str | None, typer.Option(help="proof-of-work (default), reject, coarsen or ladder.")] = None,
    rollout: Annotated[float | None, typer.Option(help="Share of principals on which enforcement acts.")] = None,
    host: Annotated[str | None, typer.Option(help="Address of the data plane, default 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Its port, default 8080.")] = None,
    admin_port: Annotated[int | None, typer.Option(help="Port of metrics and dashboard, default 8081, loopback.")] = None,
    log: Annotated[str | None, typer.Option(help="json or console.")] = None,
    check_config: Annotated[bool, typer.Option("--check-config", help="Say what is wrong with settings and artefact, and stop.")] = False,
    demo: Annotated[bool, typer.Option("--demo", help="A bundled digits model and its guard, enforcing.")] = False,
) -> None:
    """Stand before a model server: answer honest queries, refuse or charge suspicious ones.

    Example: sameguard serve --artifact guard/ --upstream http://127.0.0.1:8000 --model digits --mode shadow
    """
    flags = _nested({
        "artifact": artifact, "mode": mode, "rollout": rollout, "log": log, "upstream.url": upstream, "upstream.model": model,
        "upstream.output": output_name, "upstream.dialect": dialect, "policy.kind": policy, "listen.host": host, "listen.port": port,
        "admin.port": admin_port,
    })  # fmt: skip
    if demo:
        if config is not None or artifact is not None or upstream is not None:
            raise ConfigurationError("--demo brings artefact and model server with it: leave --config, --artifact and --upstream out.")
        with ExitStack() as stack:
            asyncio.run(_demo(stack, flags))
        return
    settings = read_settings(config, flags)
    if check_config:
        _check(settings)
        return
    _serve(settings)


def _serve(settings: Settings) -> None:
    from sameguard.server.serving import serve
    from sameguard.server.telemetry import configure_logging

    logging = configure_logging(settings.log)
    try:
        asyncio.run(serve(settings, lambda data, admin: _say_where(settings, data, admin)))
    finally:
        logging.close()


def _say_where(settings: Settings, data: str, admin: str | None) -> None:
    """For people; a log in JSON has the same as an event, and is left as pure JSON where no terminal shows it."""
    if settings.log == "json" and not sys.stderr.isatty():
        return
    typer.echo(f"guard: {data} before {settings.upstream.url}, mode {settings.mode}, policy {settings.policy.kind}", err=True)
    if settings.mode == "shadow":
        typer.echo("shadow: everything is answered, and what enforcement would have done is logged. --mode enforce acts.", err=True)
    if admin is not None:
        typer.echo(f"dashboard and metrics: {admin}", err=True)


def _check(settings: Settings) -> None:
    from sameguard.server.checking import check_settings
    from sameguard.server.snapshot import policy_lines

    snapshot, mistakes, notes = check_settings(settings)
    if mistakes or snapshot is None:
        raise ConfigurationError(mistakes[0] if len(mistakes) == 1 else "the guard would not start:\n  " + "\n  ".join(mistakes))
    typer.echo(f"settings are valid; artefact {snapshot.artifact_digest} on {snapshot.scorer.provider}")
    typer.echo(f"mode {settings.mode}, policy {settings.policy.kind}, before {settings.upstream.url} ({settings.upstream.dialect})")
    for line in policy_lines(snapshot.policy):
        typer.echo(f"  {line}")
    for note in notes:
        typer.echo(f"note: {note}", err=True)


async def _demo(stack: ExitStack, flags: dict[str, Any]) -> None:
    from sameguard.server.demo_server import MODEL, OUTPUT, demo_folder, running_demo_server
    from sameguard.server.serving import serve
    from sameguard.server.telemetry import configure_logging

    folder = stack.enter_context(demo_folder())
    flags = {"mode": "enforce", "log": "console", **flags, "artifact": folder / "artefact"}
    flags["upstream"] = {**flags.get("upstream", {}), "model": MODEL, "output": OUTPUT, "output_kind": "logits"}
    flags["admin"] = {"thumbnails": True, **flags.get("admin", {})}
    logging = configure_logging(flags["log"])
    stack.callback(logging.close)
    async with AsyncExitStack() as running:
        flags["upstream"]["url"] = await running.enter_async_context(running_demo_server(folder / "victim.onnx"))
        settings = read_settings(None, flags, environment={})

        def started(data: str, admin: str | None) -> None:
            _say_where(settings, data, admin)
            typer.echo(f"queries to try: {folder / 'queries.npz'} (digits, glyphs); Ctrl-C ends it", err=True)

        await serve(settings, started)


def _nested(flags: dict[str, Any]) -> dict[str, Any]:
    """{"upstream.url": x} as {"upstream": {"url": x}}, without what was not given."""
    found: dict[str, Any] = {}
    for name, value in flags.items():
        if value is None:
            continue
        *sections, last = name.split(".")
        inner = found
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return found
