"""`sameguard client-proxy`: a proxy on one's own machine that solves what a guard asks for. Parsing and printing only."""

import asyncio
from typing import Annotated

import typer

from sameguard.cli.remote import CALL_SECONDS, HeaderOption, RequestsOption, parse_headers
from sameguard.client import ClientConfig, SolveLimits, create_proxy
from sameguard.client.proxy import BODY_BYTES, LOOPBACK_NAMES, is_loopback


def client_proxy_command(
    upstream: Annotated[str, typer.Option("--upstream", metavar="URL", help="Address of the guard.")],
    port: Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8090,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on. Another than loopback lends your processor to others.")
    ] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", metavar="NAME", help="Another name by which clients may call the proxy.")
    ] = None,
    header: HeaderOption = None,
    solve_seconds: Annotated[float, typer.Option(metavar="SECONDS", min=0.001, help="Seconds to spend on one proof of work.")] = 60.0,
    call_seconds: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0.001, help="Seconds to spend on all proofs of one request, those of its parts included."),
    ] = CALL_SECONDS,
    solvers: Annotated[int, typer.Option(metavar="N", min=1, help="Proofs of work at once.")] = 1,
    attempts: Annotated[int, typer.Option(metavar="N", min=1, help="How often to ask an overloaded or broken guard.")] = 4,
    requests_per_second: RequestsOption = None,
    timeout_seconds: Annotated[float, typer.Option(metavar="SECONDS", min=0.001, help="Seconds for one attempt.")] = 60.0,
    body_bytes: Annotated[int, typer.Option(metavar="N", min=1, help="Largest request.")] = BODY_BYTES,
    concurrency: Annotated[int, typer.Option(metavar="N", min=1, help="Requests at once; more are answered 503.")] = 64,
) -> None:
    """Stand between a client in any language and a guard: solve its proofs of work, split what it takes in parts only, wait and retry.

    Example: sameguard client-proxy --upstream http://guard:8080 --port 8090
    """
    from sameguard.client.proxy_serving import serve_proxy

    config = ClientConfig(
        solving=SolveLimits(solve_seconds, call_seconds=call_seconds),
        solvers=solvers,
        attempts=attempts,
        requests_per_second=requests_per_second,
        timeout_seconds=timeout_seconds,
        connections=concurrency,
        response_bytes=BODY_BYTES,
    )
    names = (*LOOPBACK_NAMES, host, *(allow_host or ()))
    app = create_proxy(upstream, headers=parse_headers(header or ()), config=config, body_bytes=body_bytes, hosts=names)
    if not is_loopback(host):
        typer.echo(f"warning: {host} is not loopback: whoever reaches this port spends your processor and sends your headers.", err=True)

    def started(port: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        typer.echo(f"client-proxy: http://{shown}:{port} to {upstream}, proofs of at most {solve_seconds:g} s; Ctrl-C ends it", err=True)

    asyncio.run(serve_proxy(app, host, port, concurrency, started))
