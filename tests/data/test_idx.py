"""IDX files: round trips in every layout, and each way they can be wrong."""

import gzip
import struct

import numpy as np
import pytest
from fake_files import EMNIST_NAMES, MNIST_NAMES, grey, idx_bytes, labels, write_emnist_zip, write_idx_folder
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sameguard.data import idx
from sameguard.data.idx import EMNIST_DIGITS_FILES, read_emnist_zip, read_idx, read_idx_folder
from sameguard.errors import DataNotFoundError, InvalidDataError


@given(array=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)), packed=st.booleans())
def test_what_was_written_is_read(tmp_path_factory, array, packed):
    path = tmp_path_factory.getbasetemp() / "round-trip"
    path.write_bytes(gzip.compress(idx_bytes(array)) if packed else idx_bytes(array))
    read = read_idx(path)
    np.testing.assert_array_equal(read, array)
    assert read.flags.writeable


@pytest.mark.parametrize("packed", [True, False])
def test_a_folder_is_read_compressed_or_raw(tmp_path, packed):
    arrays = write_idx_folder(tmp_path, packed=packed)
    found = read_idx_folder(tmp_path, name="mnist")
    for part, images, numbers in ((found.train, *MNIST_NAMES[:2]), (found.test, *MNIST_NAMES[2:])):
        np.testing.assert_array_equal(part.raw, arrays[images][:, None])
        np.testing.assert_array_equal(part.labels, arrays[numbers])


def test_emnist_is_turned_upright(tmp_path):
    arrays = write_idx_folder(tmp_path, EMNIST_NAMES, transposed=True)
    found = read_idx_folder(tmp_path, name="emnist-digits", files=EMNIST_DIGITS_FILES, transposed=True)
    np.testing.assert_array_equal(found.train.raw, arrays[EMNIST_NAMES[0]][:, None])


def test_emnists_zip_is_read_in_place(tmp_path):
    arrays = write_emnist_zip(tmp_path / "gzip.zip")
    found = read_emnist_zip(tmp_path / "gzip.zip")
    np.testing.assert_array_equal(found.test.raw, arrays[EMNIST_NAMES[2]][:, None])
    np.testing.assert_array_equal(found.test.labels, arrays[EMNIST_NAMES[3]])


def test_a_zip_without_digits_is_refused(tmp_path):
    write_emnist_zip(tmp_path / "gzip.zip")
    with pytest.raises(InvalidDataError, match=r"got an archive without absent\.gz"):
        read_emnist_zip(tmp_path / "gzip.zip", files=("absent", *EMNIST_DIGITS_FILES[1:]))


def test_a_damaged_zip_is_refused(tmp_path):
    (tmp_path / "gzip.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InvalidDataError, match=r"gzip.zip must be EMNIST's gzip.zip, got a damaged or foreign file"):
        read_emnist_zip(tmp_path / "gzip.zip")


GOOD = idx_bytes(grey(2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x must not be cut short, got 0 of 4 bytes"),
        (GOOD[:10], "x must not be cut short, got 6 of 12 bytes"),
        (GOOD[:-1], "x must not be cut short, got 59 of 60 bytes"),
        (GOOD + b"\0", "x must end after 60 values"),
        (b"\0\0\x0d" + GOOD[3:], "x must be an IDX file of uint8 with 1 to 4 axes, got type 13"),
        (b"\0\0\x08\x00", "got type 8 and 0 axes"),
        (b"\0\0\x08\x05" + bytes(20), "got type 8 and 5 axes"),
        (b"\x01" + GOOD[1:], "after 0x0100"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 2**31, 2**31, 2**31), "x must hold at most 4294967296 bytes"),
        (gzip.compress(GOOD)[:-9], "x must be an IDX file, got a damaged or foreign file"),
        (gzip.compress(GOOD)[:-8] + b"\xff" * 8, "x must be an IDX file, got a damaged or foreign file .CRC"),
    ],
    ids=range(11),
)
def test_a_damaged_file_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InvalidDataError, match=message):
        read_idx(tmp_path / "x")


def test_a_missing_file_is_not_found(tmp_path):
    write_idx_folder(tmp_path)
    (tmp_path / f"{MNIST_NAMES[1]}.gz").unlink()
    with pytest.raises(DataNotFoundError, match=r"there is no file .*train-labels"):
        read_idx_folder(tmp_path, name="mnist")


def test_exchanged_files_are_refused(tmp_path):
    write_idx_folder(tmp_path)
    with pytest.raises(InvalidDataError, match="are images and labels exchanged"):
        read_idx_folder(tmp_path, name="mnist", files=(MNIST_NAMES[1], MNIST_NAMES[0], *MNIST_NAMES[2:]))


def test_labels_that_do_not_fit_name_the_folder(tmp_path):
    write_idx_folder(tmp_path, packed=False)
    (tmp_path / MNIST_NAMES[1]).write_bytes(idx_bytes(labels(5)))
    with pytest.raises(InvalidDataError, match=f"{tmp_path}: labels must be one for each input, got 5 labels for 6"):
        read_idx_folder(tmp_path, name="mnist")


def test_the_size_limit_holds_every_official_file():
    assert idx.MAX_BYTES > 700_000 * 28 * 28
