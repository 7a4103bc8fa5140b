"""Which dialects a model server seems to speak: for the sentence that says why the one in the settings does not fit."""

from collections.abc import Awaitable, Callable
from urllib.parse import quote

from sameguard.server.settings import UpstreamSettings

NO_DOOR = (404, 405, 501)  # statuses by which a server says that it has nothing there


async def dialect_hint(status_of: Callable[[str], Awaitable[int | None]], upstream: UpstreamSettings) -> str:
    """What to check about a model server that lacks the doors of its dialect; "" where it shows those of no dialect.

    status_of: asks a path by GET, None where no answer comes.
    """
    doors = {"oip": "/v2/health/ready", "tf-serving": f"/v1/models/{quote(upstream.model)}"}
    spoken = [dialect for dialect, path in doors.items() if await status_of(path) == 200]
    if upstream.dialect in spoken:
        return f"it speaks {upstream.dialect} and has no model {upstream.model!r} there, check upstream.model and upstream.version"
    if spoken:
        return f"it answers as {spoken[0]} servers do, check upstream.dialect, which is {upstream.dialect}"
    return ""
