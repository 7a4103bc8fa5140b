"""Split and DataSet: what every reader returns and every other module is given.

Photo sets are large (50,000 x 3 x 32 x 32 as float32 is 614 MB), so a split keeps its pixels as uint8 and hands out float32 only when
`inputs` is asked for; `take` first and convert after, and only the rows in use are ever float32. Tabular rows, embeddings and grey levels
that are no multiple of 1/255 are kept as float32. What it leaves out: file formats (the readers) and random choices (splits.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sameguard.errors import InvalidDataError
from sameguard.shapes import Queries

PIXEL_MAX = 255
CHANNELS = (1, 3)


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs and labels of one part of a data set.

    raw: uint8 images (n, channels, height, width), or float32: images of that shape in [0, 1], or vectors (n, features), finite.
    labels: int64 (n,) in [0, classes), or None where nobody labelled them.
    classes: how many classes the set has, seen in this part or not; 0 only without labels.

    Raises InvalidDataError if any of that does not hold.
    """

    raw: np.ndarray
    labels: np.ndarray | None
    classes: int

    def __post_init__(self) -> None:
        _check_raw(self.raw)
        if self.labels is None:
            if self.classes < 0:
                raise InvalidDataError(f"classes must be 0 or more, got {self.classes}.")
            return
        _check_labels(self.labels, rows=len(self.raw), classes=self.classes)

    def __len__(self) -> int:
        return len(self.raw)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input: (channels, height, width) or (features,)."""
        return self.raw.shape[1:]

    @property
    def inputs(self) -> Queries:
        """All inputs as float32, images in [0, 1]: uint8 pixels are converted anew on each access, float32 is handed out as it is."""
        if self.raw.dtype == np.float32:
            return self.raw
        inputs = self.raw.astype(np.float32)
        inputs /= PIXEL_MAX
        return inputs

    def batches(self, rows: int) -> Iterator[Queries]:
        """The inputs in order as float32, `rows` at a time: the whole of a large split would not fit in memory twice."""
        for start in range(0, len(self), rows):
            yield self.take(np.arange(start, min(start + rows, len(self)))).inputs

    def take(self, indices: np.ndarray | Sequence[int]) -> "Split":
        """The rows at these positions, in this order, still as compact as here.

        Raises InvalidDataError unless the indices are integers in [0, len).
        """
        rows = np.asarray(indices)
        if rows.size == 0:
            rows = rows.astype(np.int64)
        if rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise InvalidDataError(
                f"indices must be one row of integers, got {rows.dtype} of shape {rows.shape}: use np.flatnonzero on a mask."
            )
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise InvalidDataError(
                f"indices must be in [0, {len(self)}), got {rows.min()} to {rows.max()}: the split has {len(self)} rows."
            )
        return Split(self.raw[rows], None if self.labels is None else self.labels[rows], self.classes)


@dataclass(frozen=True, eq=False)
class DataSet:
    """A named set: its official training and test parts, None where a part is not there.

    Raises InvalidDataError if both are missing, or if the two differ in input shape or number of classes.
    """

    name: str
    train: Split | None
    test: Split | None

    def __post_init__(self) -> None:
        if self.train is None and self.test is None:
            raise InvalidDataError(f"data set {self.name} must have a training or a test part, got neither.")
        if self.train is None or self.test is None:
            return
        if self.train.input_shape != self.test.input_shape or self.train.classes != self.test.classes:
            raise InvalidDataError(
                f"data set {self.name} must have parts alike, got inputs {self.train.input_shape} and {self.test.input_shape}, "
                f"classes {self.train.classes} and {self.test.classes}: the files belong to different sets."
            )


def channels_first(images: np.ndarray, name: str) -> np.ndarray:
    """Images (n, channels, height, width) from (n, height, width), (n, height, width, channels) or that shape itself; 1 or 3 channels.

    Raises InvalidDataError, with `name` in it, for any other shape and for one that reads both ways.
    """
    if images.ndim == 3:
        return np.ascontiguousarray(images[:, None])  # (n, 1, height, width)
    if images.ndim != 4:
        raise InvalidDataError(f"{name} must be images (n, height, width[, channels]), got shape {images.shape}.")
    first, last = images.shape[1] in CHANNELS, images.shape[3] in CHANNELS
    if first == last:
        raise InvalidDataError(
            f"{name} must have 1 or 3 channels on its second or its last axis, not on {'both' if first else 'none'}, "
            f"got shape {images.shape}: store it as (n, channels, height, width)."
        )
    return images if first else np.ascontiguousarray(images.transpose(0, 3, 1, 2))  # (n, channels, height, width)


def int64_labels(labels: np.ndarray, name: str) -> np.ndarray:
    """Labels as int64 (n,), from integers (n,) or a column (n, 1), in which Keras stores CIFAR's.

    Raises InvalidDataError, with `name` in it, if they are no integers.
    """
    if labels.dtype.kind not in "iu":
        raise InvalidDataError(f"{name} must be integers, got {labels.dtype}: number the classes from 0.")
    column = labels.ndim == 2 and labels.shape[1] == 1
    return (labels[:, 0] if column else labels).astype(np.int64)


def _check_raw(raw: np.ndarray) -> None:
    if raw.dtype not in (np.uint8, np.float32):
        raise InvalidDataError(f"inputs must be uint8 images or float32, got {raw.dtype}: convert them with .astype(np.float32).")
    if raw.ndim != 4 and not (raw.ndim == 2 and raw.dtype == np.float32):
        raise InvalidDataError(
            f"inputs must be images (n, channels, height, width) or float32 vectors (n, features), got {raw.dtype} of shape {raw.shape}: "
            "give single-channel images a channel axis."
        )
    if 0 in raw.shape[1:]:
        raise InvalidDataError(f"inputs must have at least one value each, got shape {raw.shape}.")
    if raw.dtype == np.uint8 or not len(raw):
        return
    lowest, highest = raw.min(), raw.max()  # NaN survives both, and no second array is made
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise InvalidDataError(f"inputs must be finite, got values from {lowest} to {highest}: drop or impute those rows.")
    if raw.ndim == 4 and not 0.0 <= lowest <= highest <= 1.0:
        raise InvalidDataError(
            f"float32 images must be in [0, 1], got values from {lowest:g} to {highest:g}: divide by 255, or pass the uint8 pixels."
        )


def _check_labels(labels: np.ndarray, *, rows: int, classes: int) -> None:
    if labels.dtype != np.int64 or labels.ndim != 1:
        raise InvalidDataError(f"labels must be int64 (n,), got {labels.dtype} of shape {labels.shape}: use .astype(np.int64).")
    if len(labels) != rows:
        raise InvalidDataError(f"labels must be one for each input, got {len(labels)} labels for {rows} inputs.")
    if classes < 1:
        raise InvalidDataError(f"classes must be at least 1 where there are labels, got {classes}.")
    if rows and not 0 <= labels.min() <= labels.max() < classes:
        raise InvalidDataError(f"labels must be in [0, {classes}), got {labels.min()} to {labels.max()}: count classes from 0.")
