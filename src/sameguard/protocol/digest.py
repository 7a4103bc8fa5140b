"""The canonical digest: one name for one question, whatever its id, number formatting, compression or encoding.

SHA-256 over a fixed sequence of slots, each framed by its length, so that no two questions share a byte string: tag, model, version,
then for the input its name, datatype, shape and little-endian values, then the parameters and the outputs, both sorted by name.
"""

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
import orjson

from sameguard.shapes import Queries

TAG = b"sameguard query 1"


def canonical_digest(
    model: str,
    version: str | None,
    name: str,
    datatype: str,
    queries: Queries,
    parameters: Mapping[str, str | bool | int | float],
    outputs: Iterable[str],
) -> bytes:
    """32 bytes. queries: canonical; -0.0 counts as 0.0. Parameters of another JSON type (1, 1.0, true, "1") are other questions."""
    digest = hashlib.sha256()

    def slot(content: bytes | memoryview) -> None:
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)

    def count(number: int) -> None:
        slot(number.to_bytes(8, "little"))

    slot(TAG)
    slot(model.encode())
    slot(b"" if version is None else b"=" + version.encode())  # no version is not the empty version
    count(1)  # inputs
    slot(name.encode())
    slot(datatype.encode())
    slot(np.asarray(queries.shape, "<u8").tobytes())
    slot(memoryview(np.ascontiguousarray(queries + np.float32(0.0), dtype="<f4")).cast("B"))
    count(len(parameters))
    for key in sorted(parameters):
        slot(key.encode())
        value = parameters[key]
        slot(orjson.dumps(value + 0.0 if isinstance(value, float) else value))
    names = sorted(set(outputs))
    count(len(names))
    for output in names:
        slot(output.encode())
    return digest.digest()
