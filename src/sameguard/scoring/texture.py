"""Cheap statistics of a query itself: what a sceptic would try first, and what `typicality` joins with the reconstruction errors.

All need nothing but the query. For images: Laplacian, total variation, brightness, contrast, compressed size, grey-level counts, over
all channels together. For vectors: norm, mean, spread, share of zeros. Each is computed row by row, independent of the batch.
"""

import zlib

import numpy as np

from sameguard.contract import GRID_LEVELS, InputContract
from sameguard.shapes import Queries

FAINT = 63  # grey levels 1..63 of 255 count as faint: visible to a network, hardly to a person
Terms = dict[str, np.ndarray]  # name -> float64 (batch,)


def texture_terms(queries: Queries, contract: InputContract) -> Terms:
    """Name -> value of each query, float64 (batch,). Bounds other than [0, 1] are mapped onto 8 bits for the counts."""
    if not contract.is_image:
        return _vector_terms(queries)
    levels = _levels(queries, contract.bounds)  # batch, values
    laplacian = np.sort(_absolute_laplacian(queries), axis=1)  # batch, values: sorted, for the percentile
    histogram = _histogram(levels)
    share = histogram / levels.shape[1]
    logarithm = np.log(share, out=np.zeros_like(share), where=share > 0)
    flat = queries.reshape(len(queries), -1).astype(np.float64)
    return {
        "laplacian_mean": laplacian.mean(axis=1),
        "laplacian_p20": laplacian[:, int(0.2 * (laplacian.shape[1] - 1))].copy(),  # a view would keep the whole array alive
        "total_variation": _total_variation(queries),
        "mean": flat.mean(axis=1),
        "contrast": flat.std(axis=1),
        "compressed_size": np.array([len(zlib.compress(row.tobytes(), 6)) for row in levels], np.float64),
        "share_black": share[:, 0].copy(),
        "share_white": share[:, GRID_LEVELS].copy(),
        "share_faint": share[:, 1 : FAINT + 1].sum(axis=1),
        "distinct_levels": (histogram > 0).sum(axis=1).astype(np.float64),
        "histogram_entropy": -(share * logarithm).sum(axis=1),
    }


def _vector_terms(queries: Queries) -> Terms:
    rows = queries.astype(np.float64)
    return {
        "norm": np.sqrt((rows**2).sum(axis=1)),
        "mean": rows.mean(axis=1),
        "spread": rows.std(axis=1),
        "share_zero": (rows == 0).mean(axis=1),
    }


def _levels(queries: Queries, bounds: tuple[float, float]) -> np.ndarray:
    lowest, highest = bounds if np.isfinite(bounds).all() else (0.0, 1.0)
    scaled = np.rint((queries - lowest) * (GRID_LEVELS / (highest - lowest)))
    return np.clip(scaled, 0, GRID_LEVELS).astype(np.uint8).reshape(len(queries), -1)


def _absolute_laplacian(queries: Queries) -> np.ndarray:
    """|4 x - the four neighbours| of interior pixels, float64 (batch, values); of all pixels with edges repeated where a side is under 3."""
    images = queries.astype(np.float64)
    if min(images.shape[2:]) < 3:
        images = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    centre = images[:, :, 1:-1, 1:-1]
    around = images[:, :, :-2, 1:-1] + images[:, :, 2:, 1:-1] + images[:, :, 1:-1, :-2] + images[:, :, 1:-1, 2:]
    return np.abs(4 * centre - around).reshape(len(images), -1)


def _total_variation(queries: Queries) -> np.ndarray:
    images = queries.astype(np.float64)
    down = np.abs(np.diff(images, axis=2)).reshape(len(images), -1).sum(axis=1)
    across = np.abs(np.diff(images, axis=3)).reshape(len(images), -1).sum(axis=1)
    return (down + across) / images[0].size


def _histogram(levels: np.ndarray) -> np.ndarray:
    """Counts of each of the 256 levels, int (batch, 256)."""
    rows = len(levels)
    offset = np.arange(rows, dtype=np.int64)[:, None] * 256
    return np.bincount((levels + offset).reshape(-1), minlength=rows * 256).reshape(rows, 256)
