"""Which door a request knocks at: a table of exact paths, compared byte by byte with what the client sent.

Nothing is normalised or decoded, so `//`, `%2f`, `..`, another case or a trailing slash are simply not in the table, and neither are
repository control, shared memory, streams, statistics, or any other model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class RouteKind(StrEnum):
    """infer is scored; metadata and health pass through unscored; denied goes nowhere."""

    INFER = "infer"
    METADATA = "metadata"
    HEALTH = "health"
    DENIED = "denied"


@dataclass(frozen=True)
class Route:
    """upstream_path: where it goes, built by us; empty where denied."""

    kind: RouteKind
    upstream_path: str = ""


DENIED = Route(RouteKind.DENIED)


class RouteTable:
    """Routes by method and path. paths: as clients write them, to (method, route)."""

    def __init__(self, paths: Mapping[tuple[str, str], Route]) -> None:
        self.paths = {(method, path.encode("ascii")): route for (method, path), route in paths.items()}

    def classify(self, method: str, raw_path: bytes) -> Route:
        """raw_path: as it came, still percent-encoded and without the query string (ASGI's `raw_path`)."""
        return self.paths.get((method, raw_path), DENIED)
