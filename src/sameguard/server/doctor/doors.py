"""Other doors of the model server: paths on its own port, other ports of its host, and from where all of them can be reached.

A door is judged by how it answers GET: what a server has not is 404, as a path that nobody has shows; another answer means that somebody is
at home, whatever the method should have been.
"""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote

from sameguard.server.doctor.findings import Finding
from sameguard.server.doctor.probing import Prober, Reply, is_loopback, machine_addresses
from sameguard.server.settings import UpstreamSettings
from sameguard.server.spoken_dialects import NO_DOOR, dialect_hint

CLOSED = (401, 403, 404, 410, 501)
PORTS = {
    8000: "HTTP of Triton or KServe",
    8001: "gRPC of Triton or KServe",
    8002: "metrics of Triton",
    8080: "HTTP of MLServer, KServe or TorchServe",
    8081: "management of TorchServe, gRPC of MLServer",
    8082: "metrics of MLServer or TorchServe",
    8500: "gRPC of TensorFlow Serving",
    8501: "HTTP of TensorFlow Serving",
    9000: "gRPC of OpenVINO Model Server or TensorFlow Serving",
}
LISTS = ("/v2/models", "/v2/models/stats", "/v1/models")
SHUT = "switch it off, or let nobody but the guard reach the model server's port"


class _Door(NamedTuple):
    """purpose: control (changes what is served), inference (answers without the guard), knowledge (tells what the guard would not)."""

    path: str
    purpose: str
    remedy: str


@dataclass(frozen=True)
class Reach:
    """Where the model server stands. answers: over HTTP. loopback: its address is this machine's own and no other."""

    answers: bool
    loopback: bool
    findings: tuple[Finding, ...]


# ---------------------------------------------------------------------- from where


async def check_reach(prober: Prober, upstream: UpstreamSettings, own_addresses: Sequence[str] | None) -> Reach:
    """Whether the model server answers, and whether others than this machine can ask it."""
    addresses, reply = await asyncio.gather(prober.addresses(), prober.get(_health_path(upstream)))
    loopback = bool(addresses) and all(map(is_loopback, addresses))
    findings = [await _answering(prober, upstream, reply)]
    if not addresses:
        findings.append(Finding("upstream address", "unknown", f"{prober.host} does not resolve", "check upstream.url"))
    elif not loopback:
        plain = ", unencrypted" if upstream.url.startswith("http:") else ""
        findings.append(
            Finding(
                "upstream address",
                "warning",
                f"{prober.host} is {', '.join(addresses)}, not loopback{plain}",
                f"close port {prober.port} to clients by firewall or network policy, which cannot be seen from here, or put the guard beside it",
            )
        )
    else:
        findings.append(await _beyond_loopback(prober, machine_addresses() if own_addresses is None else own_addresses))
    return Reach(reply.status is not None, loopback, tuple(findings))


def _health_path(upstream: UpstreamSettings) -> str:
    return {"oip": "/v2/health/ready", "tf-serving": f"/v1/models/{quote(upstream.model)}"}.get(
        upstream.dialect, upstream.plain_json.health
    )


async def _answering(prober: Prober, upstream: UpstreamSettings, reply: Reply) -> Finding:
    """The check that the guard makes before it answers anything."""
    path = _health_path(upstream)
    if reply.status is None:
        return Finding(
            "upstream", "problem", f"{upstream.url} does not answer: {reply.error}", "start the model server, or check upstream.url"
        )
    if reply.status in NO_DOOR:

        async def status_of(other: str) -> int | None:
            return (await prober.get(other)).status

        hint = await dialect_hint(status_of, upstream)
        if upstream.dialect != "plain-json":
            return Finding("upstream", "warning", f"{path} answers {reply.status}", hint or "check upstream.dialect and upstream.model")
        found = f"answers; it has no health door at {path} ({reply.status}), which the guard does without"
        return Finding("upstream", "warning" if hint else "ok", found, hint or "upstream.plain_json.health names another path")
    if not 200 <= reply.status < 300:
        remedy = "check upstream.plain_json.health" if upstream.dialect == "plain-json" else "check the model server"
        return Finding("upstream", "warning", f"{path} answers {reply.status}: the guard waits until it is well", remedy)
    return Finding("upstream", "ok", "answers and is healthy")


async def _beyond_loopback(prober: Prober, own: Sequence[str]) -> Finding:
    name = "upstream address"
    opened = await asyncio.gather(*(prober.connects(address, prober.port) for address in own))
    reached = [address for address, is_open in zip(own, opened, strict=True) if is_open]
    if reached:
        return Finding(
            name,
            "problem",
            f"port {prober.port} is open at {', '.join(reached)} as well as on loopback",
            "bind the model server to 127.0.0.1: clients can ask it without the guard",
        )
    if not own:
        return Finding(name, "unknown", "loopback; other addresses of this machine could not be found")
    return Finding(name, "ok", f"loopback only, closed at {', '.join(own)}")


# ---------------------------------------------------------------------- paths


async def check_doors(prober: Prober, upstream: UpstreamSettings, reach: Reach) -> list[Finding]:
    """Paths beside the one that the guard uses, and models beside the one that it guards."""
    doors = _doors(upstream)
    nowhere = f"/v2/{secrets.token_hex(8)}"
    unknown, *replies = await asyncio.gather(prober.get(nowhere), *(prober.get(door.path) for door in doors))
    findings = [_judged(door, reply, unknown, reach) for door, reply in zip(doors, replies, strict=True)]
    return [*findings, await _other_models(prober, upstream)]


def _doors(upstream: UpstreamSettings) -> list[_Door]:
    model = quote(upstream.model)
    oip, tf = f"/v2/models/{model}", f"/v1/models/{model}"
    restrict = "restrict it (Triton: --http-restricted-api) or let nobody but the guard reach the port"
    doors = [
        _Door("/v2/repository/index", "control", restrict),
        _Door("/v2/systemsharedmemory/status", "control", restrict),
        _Door("/v2/cudasharedmemory/status", "control", restrict),
        _Door("/v2/trace/setting", "control", restrict),
        _Door("/v2/logging", "control", restrict),
        _Door("/models", "control", SHUT),
        _Door(f"{oip}/generate", "inference", SHUT),
        _Door(f"{oip}/generate_stream", "inference", SHUT),
        _Door(f"{oip}/config", "knowledge", SHUT),
        _Door(f"{tf}:explain", "inference", SHUT),
        _Door("/metrics", "knowledge", SHUT),
        _Door("/monitoring/prometheus/metrics", "knowledge", SHUT),
        _Door("/docs", "knowledge", SHUT),
        _Door("/openapi.json", "knowledge", SHUT),
        _Door("/-/routes", "knowledge", SHUT),
    ]
    if upstream.dialect != "oip":
        doors.append(_Door(oip, "inference", SHUT))
    if upstream.dialect != "tf-serving":
        doors.append(_Door(tf, "inference", SHUT))
    own = {upstream.plain_json.infer, upstream.plain_json.health} if upstream.dialect == "plain-json" else set()
    return [door for door in doors if door.path not in own]


def _judged(door: _Door, reply: Reply, unknown: Reply, reach: Reach) -> Finding:
    name = f"door {door.path}"
    if reply.status is None:
        return Finding(name, "unknown", f"no answer: {reply.error}")
    if reply.status in CLOSED:
        return Finding(name, "ok", f"closed ({reply.status})")
    if reply.status == unknown.status or 300 <= reply.status < 400 or reply.status >= 500:
        return Finding(name, "unknown", f"answers {reply.status}, a path that nobody has {unknown.status or 'nothing'}")
    verdict = "problem" if door.purpose == "control" and not reach.loopback else "warning"
    return Finding(name, verdict, f"open to {door.purpose} ({reply.status} to GET)", door.remedy)


async def _other_models(prober: Prober, upstream: UpstreamSettings) -> Finding:
    replies = await asyncio.gather(*(prober.get(path) for path in LISTS))
    names = {name for reply in replies if reply.status == 200 for name in _names(reply.document())}
    others = sorted(names - {upstream.model})
    if others:
        shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        return Finding("other models", "warning", f"the model server also has {shown}", f"they have no guard: {SHUT}")
    return Finding("other models", "ok", "none listed") if names else Finding("other models", "unknown", "the model server lists none")


def _names(document: Any) -> list[str]:
    """Model names in the answers of the servers that list theirs."""
    listed = next((document[key] for key in ("models", "model_stats") if key in document), []) if isinstance(document, dict) else document
    if not isinstance(listed, list):
        return []
    names = [entry.get("name") if isinstance(entry, dict) else entry for entry in listed]
    return [name for name in names if isinstance(name, str)]


# ---------------------------------------------------------------------- ports


async def check_ports(prober: Prober, reach: Reach, ports: Mapping[int, str]) -> list[Finding]:
    """Other ports of the model server's host on which model servers usually listen."""
    asked = [port for port in ports if port != prober.port]
    opened = await asyncio.gather(*(prober.connects(prober.host, port) for port in asked))
    found = await asyncio.gather(*(_open_port(prober, reach, port, ports[port]) for port, yes in zip(asked, opened, strict=True) if yes))
    closed = [str(port) for port, yes in zip(asked, opened, strict=True) if not yes]
    return [*found, *([Finding("other ports", "ok", f"closed: {', '.join(closed)}")] if closed else [])]


async def _open_port(prober: Prober, reach: Reach, port: int, usual: str) -> Finding:
    name = f"port {port}"
    host = f"[{prober.host}]" if ":" in prober.host else prober.host
    if await prober.speaks_http2(prober.host, port):
        remedy = "switch gRPC off, or close the port to everyone: the guard does not use it"
        return Finding(name, "warning" if reach.loopback else "problem", f"speaks HTTP/2, as gRPC does ({usual})", remedy)
    management, metrics = await asyncio.gather(*(prober.get(path, base=f"http://{host}:{port}") for path in ("/models", "/metrics")))
    if management.status == 200 and isinstance(management.document(), dict):
        return Finding(name, "warning" if reach.loopback else "problem", "answers /models, as a management port does", SHUT)
    if metrics.status == 200:
        return Finding(name, "warning", "answers /metrics", "let nobody but your monitoring reach it: it tells the traffic of the model")
    return Finding(name, "warning", f"is open; {usual} would be there", "close it to clients unless it is something else")
