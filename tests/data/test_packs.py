"""Data packs: plain arrays, WebP strips, missing parts, damage."""

import numpy as np
import pytest
from fake_files import grey, labels, webp_strips

from sameguard.data.packs import read_pack
from sameguard.errors import DataNotFoundError, InvalidDataError

COLOUR = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)


def read(path):
    return read_pack(path, name="x", classes=10)


def write(tmp_path, **arrays):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, **arrays)
    return path


def strips(part="train", images=COLOUR, **changes):
    data, lengths = webp_strips(images, per_strip=2)
    return {f"{part}_images_webp": data, f"{part}_images_len": lengths, f"{part}_labels": labels(len(images)), **changes}


def test_grey_images_get_a_channel_axis_and_extra_keys_are_ignored(tmp_path):
    found = read(
        write(tmp_path, train_images=grey(3), train_labels=labels(3), test_images=grey(2), test_labels=labels(2), writer=labels(3))
    )
    np.testing.assert_array_equal(found.train.raw, grey(3)[:, None])
    np.testing.assert_array_equal(found.train.labels, labels(3))
    assert (len(found.test), found.test.classes, found.name) == (2, 10, "x")


def test_webp_strips_come_back_without_loss(tmp_path):
    found = read(write(tmp_path, **strips("train"), **strips("test", COLOUR[:2])))
    np.testing.assert_array_equal(found.train.raw, COLOUR.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(found.test.raw, COLOUR[:2].transpose(0, 3, 1, 2))


def test_an_empty_or_absent_part_is_none(tmp_path):
    found = read(write(tmp_path, train_images=grey(0), train_labels=labels(0), test_images=grey(2), test_labels=labels(2)))
    assert found.train is None
    found = read(write(tmp_path, train_images=grey(2), train_labels=labels(2)))
    assert found.test is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"other": labels(1)}, "data set x must have a training or a test part"),
        ({"train_images": grey(2)}, "x.npz must be a data pack .*train_labels is not a file in the archive"),
        ({"train_images": grey(2), "train_labels": labels(3)}, "x.npz: labels must be one for each input"),
        ({"train_images": grey(2), "train_labels": np.array([0, 10])}, r"x.npz: labels must be in \[0, 10\)"),
        ({"train_images": grey(2), "train_labels": np.array([0.5, 1])}, "x.npz train_labels must be integers, got float64"),
        ({"train_images": grey(2) / 255, "train_labels": labels(2)}, "x.npz must hold uint8 images, got train_images of float64"),
        ({"train_images": np.array([None]), "train_labels": labels(1)}, "x.npz must be a data pack .*allow_pickle=False"),
        (strips(train_images_len=np.array([1, 2, 3])), "x.npz must hold WebP strips of the lengths it lists"),
        (strips(train_images_len=np.array([], int)), "x.npz must hold WebP strips of the lengths it lists"),
        (strips(train_labels=labels(6)), "x.npz must hold one image for each label, got 5 images for 6 labels"),
        (strips(train_labels=labels(4)), "x.npz must hold strips of 4 equal square images"),
        (strips(images=COLOUR[:, :, :6]), r"x.npz must hold strips of 5 equal square images, got one of \(16, 6\) at image 0"),
        (strips(train_images_webp=np.zeros(9, np.uint8), train_images_len=np.array([9])), "x.npz must be .*cannot identify image"),
    ],
)
def test_a_pack_that_is_not_one_is_refused_by_name(tmp_path, arrays, message):
    with pytest.raises(InvalidDataError, match=message):
        read(write(tmp_path, **arrays))


def test_strips_of_different_sizes_are_refused(tmp_path):
    large, small = webp_strips(COLOUR[:2], 2), webp_strips(COLOUR[:2, :4, :4], 2)
    arrays = {"train_images_webp": np.concatenate([large[0], small[0]]), "train_images_len": np.concatenate([large[1], small[1]])}
    with pytest.raises(InvalidDataError, match=r"equal square images, got one of \(8, 4\) at image 2"):
        read(write(tmp_path, train_labels=labels(4), **arrays))


def test_a_missing_pack_is_not_found(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"x.npz must be a data pack .* but there is no file"):
        read(tmp_path / "x.npz")


def test_a_text_file_is_no_pack(tmp_path):
    (tmp_path / "x.npz").write_text("hello")
    with pytest.raises(InvalidDataError, match=r"x.npz must be a data pack"):
        read(tmp_path / "x.npz")
