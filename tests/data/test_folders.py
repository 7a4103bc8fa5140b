"""What users bring: image folders and .npz files."""

import numpy as np
import pytest
from fake_files import flat_image, grey, labels
from PIL import Image

from sameguard.data.folders import read_arrays, read_image_folder
from sameguard.errors import ConfigurationError, DataNotFoundError, InvalidDataError


def save(folder, name, image):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def test_a_class_is_a_sub_folder_numbered_by_sorted_name(tmp_path):
    save(tmp_path, "zebra/1.png", flat_image(9, "RGB", (4, 3)))
    save(tmp_path, "ant/2.PNG", flat_image(7, "RGB", (4, 3)))
    save(tmp_path, "ant/1.bmp", flat_image(5, "RGB", (4, 3)))
    (tmp_path / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / "ant" / "._1.png").write_text("a Mac's shadow file")
    split, class_names = read_image_folder(tmp_path)
    assert class_names == ("ant", "zebra")
    assert split.raw.shape == (3, 3, 3, 4)
    assert split.raw[:, 0, 0, 0].tolist() == [5, 7, 9]
    assert split.labels.tolist() == [0, 0, 1]


def test_pixels_are_not_moved(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)
    save(tmp_path, "a/1.png", Image.fromarray(pixels))
    np.testing.assert_array_equal(read_image_folder(tmp_path).split.raw[0], pixels.transpose(2, 0, 1))


def test_grey_images_have_one_channel_unless_a_coloured_one_is_among_them(tmp_path):
    save(tmp_path, "a/1.png", flat_image(5, "L"))
    save(tmp_path, "a/2.png", flat_image(6, "L").convert("1"))
    assert read_image_folder(tmp_path).split.input_shape == (1, 64, 64)
    save(tmp_path, "a/3.png", flat_image(5, "RGB").convert("RGBA"))
    assert read_image_folder(tmp_path).split.input_shape == (3, 64, 64)


def test_size_resizes_what_differs(tmp_path):
    save(tmp_path, "a/1.png", flat_image(5, "L", (10, 6)))
    save(tmp_path, "a/2.png", flat_image(6, "L", (8, 8)))
    with pytest.raises(InvalidDataError, match=r"2.png must have the size of 1.png, 10x6, got 8x8: give a size"):
        read_image_folder(tmp_path)
    assert read_image_folder(tmp_path, size=8).split.raw[:, 0, 0, 0].tolist() == [5, 6]
    with pytest.raises(ConfigurationError, match="size must be at least 1 pixel, got 0"):
        read_image_folder(tmp_path, size=0)


def test_sixteen_bit_images_are_refused(tmp_path):
    save(tmp_path, "a/1.png", Image.fromarray(np.zeros((4, 4), np.uint16)))
    with pytest.raises(InvalidDataError, match=r"1.png must have 8 bits per channel, got mode I;16"):
        read_image_folder(tmp_path)


def test_a_damaged_image_is_refused_by_name(tmp_path):
    save(tmp_path, "a/1.png", Image.fromarray(grey(1, 40)[0]))
    (tmp_path / "a/1.png").write_bytes((tmp_path / "a/1.png").read_bytes()[:200])
    with pytest.raises(InvalidDataError, match=r"1.png must be an image, got a damaged or foreign file"):
        read_image_folder(tmp_path)
    (tmp_path / "a/1.png").write_text("no image at all")
    with pytest.raises(InvalidDataError, match=r"1.png must be an image, got a damaged or foreign file"):
        read_image_folder(tmp_path)


def test_a_folder_without_images_is_not_found(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(DataNotFoundError, match="must hold images, in one sub-folder per class or straight in it, got none in 1 sub-fold"):
        read_image_folder(tmp_path)
    with pytest.raises(DataNotFoundError, match=r"image folder must exist, but there is no folder .*absent"):
        read_image_folder(tmp_path / "absent")


def test_images_straight_in_the_folder_have_no_labels(tmp_path):
    for number in (1, 2, 3):
        save(tmp_path, f"{number}.png", Image.fromarray(grey(1, 40)[0]))
    found = read_image_folder(tmp_path)
    assert found.split.raw.shape[:2] == (3, 1)
    assert found.split.labels is None
    assert found.class_names == ()


def test_images_beside_class_folders_are_not_left_out_silently(tmp_path):
    save(tmp_path, "a/1.png", Image.fromarray(grey(1, 40)[0]))
    save(tmp_path, "2.png", Image.fromarray(grey(1, 40)[0]))
    with pytest.raises(InvalidDataError, match="must have all images in class folders or none, got 1 beside them: move these"):
        read_image_folder(tmp_path)


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "mine.npz", **arrays)
    return tmp_path / "mine.npz"


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (("train_images", "train_labels"), ("test_images", "test_labels")),
        (("x_train", "y_train"), ("x_test", "y_test")),
        (("inputs", "labels"), ("test_inputs", "test_labels")),
        (("train_inputs", "train_labels"), ("x_test", "y_test")),
    ],
)
def test_every_naming_is_understood(tmp_path, train, test):
    found = read_arrays(npz(tmp_path, **dict(zip(train + test, (grey(3), labels(3), grey(2), labels(2)), strict=True))))
    np.testing.assert_array_equal(found.train.raw, grey(3)[:, None])
    np.testing.assert_array_equal(found.test.labels, labels(2))
    assert (found.name, found.train.classes, found.test.classes) == ("mine", 3, 3)


def test_keras_columns_of_labels_and_channels_last_are_understood(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    found = read_arrays(npz(tmp_path, x_train=images, y_train=labels(4).astype(np.uint8)[:, None]))
    np.testing.assert_array_equal(found.train.raw, images.transpose(0, 3, 1, 2))
    assert found.train.labels.tolist() == [0, 1, 2, 3]
    assert found.test is None


def test_vectors_become_float32_and_need_no_labels(tmp_path):
    found = read_arrays(npz(tmp_path, inputs=np.array([[1.5, -2.0]])))
    assert (found.train.raw.dtype, found.train.labels, found.train.classes) == (np.float32, None, 0)


def test_arrays_of_either_byte_order_are_read(tmp_path):
    found = read_arrays(npz(tmp_path, inputs=np.array([[1.5, -2.0]], ">f4"), labels=np.array([3], ">i4")))
    assert found.train.raw.tolist() == [[1.5, -2.0]]
    assert found.train.raw.dtype.isnative
    assert found.train.labels.tolist() == [3]


def test_classes_can_be_more_than_are_seen(tmp_path):
    assert read_arrays(npz(tmp_path, inputs=grey(2), labels=labels(2)), classes=7).train.classes == 7


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": labels(2)}, "mine.npz must hold one of inputs, .* got x: rename the arrays"),
        ({}, "mine.npz must hold one of inputs, .* got nothing"),
        ({"inputs": np.zeros((2, 5), np.int64)}, "mine.npz inputs must be uint8 pixels or floats, got int64"),
        ({"inputs": np.zeros((2, 5), np.uint8)}, "mine.npz inputs must be floats where inputs are vectors, got uint8"),
        ({"inputs": np.zeros((2, 5, 5)) + 2}, r"mine.npz: float32 images must be in \[0, 1\]"),
        ({"inputs": np.full((2, 5), 1e300)}, "mine.npz: inputs must be finite"),
        ({"inputs": grey(2), "labels": np.array(["a", "b"])}, "mine.npz labels must be integers, got <U1"),
        ({"inputs": grey(2), "labels": labels(3)}, "mine.npz: labels must be one for each input"),
        ({"inputs": grey(0), "labels": labels(0)}, "mine.npz inputs must hold at least one row, got 0"),
        ({"inputs": np.zeros((0, 5))}, "mine.npz inputs must hold at least one row, got 0"),
        ({"inputs": grey(2), "x_train": grey(3)}, "mine.npz must name the inputs of a part once, got inputs and x_train"),
        ({"inputs": np.array([None])}, "mine.npz must be an .npz of arrays, got a damaged .*allow_pickle=False"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(tmp_path, arrays, message):
    with pytest.raises(InvalidDataError, match=message):
        read_arrays(npz(tmp_path, **arrays))


def test_a_single_array_or_another_file_is_refused(tmp_path):
    np.save(tmp_path / "one.npy", grey(2))
    with pytest.raises(InvalidDataError, match=r"one.npy must be an .npz with named arrays"):
        read_arrays(tmp_path / "one.npy")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(InvalidDataError, match=r"text.npz must be an .npz of arrays"):
        read_arrays(tmp_path / "text.npz")
    with pytest.raises(DataNotFoundError, match=r"absent.npz must be an .npz of arrays, but there is no file"):
        read_arrays(tmp_path / "absent.npz")
