"""Cuts one split into disjoint parts by content, not by position.

Rows are ordered by a seeded SHA-256 of their bytes and cut at the fractions. Equal inputs have equal digests, so a duplicate never lies
in two parts (an input that was trained on must not be calibrated on), and the parts do not depend on the order of the rows in a file.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from sameguard.data.dataset import PIXEL_MAX, Split
from sameguard.errors import ConfigurationError, InvalidDataError


def split(whole: Split, fractions: Sequence[float], seed: int = 0) -> tuple[Split, ...]:
    """Disjoint parts of these fractions of the rows, one for each, rows in their old order; what the fractions leave over is dropped.

    Part sizes are exact but for duplicates, which follow their first copy. Same seed and same inputs: same parts, on every machine.

    Raises ConfigurationError unless all fractions are positive and add up to at most 1, InvalidDataError if a part would be empty.
    """
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.ndim != 1 or not len(shares) or not (shares > 0).all() or not shares.sum() <= 1 + 1e-9:
        raise ConfigurationError(f"fractions must be positive and add up to at most 1, got {tuple(fractions)}.")
    cuts = np.rint(np.minimum(np.cumsum(shares), 1.0) * len(whole)).astype(np.int64)
    part_of_row = np.searchsorted(cuts, _ranks(whole, seed), side="right")  # (n,), len(shares) for the rows left over
    members = [np.flatnonzero(part_of_row == part) for part in range(len(shares))]
    for share, rows in zip(shares, members, strict=True):
        if not len(rows):
            raise InvalidDataError(
                f"each part must get at least one row, got none for {share:g} of {len(whole)} rows: give it more data or a larger fraction."
            )
    return tuple(whole.take(rows) for rows in members)


def content_digests(whole: Split) -> list[bytes]:
    """The SHA-256 of each row's content: equal for equal inputs, for no others. 8-bit images kept as floats count as what they are."""
    raw = whole.raw
    if raw.dtype != np.uint8:
        levels = np.rint(raw * np.float32(PIXEL_MAX)) if raw.ndim == 4 else raw
        on_grid = raw.ndim == 4 and np.array_equal(levels.astype(np.float32) / np.float32(PIXEL_MAX), raw)
        raw = levels.astype(np.uint8) if on_grid else raw + np.float32(0.0)  # -0.0 + 0.0 is 0.0
    return [hashlib.sha256(np.ascontiguousarray(row)).digest() for row in raw]


def _ranks(whole: Split, seed: int) -> np.ndarray:
    """Position (n,) of each row in the seeded order of digests; equal rows share the position of the first of them."""
    key = str(int(seed)).encode()
    keyed = [hashlib.sha256(key + b":" + digest).digest() for digest in content_digests(whole)]
    ranks, first = np.empty(len(keyed), np.int64), 0
    order = sorted(range(len(keyed)), key=keyed.__getitem__)
    for position, row in enumerate(order):
        if position and keyed[row] != keyed[order[position - 1]]:
            first = position
        ranks[row] = first
    return ranks
