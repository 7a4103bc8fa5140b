"""One file over HTTP: resumed from its `.part` file, checked against its MD5, and only then put in its place.

A server that ignores the Range header restarts the file cleanly. Whatever goes wrong on the way keeps the part for the next attempt; a
complete part with the wrong checksum is deleted, for resuming it could never end well. What it leaves out: retries (the caller runs it
again) and mirrors (the caller passes another address).
"""

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO

from sameguard.errors import DownloadError

CHUNK_BYTES = 1 << 18
MAX_DOWNLOAD_BYTES = 1 << 30  # the largest official file has 562 MB
RESUME = "the part file is kept, run the same command again to resume"

Progress = Callable[[str, int, int | None], None]  # file name, bytes so far, bytes in all (None: the server does not say)


def md5_of(path: Path) -> str:
    """The MD5 of a file, in hexadecimal. Raises DownloadError if it cannot be read."""
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise DownloadError(f"{path} must be readable, got {error.strerror}: check its permissions.") from error
    return digest.hexdigest()


def download(url: str, target: Path, *, md5: str, progress: Progress | None = None, timeout_seconds: float = 30.0) -> int:
    """The bytes received to get `url` into `target`, whose folder is made where it does not exist.

    Raises DownloadError if the server cannot be reached, refuses, stalls or stops early, if the disk fails, or if the checksum is wrong.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        received = _fill(part, url, target.name, progress or _silent, timeout_seconds)
        got = md5_of(part)
        if got != md5:
            part.unlink()
            raise DownloadError(
                f"{url} must have MD5 {md5}, got {got}: the part file was deleted; run again, or name a mirror with the official file."
            )
        os.replace(part, target)
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(f"{target} must be writable, got {error.strerror or error}: make room or choose another data root.") from error
    return received


def _fill(part: Path, url: str, name: str, progress: Progress, timeout_seconds: float) -> int:
    """Bytes received until the part file is complete; it may hold the beginning of the file, or all of it, already."""
    have = part.stat().st_size if part.exists() else 0
    response = _open(url, have, timeout_seconds)
    if response is None:  # there is nothing after what we have: it is complete, or it is not this file
        return 0
    with response:
        start = have if response.status == 206 else 0
        if start and (first := _first_byte(response)) != start:
            raise DownloadError(f"{url} must go on from byte {start}, got byte {first}: delete {part} and run again.")
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        if (total or 0) > MAX_DOWNLOAD_BYTES:
            raise DownloadError(
                f"{url} must have at most {MAX_DOWNLOAD_BYTES} bytes, got a length of {total}: it is not the official file."
            )
        with part.open("ab" if start else "wb") as file:
            done = _copy(response, file, url, start, lambda done: progress(name, done, total))
    if total is not None and done < total:
        raise DownloadError(f"{url} must have {total} bytes, got {done} before the server hung up: {RESUME}.")
    return done - start


def _open(url: str, have: int, timeout_seconds: float) -> http.client.HTTPResponse | None:
    """The server's answer from byte `have` on, None if it says that the file ends there."""
    request = urllib.request.Request(url, headers={"User-Agent": "sameguard", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        return urllib.request.build_opener().open(request, timeout=timeout_seconds)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and have:
                return None
            raise DownloadError(f"{url} must answer with the file, got {error.code} {error.reason}: try later or name a mirror.") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise DownloadError(f"{url} must be reachable, got {reason}: check the network, try later or name a mirror.") from error


def _first_byte(response: http.client.HTTPResponse) -> int | None:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _copy(response: http.client.HTTPResponse, file: IO[bytes], url: str, done: int, report: Callable[[int], None]) -> int:
    """Position in the file after everything the server sent has been written; `done` is the position before."""
    report(done)
    while True:
        try:
            chunk = response.read(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise DownloadError(f"{url} must keep sending, got {error} after {done} bytes: {RESUME}.") from error
        if not chunk:
            return done
        done += len(chunk)
        if done > MAX_DOWNLOAD_BYTES:
            raise DownloadError(f"{url} must have at most {MAX_DOWNLOAD_BYTES} bytes, got more: it is not the official file.")
        file.write(chunk)
        report(done)


def _silent(name: str, done: int, total: int | None) -> None:
    pass
