"""scikit-learn's digits: 1,797 handwritten digits at 8x8, grey levels 0..16, the smallest real set the laboratory runs on.

They come with scikit-learn itself (imported only here, only on call), so tests and examples need no download. Source: E. Alpaydin,
C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998 (its test part).
"""

import numpy as np

from sameguard.data.dataset import DataSet, Split
from sameguard.data.splits import split
from sameguard.errors import DataNotFoundError

LEVELS = 16  # a pixel counts the black ones of a 4x4 block of the 32x32 scan
TRAIN_FRACTION = 0.8


def read_digits() -> DataSet:
    """The digits as (n, 1, 8, 8) in [0, 1]: four fifths for training, the rest for test, always the same ones (no official parting exists).

    Raises DataNotFoundError without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataNotFoundError('digits must come from scikit-learn, which is not installed: pip install "sameguard[train]".') from error
    bunch = load_digits()
    inputs = (bunch.images / LEVELS).astype(np.float32)[:, None]  # (1797, 1, 8, 8)
    whole = Split(inputs, bunch.target.astype(np.int64), classes=10)
    train, test = split(whole, (TRAIN_FRACTION, 1 - TRAIN_FRACTION), seed=0)
    return DataSet("digits", train, test)
