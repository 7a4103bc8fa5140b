"""Names -> loaders: where each set may lie below a root folder, in which layout, and how it is read.

For each name the layouts are tried in order and the first that is complete is read: the .npz pack, the folders that `fetch`, torchvision
and the official archives leave on disk, the files straight in the root. (MNIST and KMNIST share their file names, so of the two only MNIST
is looked for straight in the root.) Reads no environment variable: the caller passes the root.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sameguard.data.cifar import (
    CIFAR10_BINARY,
    CIFAR10_PICKLES,
    CIFAR100_BINARY,
    CIFAR100_PICKLES,
    read_cifar10_binary,
    read_cifar10_pickles,
    read_cifar100_binary,
    read_cifar100_pickles,
)
from sameguard.data.dataset import DataSet
from sameguard.data.digits import read_digits
from sameguard.data.glyphs import render_glyphs
from sameguard.data.idx import EMNIST_DIGITS_FILES, MNIST_FILES, read_emnist_zip, read_idx_folder
from sameguard.data.packs import read_pack
from sameguard.data.tiny_imagenet import read_tiny_imagenet
from sameguard.errors import ConfigurationError, DataNotFoundError


@dataclass(frozen=True)
class Layout:
    """One place where a set may lie.

    folder: below the root; files: all that must be in it ("x[.gz]": x or x.gz); read: called with root / folder.
    """

    folder: str
    files: tuple[str, ...]
    read: Callable[[Path], DataSet]

    def missing(self, root: Path) -> Path | None:
        """The first file that is not there, None if the layout is complete."""
        for name in self.files:
            plain = name.removesuffix("[.gz]")
            if not any((root / self.folder / found).is_file() for found in {plain, name.replace("[.gz]", ".gz")}):
                return root / self.folder / name
        return None


def _pack(file: str, name: str, classes: int) -> Layout:
    return Layout("", (file,), lambda folder: read_pack(folder / file, name=name, classes=classes))


def _idx(folder: str, name: str, files: tuple[str, ...] = MNIST_FILES, *, transposed: bool = False) -> Layout:
    needed = tuple(f"{file}[.gz]" for file in files)
    return Layout(folder, needed, lambda place: read_idx_folder(place, name=name, files=files, transposed=transposed))


def _emnist(folder: str) -> Layout:
    return _idx(folder, "emnist-digits", EMNIST_DIGITS_FILES, transposed=True)


def _emnist_zip(folder: str) -> Layout:
    return Layout(folder, ("gzip.zip",), lambda place: read_emnist_zip(place / "gzip.zip"))


def _cifar(folder: str, files: tuple[tuple[str, ...], tuple[str, ...]], read: Callable[[Path], DataSet]) -> Layout:
    train, test = files
    return Layout(folder, (*train, *test), read)


LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "mnist": (_pack("mnist.npz", "mnist", 10), _idx("MNIST/raw", "mnist"), _idx("mnist", "mnist"), _idx("", "mnist")),
    "kmnist": (_pack("kmnist.npz", "kmnist", 10), _idx("KMNIST/raw", "kmnist"), _idx("kmnist", "kmnist")),
    "emnist-digits": (
        *(_emnist(folder) for folder in ("emnist-digits", "EMNIST/raw", "gzip", "")),
        *(_emnist_zip(folder) for folder in ("EMNIST/raw", "")),
    ),
    "femnist-digits": (_pack("femnist_digits.npz", "femnist-digits", 10),),
    "cifar10": (
        _pack("cifar10.npz", "cifar10", 10),
        *(_cifar(folder, CIFAR10_BINARY, read_cifar10_binary) for folder in ("cifar-10-batches-bin", "")),
        *(_cifar(folder, CIFAR10_PICKLES, read_cifar10_pickles) for folder in ("cifar-10-batches-py", "")),
    ),
    "cifar100": (
        _pack("cifar100.npz", "cifar100", 100),
        *(_cifar(folder, CIFAR100_BINARY, read_cifar100_binary) for folder in ("cifar-100-binary", "")),
        *(_cifar(folder, CIFAR100_PICKLES, read_cifar100_pickles) for folder in ("cifar-100-python", "")),
    ),
    "tiny-imagenet": (
        _pack("tinyimagenet32.npz", "tiny-imagenet", 200),
        *(Layout(folder, ("val/val_annotations.txt",), read_tiny_imagenet) for folder in ("tiny-imagenet-200", "")),
    ),
}
GENERATED: dict[str, Callable[[], DataSet]] = {  # nothing on disk: the root is not looked at
    "digits": read_digits,
    "glyphs": lambda: DataSet("glyphs", render_glyphs(), None),
}


def names() -> tuple[str, ...]:
    """Every name that `load` knows."""
    return (*LAYOUTS, *GENERATED)


def load(name: str, root: str | Path | None = None) -> DataSet:
    """The set of this name, read from below root (default: the folder "data" in the working directory).

    Raises ConfigurationError for an unknown name, DataNotFoundError if no layout is complete, InvalidDataError if a file is damaged.
    """
    _check_name(name)
    if name in GENERATED:
        return GENERATED[name]()
    folder = Path("data" if root is None else root)
    layout = locate(name, folder)
    if layout is None:
        raise DataNotFoundError(_where_we_looked(name, folder.absolute()))
    return layout.read(folder / layout.folder)


def locate(name: str, root: Path) -> Layout | None:
    """The first complete layout of this set below root, None if there is none (or if the set is generated)."""
    _check_name(name)
    return next((layout for layout in LAYOUTS.get(name, ()) if layout.missing(root) is None), None)


def _check_name(name: str) -> None:
    if name not in names():
        raise ConfigurationError(f"data set must be one of {', '.join(names())}, got {name!r}.")


def _where_we_looked(name: str, root: Path) -> str:
    places = ", ".join(str(layout.missing(root)) for layout in LAYOUTS[name])
    if name == "femnist-digits":
        remedy = "no official single download of it exists; emnist-digits is the official alternative"
    else:
        remedy = f"run: sameguard data fetch {name} --data-root {shlex.quote(str(root))}"
    return f"{name} must lie below the data root {root}, but none of these is there: {places}: {remedy}."
