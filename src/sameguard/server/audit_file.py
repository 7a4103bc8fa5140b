"""The file of the decision log: whole lines or nothing, mode 0600, rotated by size.

What a failed write left is cut off at once; what a crash left is ended by a newline before the next record, so that every later line is
readable. Full files become `PATH.000001`, `PATH.000002` ... in the order of time, of which the newest are kept: no file is renamed twice,
so a reader never meets one under two names.
"""

import fcntl
import os
import stat
from collections import deque
from pathlib import Path


class AuditFile:
    """The file itself, mode 0600: whole lines or nothing. Raises OSError, also where another process holds it."""

    def __init__(self, path: Path, rotate_bytes: int, keep: int) -> None:
        self.path = path
        self.rotate_bytes = rotate_bytes
        self.keep = keep
        self._descriptor = -1
        self._size = 0
        self._torn = False
        path.parent.mkdir(parents=True, exist_ok=True)
        self._open()

    def append(self, lines: deque[bytes], *, durably: bool = False) -> None:
        """Writes lines and takes them from the left as they are safe. What it raises leaves no part of a line behind."""
        self._reopen_if_moved()
        while lines:
            if self._size and self._size + len(lines[0]) > self.rotate_bytes:
                self._rotate()
            room = self.rotate_bytes - self._size
            count, length = 1, len(lines[0])
            while count < len(lines) and length + len(lines[count]) <= room:
                length += len(lines[count])
                count += 1
            self._write(b"".join(lines[index] for index in range(count)), durably)
            for _ in range(count):
                lines.popleft()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self, content: bytes, durably: bool) -> None:
        content = b"\n" + content if self._torn else content
        try:
            written = os.write(self._descriptor, content)
            if written != len(content):
                raise OSError(f"only {written} of {len(content)} bytes could be written: the disk is full")
            if durably:
                os.fdatasync(self._descriptor)
        except OSError:
            self._cut()
            raise
        self._size += len(content)
        self._torn = False

    def _cut(self) -> None:
        """Takes back what a failed write left; where even that fails, the next write ends the line."""
        try:
            os.ftruncate(self._descriptor, self._size)
        except OSError:
            self._torn = True
            self._size = os.fstat(self._descriptor).st_size

    def _open(self) -> None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(f"{self.path} is no regular file")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fchmod(descriptor, 0o600)
            torn = found.st_size > 0 and os.pread(descriptor, 1, found.st_size - 1) != b"\n"
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor, self._size, self._torn = descriptor, found.st_size, torn

    def _reopen_if_moved(self) -> None:
        """Somebody else may have rotated or deleted the file; a failed rotation left none open."""
        if self._descriptor >= 0:
            try:
                if os.path.samestat(os.stat(self.path), os.fstat(self._descriptor)):
                    return
            except FileNotFoundError:
                pass
            self.close()
        self._open()

    def _rotate(self) -> None:
        rotated = rotated_files(self.path)
        number = 1 + (int(rotated[-1].suffix[1:]) if rotated else 0)
        os.rename(self.path, self.path.with_name(f"{self.path.name}.{number:06d}"))
        self.close()
        self._open()
        for old in rotated_files(self.path)[: -self.keep]:
            old.unlink(missing_ok=True)


def rotated_files(path: Path) -> list[Path]:
    """The rotated files of a log, oldest first."""
    numbered = [other for other in path.parent.iterdir() if other.stem == path.name and other.suffix[1:].isdecimal()]
    return sorted(numbered, key=lambda other: int(other.suffix[1:]))
