"""How many connections may be open, and whose is closed when they are too many: nobody keeps others out by opening more.

Each costs a file of the process, of which it has a limited number. Where the network stack itself runs out of files, asyncio stops
accepting for a second; with few accepted at once (`ACCEPTED_AT_ONCE`) and the limits here it does not come to that.
"""

import asyncio
import resource
from collections.abc import Callable

import structlog

from sameguard.server.identity import household

ACCEPTED_AT_ONCE = 128  # in one turn of the loop; three turns go by until a connection is counted
ADMIN_CONNECTIONS = 64
OWN_FILES = ADMIN_CONNECTIONS + 64  # besides: logs, replay store, libraries
log = structlog.get_logger("sameguard")


class Connections:
    """Open connections: at most `most` in all, and `most_of_peer` of one peer, an address or of IPv6 a /64, that is no trusted proxy.

    Beyond either the newest one of whoever holds most is closed, without an answer. shed: is told of each.
    """

    def __init__(
        self,
        most: int,
        most_of_peer: int,
        *,
        is_trusted: Callable[[str], bool] = lambda address: False,
        shed: Callable[[], None] = lambda: None,
    ) -> None:
        self.most = most
        self.most_of_peer = most_of_peer
        self.is_trusted = is_trusted
        self.shed = shed
        self._count = 0
        self._held: dict[str, dict[asyncio.BaseTransport, None]] = {}  # peer -> in order of arrival

    def opened(self, transport: asyncio.Transport, address: str) -> None:
        """Counts it. One connection may be closed for it, or it."""
        peer = household(address)
        held = self._held.setdefault(peer, {})
        held[transport] = None
        self._count += 1
        if len(held) > self.most_of_peer and not self.is_trusted(address):
            self._close_newest(peer)
        elif self._count > self.most:
            self._close_newest(max(self._held, key=lambda other: (len(self._held[other]), other == peer)))

    def closed(self, transport: asyncio.Transport, address: str) -> None:
        self._forget(transport, household(address))

    def _close_newest(self, peer: str) -> None:
        transport = next(reversed(self._held[peer]))
        self._forget(transport, peer)
        transport.abort()
        self.shed()

    def _forget(self, transport: asyncio.BaseTransport, peer: str) -> None:
        held = self._held.get(peer, {})
        if transport in held:
            del held[transport]
            self._count -= 1
            if not held:
                del self._held[peer]


def affordable_connections(wanted: int, upstream: int) -> int:
    """As many as wanted, or as the process may have files for besides `upstream` connections and its own; at least 16.

    Raises the process's soft limit as far as it may, and warns where that is not enough.
    """
    others = upstream + OWN_FILES + 3 * ACCEPTED_AT_ONCE
    needed = wanted + others
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return wanted
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if needed <= allowed:
        return wanted
    found = max(16, allowed - others)
    log.warning("few files", allowed=allowed, connections=found, wanted=wanted, remedy=f"ulimit -n {needed}")
    return found
