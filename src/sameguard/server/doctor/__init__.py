"""`sameguard doctor`: looks for doors beside the guard, and for settings that weaken it, from where the guard stands.

It asks with GET and opens connections, and sends no inference request. What it cannot see from there, a firewall or a network policy between
clients and the model server, it names as a warning: a guard protects the door that it stands before.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from sameguard.server.doctor.deployment import check_deployment
from sameguard.server.doctor.doors import PORTS, check_doors, check_ports, check_reach
from sameguard.server.doctor.findings import VERDICTS, Finding
from sameguard.server.doctor.probing import Prober
from sameguard.server.settings import Settings, UpstreamSettings

__all__ = ["PORTS", "VERDICTS", "Finding", "run_doctor"]


async def run_doctor(
    upstream: UpstreamSettings,
    settings: Settings | None = None,
    *,
    seconds: float = 1.0,
    ports: Mapping[int, str] = PORTS,
    own_addresses: Sequence[str] | None = None,
    clock: Callable[[], float] = time.time,
) -> list[Finding]:
    """What was found, the model server first. settings: of the guard; None looks at the model server only.

    seconds: patience with each probe. ports: port -> what usually listens there. own_addresses: of this machine, None looks them up.
    """
    async with Prober(upstream.url, seconds=seconds) as prober:
        reach = await check_reach(prober, upstream, own_addresses)
        findings = list(reach.findings)
        own_ports = (
            {settings.listen.port, settings.admin.port} if settings is not None and reach.loopback else set()
        )  # the guard's own doors
        parts = [check_ports(prober, reach, {port: what for port, what in ports.items() if port not in own_ports})]
        if reach.answers:
            parts.append(check_doors(prober, upstream, reach))
        if settings is not None:
            parts.append(check_deployment(prober, settings, reach.answers, clock))
        for found in await asyncio.gather(*parts):
            findings += found
    return findings
