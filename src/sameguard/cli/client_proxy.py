"""`sameguard client-proxy`: a proxy on one's own machine that solves what a guard asks for. Parsing and printing only."""

from typing import Annotated

import typer

from sameguard.cli.remote import HeaderOption, RequestsOption, parse_headers
from sameguard.client import ClientConfig, SolveLimits, create_proxy
from sameguard.client.proxy import BODY_BYTES, LOOPBACK_NAMES, is_loopback


def client_proxy_command(
    upstream: Annotated[str, typer.Option("--upstream", metavar="URL", help="Address of the guard.")],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8090,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on. Another than loopback lends your processor to others.")
    ] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", metavar="NAME", help="Another name by which clients may call the proxy.")
    ] = None,
    header: HeaderOption = None,
    solve_seconds: Annotated[float, typer.Option(min=0.001, help="Seconds to spend on one proof of work.")] = 60.0,
    solvers: Annotated[int, typer.Option(min=1, help="Proofs of work at once.")] = 1,
    attempts: Annotated[int, typer.Option(min=1, help="How often to ask an overloaded or broken guard.")] = 4,
    requests_per_second: RequestsOption = None,
    timeout_seconds: Annotated[float, typer.Option(min=0.001, help="Seconds for one attempt.")] = 60.0,
    body_bytes: Annotated[int, typer.Option(min=1, help="Largest request.")] = BODY_BYTES,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once; more are answered 503.")] = 64,
) -> None:
    """Stand between a client in any language and a guard: solve its proofs of work, wait and retry, so that the client sees answers only.

    Example: sameguard client-proxy --upstream http://guard:8080 --port 8090
    """
    import uvicorn

    config = ClientConfig(
        solving=SolveLimits(solve_seconds),
        solvers=solvers,
        attempts=attempts,
        requests_per_second=requests_per_second,
        timeout_seconds=timeout_seconds,
        connections=concurrency,
    )
    names = (*LOOPBACK_NAMES, host, *(allow_host or ()))
    app = create_proxy(upstream, headers=parse_headers(header or ()), config=config, body_bytes=body_bytes, hosts=names)
    if not is_loopback(host):
        typer.echo(f"warning: {host} is not loopback: whoever reaches this port spends your processor and sends your headers.", err=True)
    typer.echo(f"client-proxy: {host}:{port} to {upstream}, proofs of at most {solve_seconds:g} s", err=True)
    uvicorn.run(
        app, host=host, port=port, log_level="warning", access_log=False, server_header=False, date_header=False, ws="none",
        limit_concurrency=concurrency + 1, timeout_graceful_shutdown=5,
    )  # fmt: skip
