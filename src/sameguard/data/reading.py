"""One promise for every reader: a damaged file ends in one sentence that names it, never in a parser's stack trace.

The parsers underneath (zlib, zipfile, numpy, Pillow, pickle) raise a dozen unrelated types on damage; `reading` gathers them. TypeError and
AttributeError are not among them: those are how our own mistakes show, and they should.
"""

import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from sameguard.errors import DataNotFoundError, InvalidDataError, SameguardError

DAMAGE = (
    OSError,  # gzip.BadGzipFile, PIL.UnidentifiedImageError
    EOFError,
    ValueError,  # UnicodeDecodeError, numpy's header errors
    LookupError,
    ArithmeticError,
    RuntimeError,  # an encrypted zip member
    MemoryError,  # a header that claims more than there can be
    SyntaxError,  # Pillow's broken chunks, numpy's unparsable headers
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    Image.DecompressionBombError,
)


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Within it, whatever a parser raises becomes InvalidDataError: "<path> must be <kind>, got ...".

    Our own errors pass; an InvalidDataError that does not name a file yet (Split cannot know one) gets the path in front.

    Raises DataNotFoundError if the file is not there, InvalidDataError for all else.
    """
    try:
        yield
    except InvalidDataError as error:
        if str(path) in str(error):
            raise
        raise InvalidDataError(f"{path}: {error}") from error
    except SameguardError:
        raise
    except FileNotFoundError as error:
        raise DataNotFoundError(f"{path} must be {kind}, but there is no file {error.filename or path}.") from error
    except PermissionError as error:
        raise InvalidDataError(f"{path} must be readable, got {error.strerror}: check its permissions.") from error
    except DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InvalidDataError(f"{path} must be {kind}, got a damaged or foreign file ({reason}): fetch it again.") from error


@contextmanager
def open_npz(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """The arrays of an .npz, within it; never unpickles. Raises InvalidDataError for a single .npy array."""
    with path.open("rb") as file:  # opened here: numpy leaves its own handle open when the archive is damaged
        arrays = np.load(file, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise InvalidDataError(f"{path} must be an .npz with named arrays, got a single .npy array: use np.savez.")
        with arrays:
            yield arrays
