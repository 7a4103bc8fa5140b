"""reading(): damage of every kind becomes one sentence, and no reader lets a parser's exception through."""

import gzip

import numpy as np
import pytest
from fake_files import cifar_parts, flat_image, grey, idx_bytes, labels, python2_pickle, webp_strips

from sameguard.data.cifar_pickle import read_cifar_pickle
from sameguard.data.folders import read_arrays, read_image_folder
from sameguard.data.idx import read_idx
from sameguard.data.packs import read_pack
from sameguard.data.reading import reading
from sameguard.errors import DataNotFoundError, InvalidDataError


def test_our_own_errors_get_the_file_in_front_once(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(InvalidDataError, match=f"^{path}: labels are wrong"), reading(path, "a file"), reading(path, "a file"):
        raise InvalidDataError("labels are wrong")
    with pytest.raises(DataNotFoundError, match=r"^nowhere"), reading(path, "a file"):
        raise DataNotFoundError("nowhere")


def test_a_file_that_may_not_be_read_says_so(tmp_path):
    with (
        pytest.raises(InvalidDataError, match="x must be readable, got Permission denied: check its permissions"),
        reading(tmp_path / "x", ""),
    ):
        raise PermissionError(13, "Permission denied")


def test_an_error_without_words_is_named_by_its_type(tmp_path):
    with (
        pytest.raises(InvalidDataError, match=r"x must be a file, got a damaged or foreign file \(MemoryError\)"),
        reading(tmp_path / "x", "a file"),
    ):
        raise MemoryError


def test_our_own_mistakes_are_not_blamed_on_the_file(tmp_path):
    with pytest.raises(TypeError), reading(tmp_path / "x", "a file"):
        len(3)


def write_npz(path):
    np.savez_compressed(path, train_images=grey(3), train_labels=labels(3))


def write_strips(path):
    strips, lengths = webp_strips(np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), np.uint8), 2)
    np.savez_compressed(path, train_images_webp=strips, train_images_len=lengths, train_labels=labels(4))


def write_idx(path):
    path.write_bytes(gzip.compress(idx_bytes(grey(3))))


def write_pickle(path):
    images, fine = cifar_parts(10)["test_batch"]
    path.write_bytes(python2_pickle(images, fine.tolist()))


def write_image(path):
    path.parent.mkdir(exist_ok=True)
    flat_image(9, "RGB").save(path)


@pytest.mark.parametrize(
    ("file", "write", "read"),
    [
        ("x.npz", write_npz, lambda path: read_pack(path, name="x", classes=10)),
        ("x.npz", write_npz, read_arrays),
        ("x.npz", write_strips, lambda path: read_pack(path, name="x", classes=10)),
        ("x.gz", write_idx, read_idx),
        ("batch", write_pickle, lambda path: read_cifar_pickle(path, "labels")),
        ("a/x.png", write_image, lambda path: read_image_folder(path.parent.parent)),
        ("a/x.jpg", write_image, lambda path: read_image_folder(path.parent.parent)),
        ("a/x.webp", write_image, lambda path: read_image_folder(path.parent.parent)),
        ("a/x.gif", write_image, lambda path: read_image_folder(path.parent.parent)),
        ("a/x.bmp", write_image, lambda path: read_image_folder(path.parent.parent)),
    ],
)
def test_a_damaged_file_is_read_or_refused_by_name_never_a_stack_trace(tmp_path, file, write, read):
    path = tmp_path / file
    write(path)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    messages = []
    for attempt in range(200):
        damaged = bytearray(whole)
        if attempt % 2:
            del damaged[generator.integers(len(whole)) :]
        else:
            heads = min(len(whole), 400) if attempt % 4 else len(whole)
            for position in generator.integers(heads, size=generator.integers(1, 6)):
                damaged[position] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            read(path)
        except InvalidDataError as error:
            messages.append(str(error))
    assert len(messages) > 40
    assert all(path.name in message for message in messages)
