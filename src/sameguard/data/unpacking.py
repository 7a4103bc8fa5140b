"""Unpacks an archive without trusting it: plain files and folders below the target, nothing else, up to a size.

Members are written here, byte by byte, rather than by `extractall`: so links, devices, owners, modes and absolute or climbing names cannot
exist in the result whatever the archive says, on every supported Python and for .tar.gz and .zip alike.
"""

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from sameguard.errors import DownloadError

MAX_UNPACKED_BYTES = 1 << 32
MAX_MEMBERS = 500_000  # Tiny ImageNet has 120,609
CHUNK_BYTES = 1 << 18


class _Member(NamedTuple):
    name: str
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, folder: Path, *, inner: str, members: tuple[str, ...] | None = None) -> None:
    """Writes the files of the archive's folder `inner` into `folder`, which must not exist; `members`: only these files, all of them.

    Leaves nothing behind on failure. Raises DownloadError if the archive is damaged, holds a link, a device or a name that leaves the
    folder, is too large, or lacks what was asked for.
    """
    wanted = None if members is None else {f"{inner}/{name}" for name in members}
    try:
        folder.mkdir(parents=True)
        written = _write_all(archive, folder, inner, wanted)
        if not written or (wanted is not None and written != wanted):
            missing = sorted(wanted - written) if wanted else [f"{inner}/"]
            raise DownloadError(f"{archive} must hold {missing[0]}, got an archive without it: it is not the official file.")
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, DownloadError):
            raise
        if isinstance(error, tarfile.TarError | zipfile.BadZipFile | zlib.error | EOFError | OSError | RuntimeError | ValueError):
            raise DownloadError(f"{archive} must unpack into {folder}, got {error}: make room, or delete it and fetch again.") from error
        raise


def _write_all(archive: Path, folder: Path, inner: str, wanted: set[str] | None) -> set[str]:
    """Names of the members written."""
    written, room = set(), MAX_UNPACKED_BYTES
    for member in _zip_files(archive) if archive.suffix == ".zip" else _tar_files(archive):
        if not member.name.startswith(f"{inner}/") or (wanted is not None and member.name not in wanted):
            continue
        target = folder / member.name.removeprefix(f"{inner}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        with member.open() as source, target.open("xb") as file:
            while chunk := source.read(CHUNK_BYTES):
                room -= len(chunk)
                if room < 0:
                    raise DownloadError(
                        f"{archive} must unpack to at most {MAX_UNPACKED_BYTES} bytes, got more: it is not the official file."
                    )
                file.write(chunk)
        written.add(member.name)
    return written


def _tar_files(archive: Path) -> Iterator[_Member]:
    with tarfile.open(archive, "r:gz") as tar:
        for count, info in enumerate(tar):
            _check_member(archive, info.name, count, plain=info.isfile() or info.isdir())
            if info.isfile():
                yield _Member(info.name.removeprefix("./"), lambda info=info: tar.extractfile(info))


def _zip_files(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as packed:
        for count, info in enumerate(packed.infolist()):
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was not made on Unix
            _check_member(archive, info.filename, count, plain=kind in (0, stat.S_IFREG, stat.S_IFDIR))
            if not info.is_dir():
                yield _Member(info.filename.removeprefix("./"), lambda info=info: packed.open(info))


def _check_member(archive: Path, name: str, count: int, *, plain: bool) -> None:
    if count >= MAX_MEMBERS:
        raise DownloadError(f"{archive} must have at most {MAX_MEMBERS} members, got more: it is not the official file.")
    if not plain:
        raise DownloadError(f"{archive} must hold plain files and folders, got {name!r}, a link or device: it is not the official file.")
    if name.startswith("/") or ".." in name.split("/") or any(sign in name for sign in "\\:\0"):
        raise DownloadError(f"{archive} must keep its names inside its folder, got {name!r}: it is not the official file.")
