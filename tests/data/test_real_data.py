"""The real sets, where SAMEGUARD_DATA names a folder that has them: counts, shapes, orientation, known facts."""

import os
from pathlib import Path

import numpy as np
import pytest

from sameguard.data import load, split
from sameguard.data.registry import locate

ROOT = os.environ.get("SAMEGUARD_DATA")


def real(name):
    if ROOT is None:
        pytest.skip("SAMEGUARD_DATA is not set: it names the folder with the real data sets")
    if locate(name, Path(ROOT)) is None:
        pytest.skip(f"{name} is not below SAMEGUARD_DATA")
    return load(name, ROOT)


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("mnist", (1, 28, 28), 10),
        ("kmnist", (1, 28, 28), 10),
        ("emnist-digits", (1, 28, 28), 10),
        ("femnist-digits", (1, 28, 28), 10),
        ("cifar10", (3, 32, 32), 10),
        ("cifar100", (3, 32, 32), 100),
        ("tiny-imagenet", (3, 32, 32), 200),
    ],
)
def test_every_class_of_a_real_set_is_there_in_the_right_shape(name, shape, classes):
    found = real(name)
    for part in (found.train, found.test):
        if part is not None:
            assert part.input_shape == shape
            assert part.classes == classes
            assert len(np.unique(part.labels)) == classes
            assert part.raw.dtype == np.uint8
            assert part.raw.max() > 200


def test_mnist_has_its_published_mean_and_spread():
    inputs = real("mnist").train.inputs
    assert inputs.mean(dtype=np.float64) == pytest.approx(0.1307, abs=1e-4)
    assert inputs.std(dtype=np.float64) == pytest.approx(0.3081, abs=1e-4)


def test_cifar10_has_its_published_channel_means():
    means = real("cifar10").train.raw.mean(axis=(0, 2, 3)) / 255
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=1e-4)


def test_ninety_percent_of_mnist_share_no_image_with_the_rest():
    fit_part, benign = split(real("mnist").train, (0.9, 0.1), seed=0)
    assert (len(fit_part), len(benign)) == (54_000, 6_000)
    images = [{image.tobytes() for image in part.raw} for part in (fit_part, benign)]
    assert not images[0] & images[1]


def test_the_digit_sets_are_upright_and_white_on_black():
    """A one is taller than it is wide, and its ink is bright."""
    for name in ("mnist", "emnist-digits", "femnist-digits"):
        if ROOT is not None and locate(name, Path(ROOT)) is None:
            continue
        train = real(name).train
        ones = train.take(np.flatnonzero(train.labels == 1)).raw[:, 0] > 127
        assert ones.any(axis=2).sum(axis=1).mean() > 2 * ones.any(axis=1).sum(axis=1).mean()
        assert ones.mean() < 0.3
