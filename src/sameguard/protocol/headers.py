"""Headers that say how a body is read, once and unmistakably; and those that may travel on to the model server.

Which headers travel on is a list of the allowed: a name that some server, gateway or framework acts upon (X-Original-URL,
X-HTTP-Method-Override, Prefer ...) would otherwise be a way past the guard.
"""

import re
from collections.abc import Iterable, Mapping

from sameguard.protocol.errors import InvalidRequestError, UnsupportedMediaError, shown

HEADER_LENGTH = "inference-header-content-length"  # of the JSON part of a body with binary tensors
ONCE = frozenset({"content-type", "content-encoding", "content-length", "transfer-encoding", "host", HEADER_LENGTH, "guard-proof"})
TRAVELS = frozenset({"traceparent", "tracestate", "x-request-id", "user-agent"})
FROM_TRUSTED_PEERS = frozenset({"forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"})
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")


def read_headers(raw: Iterable[tuple[bytes, bytes]], *, also_once: frozenset[str] = frozenset()) -> dict[str, str]:
    """Headers by lower-case name from the pairs that ASGI and aiohttp give; repeated ones joined by commas.

    Raises InvalidRequestError where one that says how the body is read comes twice, or a name is not a token, or a value holds control characters.
    """
    headers: dict[str, str] = {}
    for raw_name, raw_value in raw:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1").strip(" \t")
        if not TOKEN.fullmatch(name) or any((letter < " " and letter != "\t") or letter == "\x7f" for letter in value):
            raise InvalidRequestError(f"header names must be tokens and values printable, got {shown(name)}.")
        if name in headers and (name in ONCE or name in also_once):
            raise InvalidRequestError(f"header {name} must be given once, got it twice.")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    if "content-length" in headers and "transfer-encoding" in headers:
        raise InvalidRequestError("request must have Content-Length or Transfer-Encoding, got both: its end would be a matter of opinion.")
    return headers


def travelling_headers(
    headers: Mapping[str, str], *, also: Iterable[str] = (), trusted_peer: bool = False, authorization: bool = False
) -> dict[str, str]:
    """The client's headers that go upstream: tracing and user agent, `also` those configured, and never what the guard itself reads.

    trusted_peer: the client is a listed proxy, so what it says of the client before it is kept. authorization: keep Authorization.
    """
    allowed = TRAVELS | {name.lower() for name in also}
    if trusted_peer:
        allowed |= FROM_TRUSTED_PEERS
    if authorization:
        allowed |= {"authorization"}
    named = {name.strip().lower() for name in headers.get("connection", "").split(",")}  # hop by hop, by the sender's own word
    return {
        name: value
        for name, value in headers.items()
        if name in allowed and name not in ONCE and name not in named and not name.startswith("guard-")
    }


def check_media_type(headers: Mapping[str, str], allowed: tuple[str, ...]) -> None:
    """Nothing, if Content-Type is absent (tritonclient sends none) or one of `allowed` in UTF-8; else raises UnsupportedMediaError."""
    given = headers.get("content-type")
    if given is None:
        return
    media_type, *parameters = (part.strip().lower() for part in given.split(";"))
    if media_type not in allowed:
        raise UnsupportedMediaError(f"Content-Type must be {' or '.join(allowed)}, or absent, got {shown(media_type)}.")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset" and value.strip(' "') != "utf-8":
            raise UnsupportedMediaError(f"Content-Type charset must be utf-8, got {shown(value)}.")


def json_part_length(headers: Mapping[str, str], body_bytes: int) -> int | None:
    """Length of the JSON part of a body with binary tensors; None where the whole body is JSON; 0 where it is one raw tensor."""
    given = headers.get(HEADER_LENGTH)
    if given is None:
        return None
    if not re.fullmatch(r"0|[1-9][0-9]{0,9}", given) or int(given) > body_bytes:
        raise InvalidRequestError(
            f"Inference-Header-Content-Length must be a whole number up to the body's {body_bytes} bytes, got {shown(given)}."
        )
    return int(given)
