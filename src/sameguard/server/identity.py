"""Who is asking, and how much they may ask: principals by digest, roll-out by principal, token buckets in rows."""

import hashlib
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sameguard.errors import ConfigurationError
from sameguard.server.settings import IdentitySettings, QuotaSettings

PRINCIPALS = 100_000  # buckets that are kept; the one unused for longest goes first, and would be full again by then
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Principal:
    """name: digest of the key or address; it names the same principal in every instance and after every restart. trusted: see Identity.

    address: the client's, of IPv6 its /64, whatever key was given: whose bodies count together while nobody has looked at them.
    """

    name: str
    trusted_peer: bool = False
    address: str = ""

    def within(self, share: float) -> bool:
        """Whether a roll-out to this share of principals includes it; who is in at 5 % stays in at 20 %."""
        return int(self.name[:8], 16) < share * 2**32


class Identity:
    """Names principals. trusted_proxies: addresses or networks whose X-Forwarded-For is believed, from the right, as far as they reach.

    Raises ConfigurationError for what is no address.
    """

    def __init__(self, settings: IdentitySettings, trusted_proxies: Sequence[str] = ()) -> None:
        self.header = settings.header.lower() if settings.header else None
        self.once = frozenset({self.header} if self.header else ())  # a second value would make another principal of the same key
        try:
            self.trusted: list[Network] = [ipaddress.ip_network(text, strict=False) for text in trusted_proxies]
        except ValueError as error:
            raise ConfigurationError(f"listen.trusted_proxies must be addresses or networks, got {error}.") from error

    def principal(self, headers: Mapping[str, str], peer: str) -> Principal:
        """By the configured header where it is given, by the client's address otherwise."""
        trusted = self.is_trusted(peer)
        address = household(self._client_address(headers, peer) if trusted else peer)
        key = headers.get(self.header) if self.header else None
        return Principal(_digest("key", key) if key else _digest("address", address), trusted, address)

    def is_trusted(self, address: str) -> bool:
        """Whether it is one of our proxies."""
        found = _address(address)
        return found is not None and any(found in network for network in self.trusted)

    def _client_address(self, headers: Mapping[str, str], peer: str) -> str:
        """The first address from the right that is no proxy of ours: what stands left of it anyone may have written."""
        address = peer
        for hop in reversed([hop.strip() for hop in headers.get("x-forwarded-for", "").split(",") if hop.strip()]):
            address = _without_port(hop[:64])
            if not self.is_trusted(address):
                break
        return address


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address, IPv4 where it is one written as IPv6; None for what is none."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def _without_port(text: str) -> str:
    """Some proxies write the client's port, which is another for each connection."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def household(text: str) -> str:
    """An address as a principal: who has one IPv6 address has all of its /64."""
    found = _address(text)
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((found, 64), strict=False))
    return text if found is None else str(found)


def _digest(kind: str, value: str) -> str:
    return hashlib.sha256(f"sameguard principal {kind} {value}".encode()).hexdigest()[:32]


class Quotas:
    """Token buckets in rows: one for each principal, one for all. clock: seconds, monotonic."""

    def __init__(self, settings: QuotaSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._rate, self._burst = _rate_and_burst(settings.rows_per_minute, settings.burst_rows)
        total_rate, total_burst = _rate_and_burst(settings.total_rows_per_minute, settings.total_burst_rows)
        self._total = _Bucket(total_rate, total_burst, clock()) if total_rate else None
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, principal: str, rows: int) -> float | None:
        """None where the rows are within the quota, and are then spent; otherwise the seconds after which they would be."""
        now = self.clock()
        wanted = [bucket for bucket in (self._own(principal, now), self._total) if bucket is not None]
        wait = max((bucket.seconds_until(rows, now) for bucket in wanted), default=0.0)
        if wait > 0.0:
            return wait
        for bucket in wanted:
            bucket.rows -= rows
        return None

    def _own(self, principal: str, now: float) -> "_Bucket | None":
        if not self._rate:
            return None
        bucket = self._buckets.pop(principal, None) or _Bucket(self._rate, self._burst, now)
        self._buckets[principal] = bucket
        if len(self._buckets) > PRINCIPALS:
            self._buckets.popitem(last=False)
        return bucket


class _Bucket:
    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate, self.burst, self.rows, self.filled_at = rate, burst, burst, now

    def seconds_until(self, rows: int, now: float) -> float:
        """0.0 where so many rows are there. A batch larger than the bucket is let through when it is full, and leaves it in debt."""
        self.rows = min(self.burst, self.rows + (now - self.filled_at) * self.rate)
        self.filled_at = now
        return max(0.0, (min(rows, self.burst) - self.rows) / self.rate)


def _rate_and_burst(per_minute: float | None, burst: int | None) -> tuple[float, float]:
    return (0.0, 0.0) if per_minute is None else (per_minute / 60.0, float(burst or max(1.0, per_minute)))
