"""The input contract: what a client may send, and the one canonical array that victim and scorer both see.

A raw array is decoded once, at the boundary: layout to channels-first, an affine map to canonical units, bounds, 8-bit grid. Behind the
boundary nothing rescales or quantises again. `encode` is the way back, for a victim that expects what clients send.
The 8-bit grid is the victim boundary of algorithms.md section 1: every real image API is 8-bit, and an off-grid query would betray
itself to a detector that could never see it in service.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from sameguard.errors import ConfigurationError, InvalidQueryError
from sameguard.shapes import Queries

GRID_LEVELS = 255


@dataclass(frozen=True)
class InputContract:
    """Shape, dtype, layout, affine map, bounds and grid of one input.

    shape: canonical shape of one query without the batch axis: (channels, height, width) for images, (features,) for vectors.
    layout: NCHW or NHWC for images, flat for vectors (or for images that clients send flattened; then channels come first).
    scale, offset: canonical = raw * scale + offset, one number each or one per channel (per feature for vectors).
    bounds: lowest and highest canonical value; -inf and inf are allowed for vectors.
    grid: "8bit" rounds canonical values to multiples of 1/255 (half to even), "none" leaves them.
    """

    shape: tuple[int, ...]
    name: str = "input"
    dtype: Literal["FP32", "UINT8"] = "FP32"
    layout: Literal["NCHW", "NHWC", "flat"] = "NCHW"
    scale: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)
    bounds: tuple[float, float] = (0.0, 1.0)
    grid: Literal["8bit", "none"] = "8bit"

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "shape", tuple(int(side) for side in self.shape)
        )  # numpy integers would print otherwise, and change digests
        for name in ("scale", "offset", "bounds"):  # lists and numpy floats: equal contracts must be equal, and JSON must hold them
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        if len(self.shape) not in (1, 3) or any(side < 1 for side in self.shape):
            raise ConfigurationError(
                f"contract shape must be (channels, height, width) or (features,) with positive sides, got {self.shape}: "
                "leave the batch axis out."
            )
        if self.dtype not in ("FP32", "UINT8") or self.layout not in ("NCHW", "NHWC", "flat") or self.grid not in ("8bit", "none"):
            raise ConfigurationError(
                "contract dtype must be FP32 or UINT8, layout NCHW, NHWC or flat, grid 8bit or none, "
                f"got {self.dtype}, {self.layout}, {self.grid}."
            )
        if len(self.shape) == 1 and self.layout != "flat":
            raise ConfigurationError(f"contract layout of a vector of {self.shape[0]} features must be flat, got {self.layout}.")
        lowest, highest = self.bounds
        if not lowest < highest:
            raise ConfigurationError(f"contract bounds must be (lowest, highest) with lowest < highest, got {self.bounds}.")
        if self.grid == "8bit" and self.bounds != (0.0, 1.0):
            raise ConfigurationError(f"contract grid 8bit needs bounds (0, 1), got {self.bounds}: use grid none for other ranges.")
        for name, values in (("scale", self.scale), ("offset", self.offset)):
            if len(values) not in (1, self.shape[0]):
                raise ConfigurationError(f"contract {name} must hold 1 or {self.shape[0]} numbers (one per channel), got {len(values)}.")
            if not all(math.isfinite(value) for value in values) or (name == "scale" and 0.0 in values):
                raise ConfigurationError(f"contract {name} must be finite{' and not 0' if name == 'scale' else ''}, got {values}.")

    # ------------------------------------------------------------------ constructors

    @classmethod
    def images(
        cls,
        channels: int,
        height: int,
        width: int,
        *,
        layout: Literal["NCHW", "NHWC", "flat"] = "NCHW",
        dtype: Literal["FP32", "UINT8"] = "FP32",
        mean: Sequence[float] | np.ndarray | None = None,
        std: Sequence[float] | np.ndarray | None = None,
        name: str = "input",
    ) -> "InputContract":
        """An image contract. UINT8 clients send 0..255; FP32 clients send [0, 1], or (x - mean) / std where both are given."""
        if (mean is None) != (std is None):
            raise ConfigurationError("contract mean and std go together, got only one of them: give both or neither.")
        if dtype == "UINT8" and mean is not None:
            raise ConfigurationError(
                "contract dtype UINT8 sends pixels 0..255, got a mean and std as well: use FP32 for normalised clients."
            )
        scale: tuple[float, ...] = (1.0 / GRID_LEVELS,) if dtype == "UINT8" else (1.0,)
        if std is not None:
            scale = tuple(float(value) for value in std)
        offset = (0.0,) if mean is None else tuple(float(value) for value in mean)
        return cls((channels, height, width), name, dtype, layout, scale, offset)

    @classmethod
    def vectors(cls, features: int, *, bounds: tuple[float, float] = (-math.inf, math.inf), name: str = "input") -> "InputContract":
        """A contract for tabular rows or embeddings: FP32, no grid, unbounded unless told otherwise."""
        return cls((features,), name, "FP32", "flat", bounds=bounds, grid="none")

    @classmethod
    def for_inputs(cls, inputs: np.ndarray) -> "InputContract":
        """The plain contract of canonical inputs (n, C, H, W) in [0, 1], or of vectors (n, D) without bounds."""
        if inputs.ndim == 4:
            return cls.images(*inputs.shape[1:])
        if inputs.ndim == 2:
            return cls.vectors(inputs.shape[1])
        raise InvalidQueryError(f"inputs must be (n, channels, height, width) or (n, features), got shape {inputs.shape}.")

    # ------------------------------------------------------------------ the boundary

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 3

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """Shape of one query as clients send it."""
        if self.layout == "flat":
            return (math.prod(self.shape),)
        return self.shape if self.layout == "NCHW" else (*self.shape[1:], self.shape[0])

    def decode(self, raw: np.ndarray) -> Queries:
        """Canonical queries from what a client sent: raw (batch, *raw_shape) in the contract's dtype and layout, in any byte order.

        Raises InvalidQueryError for another dtype, rank or shape, rows of unequal shape, an empty batch, NaN, infinity, or values out of
        bounds.
        """
        raw = _as_array(raw)
        wanted = np.uint8 if self.dtype == "UINT8" else np.float32
        if raw.dtype != wanted and not (self.dtype == "FP32" and raw.dtype == np.float64):
            raise InvalidQueryError(f"query dtype must be {np.dtype(wanted).name} ({self.dtype}), got {raw.dtype.name}: convert it first.")
        if raw.ndim < 1 or raw.shape[1:] != self.raw_shape:
            raise InvalidQueryError(
                f"query shape must be (batch, {', '.join(map(str, self.raw_shape))}) in layout {self.layout}, got {raw.shape}."
            )
        with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold becomes inf, and canonicalise refuses inf and NaN
            queries = raw.astype(np.float32)
            if self.layout == "NHWC":
                queries = queries.transpose(0, 3, 1, 2)
            queries = queries.reshape(len(raw), *self.shape) * self._per_channel(self.scale) + self._per_channel(self.offset)
        return self.canonicalise(queries)

    def encode(self, queries: Queries) -> np.ndarray:
        """The raw array (batch, *raw_shape) whose decoding is `queries`: what a client of the victim would have sent."""
        raw = (queries - self._per_channel(self.offset)) / self._per_channel(self.scale)
        if self.layout == "NHWC":
            raw = raw.transpose(0, 2, 3, 1)
        raw = raw.reshape(len(queries), *self.raw_shape)
        if self.dtype == "UINT8":
            return np.rint(raw).astype(np.uint8, order="C")
        return np.ascontiguousarray(raw, dtype=np.float32)

    def canonicalise(self, queries: np.ndarray) -> Queries:
        """Queries in canonical units, checked, on the grid, contiguous; the argument is not changed. Idempotent.

        Values up to half a grid step outside the bounds are clipped, because a client that normalises in float lands there.
        Raises InvalidQueryError for a wrong dtype or shape, an empty batch, NaN, infinity, or values out of bounds.
        """
        queries = _as_array(queries)
        if queries.dtype not in (np.float32, np.float64):
            raise InvalidQueryError(
                f"canonical queries must be float32, got {queries.dtype.name}: what clients send goes through contract.decode(raw) first."
            )
        if queries.ndim < 1 or queries.shape[1:] != self.shape:
            raise InvalidQueryError(f"query shape must be (batch, {', '.join(map(str, self.shape))}), got {queries.shape}.")
        if len(queries) == 0:
            raise InvalidQueryError("query batch must hold at least one query, got 0.")
        with np.errstate(over="ignore", invalid="ignore"):  # a float64 beyond float32's range becomes inf, and inf is refused below
            queries = np.ascontiguousarray(queries, dtype=np.float32)
        finite = np.isfinite(queries).reshape(len(queries), -1).all(axis=1)
        if not finite.all():
            raise InvalidQueryError(f"query values must be finite, got NaN or infinity in row {int(np.argmin(finite))} of {len(queries)}.")
        lowest, highest = self.bounds
        slack = 0.5 / GRID_LEVELS if self.grid == "8bit" else 0.0
        if queries.min() < lowest - slack or queries.max() > highest + slack:
            raise InvalidQueryError(
                f"query values must lie in [{lowest:g}, {highest:g}] after decoding, got {queries.min():g} to {queries.max():g}: "
                "check the contract's scale and offset (mean and std)."
            )
        queries = np.clip(queries, lowest, highest)
        if self.grid == "8bit":
            queries = np.rint(queries * np.float32(GRID_LEVELS)) / np.float32(GRID_LEVELS)
        return queries + np.float32(0.0)  # -0.0 becomes 0.0, so that equal queries have equal bytes

    def digests(self, queries: Queries) -> np.ndarray:
        """SHA-256 of each canonical query's content (and shape), uint8 (batch, 32): equal exactly when the queries are."""
        head = repr(self.shape).encode()
        little_endian = np.ascontiguousarray(queries, dtype="<f4")
        return np.stack([np.frombuffer(hashlib.sha256(head + row.tobytes()).digest(), np.uint8) for row in little_endian])

    def _per_channel(self, values: tuple[float, ...]) -> np.ndarray:
        return np.asarray(values, np.float32).reshape(-1, *([1] * (len(self.shape) - 1)))

    # ------------------------------------------------------------------ storage

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types; infinite bounds become null."""
        stored = asdict(self)
        stored["bounds"] = [bound if math.isfinite(bound) else None for bound in self.bounds]
        return stored

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "InputContract":
        lowest, highest = stored["bounds"]
        return cls(
            shape=tuple(stored["shape"]),
            name=stored["name"],
            dtype=stored["dtype"],
            layout=stored["layout"],
            scale=tuple(stored["scale"]),
            offset=tuple(stored["offset"]),
            bounds=(-math.inf if lowest is None else lowest, math.inf if highest is None else highest),
            grid=stored["grid"],
        )


def _as_array(batch: Any) -> np.ndarray:
    """The batch as an array in this machine's byte order: another one is the same numbers, but unequal as a dtype."""
    try:
        found = np.asarray(batch)
    except (ValueError, TypeError, RuntimeError) as error:  # lists of unequal rows; tensors that cannot leave their device or their graph
        raise InvalidQueryError(
            f"query batch must be an array, or nested lists of equal rows, got {type(batch).__name__}: {error}"
        ) from error
    return found.astype(found.dtype.newbyteorder("="), copy=False)
