"""Small pictures of a request's most suspicious query: the query, what the autoencoder made of it, and where they differ.

What is kept is a few kilobytes of pixels; the PNG is made when somebody looks. Vectors have no picture.
"""

import base64
import io
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from sameguard.server.decision import Decision, Evidence

SIDE = 64  # pixels, at most: larger images are thinned out
SHOWN_SIDE = 96  # smaller ones are enlarged to about this, pixel by pixel
HEAT = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], np.float32)  # dark to bright


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """Pixels in [0, 255], (height, width) or (height, width, 3)."""

    query: np.ndarray
    reconstruction: np.ndarray
    error: np.ndarray

    @cached_property
    def urls(self) -> dict[str, str]:
        """Name -> PNG as a data: URL."""
        return {
            name: _url(pixels) for name, pixels in (("query", self.query), ("reconstruction", self.reconstruction), ("error", self.error))
        }


def thumbnails_of(decision: Decision, evidence: Evidence) -> Thumbnails | None:
    """Pictures of the row with the highest score, else of the one that is reconstructed worst; None where queries are no images."""
    queries = evidence.queries
    view = evidence.views.get("full", evidence.views.get("masked"))
    if queries.ndim != 4 or view is None:
        return None
    row = _worst_row(decision, queries, view)
    query, found = queries[row], view[row]
    if found.ndim == 4:  # one reconstruction for each masking pass
        found = found.mean(axis=0)
    stride = -(-max(query.shape[1:]) // SIDE)
    query, found = (np.clip(image[:, ::stride, ::stride], 0.0, 1.0) for image in (query, found))
    # one scale for all requests, its root so that small differences show
    return Thumbnails(_pixels(query), _pixels(found), _heat(np.sqrt(np.abs(query - found).mean(axis=0))))


def _worst_row(decision: Decision, queries: np.ndarray, view: np.ndarray) -> int:
    for scores in (decision.row_scores, decision.row_stage_a_scores):
        if len(scores) == len(queries) and np.isfinite(scores).all():  # no whole score: stage A had settled the row
            return int(np.argmax(scores))
    if len(queries) == 1:
        return 0
    compared = queries if view.ndim == queries.ndim else queries[:, None]
    return int(((compared - view) ** 2).reshape(len(queries), -1).mean(axis=1).argmax())


def _pixels(image: np.ndarray) -> np.ndarray:
    """(channels, height, width) in [0, 1] as a picture: three channels in colour, any other number as their mean."""
    shown = image.transpose(1, 2, 0) if len(image) == 3 else image.mean(axis=0)
    return np.rint(shown * 255.0).astype(np.uint8)


def _heat(values: np.ndarray) -> np.ndarray:
    place = np.clip(values, 0.0, 1.0) * (len(HEAT) - 1)
    below = np.minimum(place.astype(int), len(HEAT) - 2)
    share = (place - below)[..., None]
    return np.rint(HEAT[below] * (1.0 - share) + HEAT[below + 1] * share).astype(np.uint8)


def _url(pixels: np.ndarray) -> str:
    image = Image.fromarray(pixels)
    factor = max(1, SHOWN_SIDE // max(image.size))
    written = io.BytesIO()
    image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST).save(written, "PNG")
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()
