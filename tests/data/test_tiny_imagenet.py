"""Tiny ImageNet's official folder."""

import numpy as np
import pytest
from fake_files import write_tiny_imagenet

from sameguard.data.tiny_imagenet import read_tiny_imagenet
from sameguard.errors import ConfigurationError, DataNotFoundError, InvalidDataError


def test_the_folder_is_read_reduced_and_numbered_by_sorted_id(tmp_path):
    write_tiny_imagenet(tmp_path)
    found = read_tiny_imagenet(tmp_path)
    assert found.train.raw.shape == (4, 3, 32, 32)
    assert found.train.labels.tolist() == [0, 0, 1, 1]
    assert found.test.labels.tolist() == [1, 0]  # in the order of the annotations
    np.testing.assert_allclose(found.train.raw.mean(axis=(1, 2, 3)), [40, 140, 0, 100], atol=1)
    np.testing.assert_allclose(found.test.raw.mean(axis=(1, 2, 3)), [200, 201], atol=1)


def test_the_size_is_an_option(tmp_path):
    write_tiny_imagenet(tmp_path)
    assert read_tiny_imagenet(tmp_path, size=64).test.input_shape == (3, 64, 64)
    with pytest.raises(ConfigurationError, match="size must be at least 1 pixel, got 0"):
        read_tiny_imagenet(tmp_path, size=0)


@pytest.mark.parametrize("line", ["val_0.JPEG", "val_0.JPEG\tn0\t0", "../x.JPEG\tn01443537\t0"])
def test_a_wrong_annotation_is_refused_by_line(tmp_path, line):
    write_tiny_imagenet(tmp_path)
    (tmp_path / "val" / "val_annotations.txt").write_text(f"val_1.JPEG\tn01443537\t0\n{line}\n")
    with pytest.raises(InvalidDataError, match=r"val_annotations.txt line 2 must be a file name and a known WordNet id, got"):
        read_tiny_imagenet(tmp_path)


def test_a_damaged_image_is_refused_by_name(tmp_path):
    write_tiny_imagenet(tmp_path)
    image = tmp_path / "train/n01443537/images/n01443537_0.JPEG"
    image.write_bytes(image.read_bytes()[:300])
    with pytest.raises(InvalidDataError, match=r"n01443537_0.JPEG must be an image, got a damaged or foreign file"):
        read_tiny_imagenet(tmp_path)


def test_a_listed_image_that_is_missing_is_not_found(tmp_path):
    write_tiny_imagenet(tmp_path)
    (tmp_path / "val/images/val_1.JPEG").unlink()
    with pytest.raises(DataNotFoundError, match=r"val_1.JPEG must be an image, but there is no file"):
        read_tiny_imagenet(tmp_path)


def test_a_folder_without_images_is_refused(tmp_path):
    write_tiny_imagenet(tmp_path)
    (tmp_path / "val" / "val_annotations.txt").write_text("")
    with pytest.raises(InvalidDataError, match="must hold training and validation images, got 4 and 0"):
        read_tiny_imagenet(tmp_path)


def test_a_missing_folder_is_not_found(tmp_path):
    with pytest.raises(DataNotFoundError, match="must be the tiny-imagenet-200 folder, but there is no file"):
        read_tiny_imagenet(tmp_path / "absent")
