"""Compressed bodies, inflated piece by piece so that no body of a few bytes becomes gigabytes before somebody looks.

gzip and deflate (which means zlib's format) once, as one member, complete and with nothing behind it. Everything else is refused.
"""

import zlib

from sameguard.protocol.errors import BodyTooLargeError, InvalidRequestError, UnsupportedMediaError, shown
from sameguard.protocol.model import Limits

WINDOW_BITS = {"gzip": 31, "deflate": 15}
FREE_BYTES = 256 * 2**10  # a black image compresses a thousandfold: the ratio counts only where it can hurt
PIECE = 64 * 2**10


def inflate(body: bytes, encoding: str, limits: Limits) -> bytes:
    """The body without its Content-Encoding ("" and identity leave it as it is).

    Raises BodyTooLargeError past the byte limit or the ratio, UnsupportedMediaError for another encoding, InvalidRequestError where the
    compressed data are broken, cut off, or followed by something.
    """
    if len(body) > limits.body_bytes:
        raise BodyTooLargeError(f"body must have at most {limits.body_bytes} bytes, got {len(body)}: send fewer rows at once.")
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in WINDOW_BITS:
        raise UnsupportedMediaError(f"Content-Encoding must be gzip, deflate or identity, got {shown(encoding)}.")
    most = min(limits.body_bytes, max(FREE_BYTES, limits.inflate_ratio * len(body)))
    inflater = zlib.decompressobj(WINDOW_BITS[encoding])
    pieces: list[bytes] = []
    size = read = 0
    while read < len(body) and not inflater.eof:
        try:
            pieces.append(inflater.decompress(memoryview(body)[read : read + PIECE], most + 1 - size))
        except zlib.error as error:
            raise InvalidRequestError(f"body must be valid {encoding} as its Content-Encoding says.", str(error)) from error
        read += PIECE
        size += len(pieces[-1])
        if size > most:
            raise BodyTooLargeError(f"body must inflate to at most {most} bytes, got more: send fewer rows at once.")
    if not inflater.eof:
        raise InvalidRequestError(f"body must be complete {encoding}, got one that ends early.")
    if inflater.unused_data or read < len(body):
        raise InvalidRequestError(f"body must be one {encoding} stream, got more bytes behind its end.")
    return b"".join(pieces)
