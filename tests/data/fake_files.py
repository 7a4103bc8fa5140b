"""Writes tiny sets in every layout that the readers know, straight from the formats' definitions and without sameguard."""

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

MNIST_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
EMNIST_NAMES = tuple(f"emnist-digits-{part}-{kind}-ubyte" for part in ("train", "test") for kind in ("images-idx3", "labels-idx1"))


def grey(n: int, side: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side + 1), np.uint8)


def labels(n: int, classes: int = 10) -> np.ndarray:
    return np.arange(n) % classes


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


def write_idx_folder(folder: Path, names=MNIST_NAMES, *, packed: bool = True, transposed: bool = False) -> dict[str, np.ndarray]:
    """Four files of six training and four test images; returns the upright arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = dict(zip(names, (grey(6), labels(6), grey(4, seed=1), labels(4)), strict=True))
    for name, array in arrays.items():
        stored = array.transpose(0, 2, 1) if transposed and array.ndim == 3 else array
        data = idx_bytes(stored)
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(data) if packed else data)
    return arrays


def write_emnist_zip(path: Path) -> dict[str, np.ndarray]:
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.parent / "to-zip"
    arrays = write_idx_folder(folder, EMNIST_NAMES, transposed=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("gzip/emnist-letters-train-images-idx3-ubyte.gz", b"another split")
        for file in sorted(folder.iterdir()):
            archive.write(file, f"gzip/{file.name}")
            file.unlink()
    folder.rmdir()
    return arrays


def colour(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 3, 32, 32), np.uint8)


def cifar_parts(classes: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    train = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"] if classes == 10 else ["train"]
    test = ["test_batch"] if classes == 10 else ["test"]
    return {name: (colour(2, seed), np.array([seed, classes - 1])) for seed, name in enumerate(train + test)}


def write_cifar_binary(folder: Path, classes: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    folder.mkdir(parents=True, exist_ok=True)
    parts = cifar_parts(classes)
    for name, (images, fine) in parts.items():
        coarse = b"" if classes == 10 else b"\x07"
        records = (coarse + bytes([label]) + image.tobytes() for image, label in zip(images, fine, strict=True))
        (folder / f"{name}.bin").write_bytes(b"".join(records))
    return parts


def write_cifar_pickles(folder: Path, classes: int, protocol: int = 2) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    folder.mkdir(parents=True, exist_ok=True)
    parts = cifar_parts(classes)
    key = b"labels" if classes == 10 else b"fine_labels"
    for name, (images, fine) in parts.items():
        batch = {b"data": images.reshape(len(images), -1), key: fine.tolist(), b"filenames": [b"a.png", b"b.png"]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol))
    return parts


def python2_pickle(images: np.ndarray, fine: list[int], key: bytes = b"labels") -> bytes:
    """A batch as Python 2's cPickle wrote the official files: byte strings, numpy.core, protocol 2, opcode by opcode."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    pixels = images.reshape(len(images), -1).tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + b"K\x00\x85" + text(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R" + b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"K" + bytes([len(images)]) + b"M" + struct.pack("<H", 3072) + b"\x86"
    state = b"(K\x01" + shape + dtype + b"\x89" + b"T" + struct.pack("<i", len(pixels)) + pixels + b"tb"
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in fine) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + state + text(key) + listed + b"u."


def write_tiny_imagenet(folder: Path) -> dict[str, list[str]]:
    """Two classes of two training images and one validation image each, one of them grey; returns the ids in sorted order."""
    wnids = ["n01443537", "n02124075"]
    (folder / "val" / "images").mkdir(parents=True)
    lines = []
    for label, wnid in enumerate(reversed(wnids)):
        (folder / "train" / wnid / "images").mkdir(parents=True)
        for number in range(2):
            flat_image(40 * label + 100 * number, "L" if number else "RGB").save(folder / f"train/{wnid}/images/{wnid}_{number}.JPEG")
        flat_image(200 + label, "RGB").save(folder / f"val/images/val_{label}.JPEG")
        lines.append(f"val_{label}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return {"wnids": wnids}


def flat_image(level: int, mode: str, size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new(mode, size, level if mode == "L" else (level,) * 3)


def webp_strips(images: np.ndarray, per_strip: int) -> tuple[np.ndarray, np.ndarray]:
    """Lossless WebP strips of images (n, side, side, 3), and the bytes of each."""
    strips = []
    for start in range(0, len(images), per_strip):
        chunk, buffer = images[start : start + per_strip], io.BytesIO()
        Image.fromarray(chunk.reshape(-1, chunk.shape[2], 3)).save(buffer, "WEBP", lossless=True, exact=True)
        strips.append(buffer.getvalue())
    return np.frombuffer(b"".join(strips), np.uint8), np.array([len(strip) for strip in strips])


def tar_gz(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
