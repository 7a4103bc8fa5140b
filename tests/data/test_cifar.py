"""CIFAR: both official versions, and a pickle reader that cannot be made to run anything."""

import os
import pickle

import numpy as np
import pytest
from fake_files import cifar_parts, colour, python2_pickle, write_cifar_binary, write_cifar_pickles

from sameguard.data import cifar
from sameguard.data.cifar_pickle import read_cifar_pickle
from sameguard.errors import DataNotFoundError, InvalidDataError

BINARY = {10: cifar.read_cifar10_binary, 100: cifar.read_cifar100_binary}
PICKLES = {10: cifar.read_cifar10_pickles, 100: cifar.read_cifar100_pickles}


def check(found, classes):
    parts = list(cifar_parts(classes).values())
    np.testing.assert_array_equal(found.train.raw, np.concatenate([images for images, _ in parts[:-1]]))
    np.testing.assert_array_equal(found.train.labels, np.concatenate([fine for _, fine in parts[:-1]]))
    np.testing.assert_array_equal(found.test.raw, parts[-1][0])
    np.testing.assert_array_equal(found.test.labels, parts[-1][1])
    assert (found.train.classes, found.name) == (classes, f"cifar{classes}")


@pytest.mark.parametrize("classes", [10, 100])
def test_the_binary_version_is_read(tmp_path, classes):
    write_cifar_binary(tmp_path, classes)
    check(BINARY[classes](tmp_path), classes)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("classes", [10, 100])
def test_the_python_version_is_read_in_every_protocol(tmp_path, classes, protocol):
    write_cifar_pickles(tmp_path, classes, protocol)
    check(PICKLES[classes](tmp_path), classes)


def test_the_byte_strings_of_python_2_are_read(tmp_path):
    images = colour(3)
    (tmp_path / "batch").write_bytes(python2_pickle(images, [4, 0, 9]))
    pixels, labels = read_cifar_pickle(tmp_path / "batch", "labels")
    np.testing.assert_array_equal(pixels.reshape(images.shape), images)
    np.testing.assert_array_equal(labels, [4, 0, 9])


def test_the_handwritten_python_2_pickle_means_to_pickle_what_it_means_to_us():
    batch = pickle.loads(python2_pickle(colour(2), [1, 2]), encoding="bytes")
    np.testing.assert_array_equal(batch[b"data"], colour(2).reshape(2, -1))
    assert batch[b"labels"] == [1, 2]


def test_text_keys_are_read_too(tmp_path):
    (tmp_path / "batch").write_bytes(pickle.dumps({"data": colour(1).reshape(1, -1), "labels": [5]}, 2))
    assert read_cifar_pickle(tmp_path / "batch", "labels")[1].tolist() == [5]


class Runs:
    """A pickle that calls what it is given when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("touch {}",), r"(posix|nt)\.system"),
        (exec, ("open('{}', 'w')",), r"(builtins|__builtin__)\.exec"),
        (getattr, (np, "save"), r"(builtins|__builtin__)\.getattr"),
        (np.fromfile, ("{}",), r"numpy.*\.fromfile"),
    ],
)
def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path, function, arguments, named, protocol):
    mark = tmp_path / "it-ran"
    filled = tuple(argument.format(mark) if isinstance(argument, str) else argument for argument in arguments if argument is not np)
    data = pickle.dumps({b"data": Runs(function, *filled), b"labels": [0]}, protocol)
    (tmp_path / "batch").write_bytes(data)
    with pytest.raises(InvalidDataError, match=rf"batch must name nothing but numpy arrays, got {named}: .* do not load it elsewhere"):
        read_cifar_pickle(tmp_path / "batch", "labels")
    assert not mark.exists()


def test_a_pickle_that_loads_elsewhere_would_have_run(tmp_path):
    mark = tmp_path / "it-ran"
    pickle.loads(pickle.dumps(Runs(exec, f"open({str(mark)!r}, 'w').close()")))
    assert mark.exists()


def test_the_codec_of_old_protocols_cannot_be_another(tmp_path):
    import _codecs

    (tmp_path / "batch").write_bytes(pickle.dumps({b"data": Runs(_codecs.encode, "x", "zlib"), b"labels": [0]}, 2))
    with pytest.raises(InvalidDataError, match="bytes must be stored as latin1, got 'zlib'"):
        read_cifar_pickle(tmp_path / "batch", "labels")


PIXELS = colour(2).reshape(2, -1)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([1], "must hold a dict, got list"),
        ({b"data": PIXELS}, "must hold 'labels', got .'data'.: it is another set or version"),
        ({b"labels": [0, 1]}, "must hold 'data', got"),
        ({b"data": [1, 2], b"labels": [0, 1]}, "must hold 'data' as an array, got list"),
        ({b"data": PIXELS, b"labels": "ab"}, "must hold 'labels' as a list of integers, got str"),
        ({b"data": PIXELS, b"labels": [0, 1.5]}, "must hold 'labels' as a list of integers"),
        ({b"data": PIXELS, b"labels": [0, 2**70]}, "batch must be a pickled CIFAR batch, got a damaged"),
        ({b"data": PIXELS.astype(np.int16), b"labels": [0, 1]}, r"must hold 'data' as uint8 \(n, 3072\)"),
        ({b"data": PIXELS[:, 1:], b"labels": [0, 1]}, r"must hold 'data' as uint8 \(n, 3072\)"),
        ({b"data": np.array([None]), b"labels": [0]}, r"must hold 'data' as uint8 \(n, 3072\)"),
    ],
)
def test_a_pickle_of_something_else_is_refused(tmp_path, batch, message):
    (tmp_path / "batch").write_bytes(pickle.dumps(batch, 2))
    with pytest.raises(InvalidDataError, match=f"{tmp_path}/batch .*{message}|{message}"):
        read_cifar_pickle(tmp_path / "batch", "labels")


def test_columns_first_arrays_are_read_by_their_flag(tmp_path):
    (tmp_path / "batch").write_bytes(pickle.dumps({b"data": np.asfortranarray(PIXELS), b"labels": [0, 1]}, 2))
    np.testing.assert_array_equal(read_cifar_pickle(tmp_path / "batch", "labels")[0], PIXELS)


@pytest.mark.parametrize("damage", [b"", b"\x80\x02}(", b"not a pickle", b"\x80\x02K\x01K\x02R.", b"\x80\x02]K\x01b."])
def test_a_damaged_pickle_is_refused_by_name(tmp_path, damage):
    (tmp_path / "batch").write_bytes(damage)
    with pytest.raises(InvalidDataError, match="batch must be a pickled CIFAR batch, got a damaged or foreign file"):
        read_cifar_pickle(tmp_path / "batch", "labels")


@pytest.mark.parametrize("content", [b"", bytes(3072), bytes(2 * 3073 - 1)])
def test_records_cut_short_are_refused_by_name(tmp_path, content):
    write_cifar_binary(tmp_path, 10)
    (tmp_path / "data_batch_3.bin").write_bytes(content)
    with pytest.raises(InvalidDataError, match=f"data_batch_3.bin must be records of 3073 bytes, got {len(content)} bytes"):
        cifar.read_cifar10_binary(tmp_path)


def test_a_label_beyond_the_classes_names_the_folder(tmp_path):
    write_cifar_binary(tmp_path, 10)
    (tmp_path / "test_batch.bin").write_bytes(b"\x0a" + bytes(3072))
    with pytest.raises(InvalidDataError, match=rf"{tmp_path}: labels must be in \[0, 10\)"):
        cifar.read_cifar10_binary(tmp_path)


@pytest.mark.parametrize(("read", "file"), [(BINARY[100], "train.bin"), (PICKLES[100], "train")])
def test_a_missing_batch_is_not_found(tmp_path, read, file):
    with pytest.raises(DataNotFoundError, match=f"there is no file {tmp_path}/{file}"):
        read(tmp_path)
