"""A ledger of answers: an Endpoint that writes every answered batch to disk and, on a re-run, gives the same answers again without asking.

An attack is deterministic given the answers, so a run that died (endpoint gone, Ctrl-C, kill -9) is started again with the same seed: its
first queries equal the recorded ones and cost nothing, and from the first new one it is live. The meter wraps the ledger, not the other
way round: replayed queries count against the budget as they did the first time. One file, for its owner only, appended batch by batch; a
batch that was cut off by a crash is dropped on reading. Power loss may cost the last batches, never their order.
"""

import hashlib
import struct
import zlib
from pathlib import Path

import numpy as np

from sameguard.endpoint import Answers, Endpoint
from sameguard.errors import InvalidDataError

MAGIC = b"sameguard ledger 1\n"
HEAD = struct.Struct("<III")  # rows, classes, CRC-32 of what follows
DIGEST_BYTES = 32


class Ledger:
    """The inner endpoint's answers, recorded in `path` and replayed from there as long as the queries come in the recorded order.

    replayed: queries served from the file so far. Raises InvalidDataError where the file is not a ledger of such an endpoint, is damaged
    before its end, or where a query differs from the one recorded in its place.
    """

    def __init__(self, endpoint: Endpoint, path: str | Path) -> None:
        self.endpoint = endpoint
        self.contract = endpoint.contract
        self.classes = endpoint.classes
        self.path = Path(path)
        self.replayed = 0
        self._digests, self._probs, self._answered, self._size = self._read()

    @property
    def remaining(self) -> int | None:
        """What the inner endpoint still allows; None where it has no limit."""
        return getattr(self.endpoint, "remaining", None)

    @property
    def recorded(self) -> int:
        """Queries that lay in the file when it was opened."""
        return len(self._digests)

    def query(self, queries: np.ndarray) -> Answers:
        """Recorded answers for the rows that were asked before, the inner endpoint's for the rest."""
        queries = self.contract.canonicalise(queries)
        digests = self.contract.digests(queries)
        start = self.replayed
        known = min(len(queries), self.recorded - start)
        self._check(digests[:known], start)
        self.replayed += known
        old = Answers(self._probs[start : start + known], self._answered[start : start + known])
        if known == len(queries):
            return Answers(old.probs.copy(), old.answered.copy())
        new = self.endpoint.query(queries[known:])
        self._append(digests[known:], new)
        return Answers(np.concatenate([old.probs, new.probs]), np.concatenate([old.answered, new.answered]))

    def _check(self, digests: np.ndarray, start: int) -> None:
        same = (digests == self._digests[start : start + len(digests)]).all(axis=1)
        if not same.all():
            row = start + int(np.argmin(same))
            raise InvalidDataError(
                f"ledger {self.path} must be replayed by the attack that it was written for, got another query in place {row + 1} of "
                f"{self.recorded}: use the same attack, seed, data, machine and versions, or delete it to start again."
            )

    # ------------------------------------------------------------------ the file

    def _head(self) -> bytes:
        known = f"{self.contract} {self.classes}".encode()
        return MAGIC + hashlib.sha256(known).digest()

    def _append(self, digests: np.ndarray, answers: Answers) -> None:
        payload = digests.astype(np.uint8).tobytes()
        payload += answers.probs.astype("<f4").tobytes() + answers.answered.astype(np.uint8).tobytes()
        record = HEAD.pack(len(digests), self.classes, zlib.crc32(payload)) + payload
        if not self._size:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch(0o600)
            record = self._head() + record
        mode = "r+b" if self._size else "wb"
        with self.path.open(mode, buffering=0) as file:
            file.seek(self._size)
            try:
                written = file.write(record)
                if written != len(record):
                    raise OSError(f"only {written} of {len(record)} bytes could be written to {self.path}: the disk is full.")
            except OSError:
                file.truncate(self._size)  # what is half there must not lie between whole batches
                raise
        self._size += len(record)

    def _read(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        content = self.path.read_bytes() if self.path.exists() else b""
        head = self._head()
        if len(content) <= len(head) and head.startswith(content):
            content, position = b"", 0  # nothing, or cut off in its first bytes
        elif content.startswith(head):
            position = len(head)
        else:
            what = "another contract or number of classes" if content.startswith(MAGIC) else "a file of another kind"
            raise InvalidDataError(f"ledger {self.path} must be one of this endpoint, got {what}: choose another path, or delete it.")
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        while position < len(content):
            end, part = self._record(content, position)
            if part is None:
                break
            parts.append(part)
            position = end
        empty = (np.empty((0, DIGEST_BYTES), np.uint8), np.empty((0, self.classes), np.float32), np.empty(0, bool))
        digests, probs, answered = (np.concatenate(column) for column in zip(empty, *parts, strict=True))
        return digests, probs, answered, position

    def _record(self, content: bytes, position: int) -> tuple[int, tuple[np.ndarray, np.ndarray, np.ndarray] | None]:
        """End and arrays of the record that begins here; no arrays where it is the last one and was cut off."""
        start = position + HEAD.size
        if start > len(content):
            return len(content), None
        rows, classes, checksum = HEAD.unpack_from(content, position)
        sizes = np.cumsum([DIGEST_BYTES * rows, 4 * rows * self.classes, rows])
        end = start + int(sizes[-1])
        payload = content[start:end]
        if classes != self.classes or zlib.crc32(payload) != checksum:
            if end >= len(content):
                return len(content), None
            raise InvalidDataError(f"ledger {self.path} must be whole but for its end, got a damaged batch at byte {position}: delete it.")
        digests, probs, answered = payload[: sizes[0]], payload[sizes[0] : sizes[1]], payload[sizes[1] :]
        return end, (
            np.frombuffer(digests, np.uint8).reshape(rows, DIGEST_BYTES),
            np.frombuffer(probs, "<f4").astype(np.float32).reshape(rows, self.classes),
            np.frombuffer(answered, np.uint8).astype(bool),
        )
