"""What honest users and laundering thieves do to images: blur, median filter, JPEG, rotation, shift. All results are on the 8-bit grid.

Images are float32 (n, channels, height, width) in [0, 1]; borders are continued by reflection, so no black frame betrays a transform.
"""

import io

import numpy as np
from PIL import Image

from sameguard.shapes import Queries


def quantise(images: np.ndarray) -> Queries:
    """The nearest 8-bit images: round(255 clip(x, 0, 1)) / 255, half to even."""
    return (np.rint(np.clip(images, 0.0, 1.0) * 255.0) / 255.0).astype(np.float32)


def blur(images: Queries) -> Queries:
    """Binomial 3x3 blur: (1 2 1) / 4 down and across."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    down = (padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]) / 4
    return quantise((down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]) / 4)


def median(images: Queries) -> Queries:
    """Median of each 3x3 neighbourhood."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))  # n, C, H, W, 3, 3
    return quantise(np.median(windows, axis=(4, 5)))


def jpeg(images: Queries, quality: int = 50) -> Queries:
    """Through JPEG and back."""

    def through(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer)

    return _with_pillow(images, through)


def rotate(images: Queries, degrees: float = 10.0) -> Queries:
    """Rotated about the centre, bilinear."""
    margin = max(2, max(images.shape[2:]) // 4)
    padded = np.pad(images, ((0, 0), (0, 0), (margin, margin), (margin, margin)), mode="reflect")
    turned = _with_pillow(padded, lambda image: image.rotate(degrees, Image.Resampling.BILINEAR))
    return np.ascontiguousarray(turned[:, :, margin:-margin, margin:-margin])


def shift(images: Queries, pixels: int = 2) -> Queries:
    """Moved right and down by whole pixels."""
    padded = np.pad(images, ((0, 0), (0, 0), (pixels, 0), (pixels, 0)), mode="reflect")
    return np.ascontiguousarray(padded[:, :, : images.shape[2], : images.shape[3]])


def to_grey(images: Queries, side: int) -> Queries:
    """Luminance of colour images, resized to side x side: (n, 1, side, side)."""
    pixels = np.rint(images * 255.0).astype(np.uint8).transpose(0, 2, 3, 1)
    size = (side, side)
    rows = [np.asarray(Image.fromarray(row).convert("L").resize(size, Image.Resampling.LANCZOS)) for row in pixels]
    return (np.stack(rows)[:, None] / np.float32(255.0)).astype(np.float32)


def _with_pillow(images: Queries, through) -> Queries:
    pixels = np.rint(images * 255.0).astype(np.uint8)
    rows = []
    for row in pixels:
        image = Image.fromarray(row[0] if row.shape[0] == 1 else row.transpose(1, 2, 0))
        array = np.asarray(through(image))
        rows.append(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
    return (np.stack(rows) / np.float32(255.0)).astype(np.float32)
