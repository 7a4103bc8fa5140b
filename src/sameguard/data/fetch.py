"""Fetches the official files of a set into the layout that the readers read, and nothing that is already there.

Plain files are put in their folder one by one, each once its checksum fits. An archive is downloaded beside its folder, checked, unpacked
into a temporary folder and renamed, so a folder with the final name is always complete. A file or folder that is there but is not what
`fetch` would put there is never overwritten: the error says what to move away.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sameguard.data.downloading import Progress, download, md5_of
from sameguard.data.official import OFFICIAL, Archive, PlainFiles
from sameguard.data.unpacking import unpack
from sameguard.errors import ConfigurationError, DownloadError

RECEIPT = ".fetched.json"  # in an unpacked folder: the archive's MD5, and how many files of how many bytes came out of it


@dataclass(frozen=True)
class Fetched:
    """What `fetch` did. downloaded_bytes is 0 if everything was there already."""

    name: str
    folder: Path
    downloaded_bytes: int


def fetch(
    name: str, root: str | Path, base_url: str | None = None, progress: Progress | None = None, *, timeout_seconds: float = 30.0
) -> Fetched:
    """Where the set's official files now are, below root, every checksum right.

    base_url: a mirror that has the files under their official names (http or https). progress(file, bytes so far, bytes in all or None) is
    called as they come. Downloads resume where an earlier attempt stopped.

    Raises ConfigurationError for a set without an official download or an address that is not http(s), DownloadError for all that fails.
    """
    if name not in OFFICIAL:
        raise ConfigurationError(f"data set to fetch must be one of {', '.join(OFFICIAL)}, got {name!r}{_why_not(name)}.")
    source = OFFICIAL[name]
    address = base_url or source.base_url
    if not address.startswith(("http://", "https://")):
        raise ConfigurationError(f"base_url must start with http:// or https://, got {address!r}.")
    address = address.rstrip("/")
    folder = Path(root) / source.folder

    def get(file: str, target: Path, md5: str) -> int:
        return download(f"{address}/{file}", target, md5=md5, progress=progress, timeout_seconds=timeout_seconds)

    if isinstance(source, PlainFiles):
        received = [
            _ensure_file(folder / file.name, file.md5, lambda file=file: get(file.name, folder / file.name, file.md5))
            for file in source.files
        ]
        return Fetched(name, folder, sum(received))
    if folder.exists():
        _check_receipt(folder, source)
        return Fetched(name, folder, 0)
    archive = Path(root) / source.file.name
    brought = archive.exists()  # an archive that the user put there is used, and stays
    received = _ensure_file(archive, source.file.md5, lambda: get(source.file.name, archive, source.file.md5))
    _unpack(archive, folder, source)
    if not brought:
        with suppress(OSError):  # the set is in place; an archive that cannot be deleted harms nobody
            archive.unlink()
    return Fetched(name, folder, received)


def _ensure_file(target: Path, md5: str, get: Callable[[], int]) -> int:
    """Bytes received until `target` is there and right."""
    if not target.exists():
        return get()
    if (got := md5_of(target)) != md5:
        raise DownloadError(f"{target} must have MD5 {md5}, got a file with {got}: move it away and run again.")
    return 0


def _unpack(archive: Path, folder: Path, source: Archive) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        workplace = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=folder.parent))
        try:
            unpack(archive, workplace / "content", inner=source.inner, members=source.members)
            count, size = _census(workplace / "content")
            receipt = {"archive": source.file.name, "md5": source.file.md5, "files": count, "bytes": size}
            (workplace / "content" / RECEIPT).write_text(json.dumps(receipt) + "\n", encoding="ascii")
            (workplace / "content").rename(folder)
        finally:
            shutil.rmtree(workplace, ignore_errors=True)
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(f"{folder} must be writable, got {error.strerror or error}: make room or choose another data root.") from error


def _check_receipt(folder: Path, source: Archive) -> None:
    try:
        receipt = json.loads((folder / RECEIPT).read_text(encoding="ascii"))
        files, size = _census(folder)
    except (OSError, ValueError):
        receipt = None
    if receipt is None:
        raise DownloadError(
            f"{folder} must have been put there by fetch, got a folder without its receipt: load reads it, or move it away."
        )
    if receipt != {"archive": source.file.name, "md5": source.file.md5, "files": files, "bytes": size}:
        raise DownloadError(f"{folder} must be as fetch left it, got {files} files of {size} bytes: move it away and run again.")


def _census(folder: Path) -> tuple[int, int]:
    """Number and total bytes of the files below folder, the receipt not counted."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != RECEIPT]
    return len(sizes), sum(sizes)


def _why_not(name: str) -> str:
    if name == "femnist-digits":
        return ": it has no official single download, emnist-digits is the official alternative"
    return ": it is made on this machine, there is nothing to fetch" if name in ("digits", "glyphs") else ""
