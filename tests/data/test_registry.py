"""load(): names, the layouts tried for each, and what it says when nothing is there."""

import numpy as np
import pytest
from fake_files import (
    EMNIST_NAMES,
    grey,
    labels,
    write_cifar_binary,
    write_cifar_pickles,
    write_emnist_zip,
    write_idx_folder,
    write_tiny_imagenet,
)

from sameguard.data import load, names
from sameguard.data.official import OFFICIAL
from sameguard.data.registry import GENERATED, LAYOUTS, locate
from sameguard.errors import ConfigurationError, DataNotFoundError


def write_pack(path, train=3):
    np.savez(path, train_images=grey(train), train_labels=labels(train), test_images=grey(2), test_labels=labels(2))


def emnist(folder):
    write_idx_folder(folder, EMNIST_NAMES, transposed=True)


@pytest.mark.parametrize(
    ("name", "place", "write", "train"),
    [
        ("mnist", "mnist.npz", write_pack, 3),
        ("mnist", "MNIST/raw", write_idx_folder, 6),
        ("mnist", "mnist", write_idx_folder, 6),
        ("mnist", ".", lambda folder: write_idx_folder(folder, packed=False), 6),
        ("kmnist", "kmnist.npz", write_pack, 3),
        ("kmnist", "KMNIST/raw", write_idx_folder, 6),
        ("kmnist", "kmnist", write_idx_folder, 6),
        ("emnist-digits", "emnist-digits", emnist, 6),
        ("emnist-digits", "EMNIST/raw", emnist, 6),
        ("emnist-digits", "gzip", emnist, 6),
        ("emnist-digits", ".", emnist, 6),
        ("emnist-digits", "EMNIST/raw/gzip.zip", write_emnist_zip, 6),
        ("emnist-digits", "gzip.zip", write_emnist_zip, 6),
        ("femnist-digits", "femnist_digits.npz", write_pack, 3),
        ("cifar10", "cifar10.npz", write_pack, 3),
        ("cifar10", "cifar-10-batches-bin", lambda folder: write_cifar_binary(folder, 10), 10),
        ("cifar10", ".", lambda folder: write_cifar_binary(folder, 10), 10),
        ("cifar10", "cifar-10-batches-py", lambda folder: write_cifar_pickles(folder, 10), 10),
        ("cifar10", ".", lambda folder: write_cifar_pickles(folder, 10), 10),
        ("cifar100", "cifar100.npz", write_pack, 3),
        ("cifar100", "cifar-100-binary", lambda folder: write_cifar_binary(folder, 100), 2),
        ("cifar100", ".", lambda folder: write_cifar_binary(folder, 100), 2),
        ("cifar100", "cifar-100-python", lambda folder: write_cifar_pickles(folder, 100), 2),
        ("cifar100", ".", lambda folder: write_cifar_pickles(folder, 100), 2),
        ("tiny-imagenet", "tinyimagenet32.npz", write_pack, 3),
        ("tiny-imagenet", "tiny-imagenet-200", write_tiny_imagenet, 4),
        ("tiny-imagenet", ".", write_tiny_imagenet, 4),
    ],
)
def test_a_set_is_read_from_every_place_it_may_lie_in(tmp_path, name, place, write, train):
    write(tmp_path / place)
    found = load(name, root=tmp_path)
    assert (found.name, len(found.train)) == (name, train)
    assert len(found.test) > 0


def test_the_pack_goes_before_the_folder(tmp_path):
    write_idx_folder(tmp_path / "MNIST/raw")
    assert len(load("mnist", tmp_path).train) == 6
    write_pack(tmp_path / "mnist.npz")
    assert len(load("mnist", tmp_path).train) == 3


def test_an_incomplete_folder_does_not_hide_a_complete_one(tmp_path):
    write_idx_folder(tmp_path / "MNIST/raw")
    next((tmp_path / "MNIST/raw").iterdir()).unlink()
    write_idx_folder(tmp_path / "mnist")
    assert len(load("mnist", tmp_path).train) == 6


def test_mnists_files_in_the_root_are_never_taken_for_kmnist(tmp_path):
    write_idx_folder(tmp_path)
    with pytest.raises(DataNotFoundError, match="kmnist must lie below the data root"):
        load("kmnist", tmp_path)


def test_the_default_root_is_the_folder_data_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write_pack(tmp_path / "data" / "mnist.npz")
    assert len(load("mnist").train) == 3


def test_what_is_missing_is_told_with_absolute_paths_and_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_idx_folder(tmp_path / "my data/MNIST/raw")
    (tmp_path / "my data/MNIST/raw/t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataNotFoundError) as caught:
        load("mnist", "my data")
    message = str(caught.value)
    root = tmp_path / "my data"
    assert f"{root}/mnist.npz, {root}/MNIST/raw/t10k-labels-idx1-ubyte[.gz], {root}/mnist/train-images-idx3-ubyte[.gz]" in message
    assert message.endswith(f"run: sameguard data fetch mnist --data-root '{root}'.")


def test_for_femnist_the_official_alternative_is_named(tmp_path):
    with pytest.raises(DataNotFoundError, match="no official single download of it exists; emnist-digits is the official alternative"):
        load("femnist-digits", tmp_path)


def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path):
    for call in (load, locate):
        with pytest.raises(ConfigurationError, match=r"data set must be one of mnist, kmnist, .* glyphs, got 'svhn'"):
            call("svhn", tmp_path)


def test_every_name_is_found_on_disk_or_made_and_every_official_one_is_known():
    assert set(names()) == set(LAYOUTS) | set(GENERATED)
    assert not set(LAYOUTS) & set(GENERATED)
    assert set(OFFICIAL) == set(LAYOUTS) - {"femnist-digits"}


def test_generated_sets_need_no_root(tmp_path):
    assert locate("digits", tmp_path) is None
    glyphs = load("glyphs", tmp_path / "absent")
    assert (len(glyphs.train), glyphs.test) == (4000, None)
