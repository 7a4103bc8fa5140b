"""Where each set lies officially, and the MD5 of its files: the table that `fetch` works through.

MD5 is what the publishers and the public loaders print. It finds damage and the wrong file; it is no proof against a forger who can
choose both files. Nothing here is opened by a reader until its checksum fits.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class OfficialFile:
    """One file below a base address."""

    name: str
    md5: str


@dataclass(frozen=True)
class PlainFiles:
    """A set of files that are kept as they come. folder: where they are put, below the data root."""

    base_url: str
    folder: str
    files: tuple[OfficialFile, ...]


@dataclass(frozen=True)
class Archive:
    """A set in one archive, .tar.gz or .zip, of which one folder is kept.

    inner: that folder in the archive; folder: where it is put, below the data root; members: the files in it to keep, None for all.
    """

    base_url: str
    file: OfficialFile
    inner: str
    folder: str
    members: tuple[str, ...] | None = None


OFFICIAL: dict[str, PlainFiles | Archive] = {
    "mnist": PlainFiles(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "MNIST/raw",
        (
            OfficialFile("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            OfficialFile("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
            OfficialFile("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
            OfficialFile("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
        ),
    ),
    "kmnist": PlainFiles(
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        "KMNIST/raw",
        (
            OfficialFile("train-images-idx3-ubyte.gz", "bdb82020997e1d708af4cf47b453dcf7"),
            OfficialFile("train-labels-idx1-ubyte.gz", "e144d726b3acfaa3e44228e80efcd344"),
            OfficialFile("t10k-images-idx3-ubyte.gz", "5c965bf0a639b31b8f53240b1b52f4d7"),
            OfficialFile("t10k-labels-idx1-ubyte.gz", "7320c461ea6c1c855c0b718fb2a4b134"),
        ),
    ),
    "emnist-digits": Archive(
        "https://biometrics.nist.gov/cs_links/EMNIST/",
        OfficialFile("gzip.zip", "58c8d27c78d21e728a6bc7b3cc06412e"),
        inner="gzip",
        folder="emnist-digits",
        members=(
            "emnist-digits-train-images-idx3-ubyte.gz",
            "emnist-digits-train-labels-idx1-ubyte.gz",
            "emnist-digits-test-images-idx3-ubyte.gz",
            "emnist-digits-test-labels-idx1-ubyte.gz",
        ),
    ),
    "cifar10": Archive(
        "https://www.cs.toronto.edu/~kriz/",
        OfficialFile("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
        inner="cifar-10-batches-bin",
        folder="cifar-10-batches-bin",
    ),
    "cifar100": Archive(
        "https://www.cs.toronto.edu/~kriz/",
        OfficialFile("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
        inner="cifar-100-binary",
        folder="cifar-100-binary",
    ),
    "tiny-imagenet": Archive(
        "http://cs231n.stanford.edu/",
        OfficialFile("tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"),
        inner="tiny-imagenet-200",
        folder="tiny-imagenet-200",
    ),
}
