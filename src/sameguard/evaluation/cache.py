"""The laboratory's cache: a folder for each stage, keyed by what the stage does, the code that does it, and what it works on.

    <root>/<stage>-<key>/      files of the stage
    <root>/<stage>-<key>/work/ checkpoints and ledgers, from which an interrupted stage goes on
    <root>/<stage>-<key>/record.json   written last, by a rename: a stage is done exactly where it lies

The key is a digest of the stage's settings, of its own source modules (without comments and docstrings, so that mending a sentence costs
no hour of training), and of the digests of its inputs: data, and the outputs of earlier stages.
"""

import ast
import hashlib
import importlib.util
import inspect
import json
import os
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from torch import nn

from sameguard.errors import InvalidDataError
from sameguard.evaluation.provenance import (
    code_version,
    forget_peak_memory,
    library_versions,
    machine,
    peak_memory_mib,
    resident_memory_mib,
)

SCHEMA = 1
RECORD = "record.json"


class Cache:
    """All stages below one folder.

    asked: those that were asked for, in order, made or not: what a result rests on. watch: told of each stage that begins to be made.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.asked: list[Stage] = []
        self.watch: Callable[[Stage], None] | None = None

    def stage(self, name: str, settings: Mapping[str, Any], sources: Sequence[str], inputs: Mapping[str, str]) -> "Stage":
        """The stage of these settings, sources (module names below sameguard) and input digests; made or not."""
        known = {"schema": SCHEMA, "stage": name, "settings": settings, "sources": source_digest(tuple(sources)), "inputs": dict(inputs)}
        text = json.dumps(known, sort_keys=True, default=str)
        folder = self.root / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        self.asked.append(Stage(folder, json.loads(text), self._began))
        return self.asked[-1]

    def _began(self, stage: "Stage") -> None:
        if self.watch is not None:
            self.watch(stage)


@dataclass(frozen=True)
class Stage:
    """One stage's folder, and what its key was made of. began: told when it begins to be made."""

    folder: Path
    known: dict[str, Any]
    began: "Callable[[Stage], None] | None" = field(default=None, compare=False, repr=False)

    @property
    def done(self) -> bool:
        return (self.folder / RECORD).exists()

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def record(self) -> dict[str, Any]:
        """What was written when the stage ended. Raises InvalidDataError where it is damaged."""
        path = self.folder / RECORD
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return {**found, "facts": found["facts"], "digest": found["digest"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidDataError(
                f"record {path} must be readable, got {type(error).__name__}: delete its folder to make it again."
            ) from error

    @property
    def facts(self) -> dict[str, Any]:
        return self.record["facts"]

    @property
    def digest(self) -> str:
        """Digest of the stage's output: what later stages depend on."""
        return self.record["digest"]

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """One of the stage's .npz files. Raises InvalidDataError where it is missing or damaged."""
        path = self.folder / name
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                return {key: stored[key] for key in stored.files}
        except Exception as error:  # zipfile, zlib and numpy each raise their own
            raise InvalidDataError(
                f"{path} must be a readable .npz, got {type(error).__name__}: delete its folder to make it again."
            ) from error

    def forget_checkpoints(self) -> None:
        """Removes what only an interrupted stage needs; a ledger stays."""
        for path in self.work.glob("*.checkpoint"):
            path.unlink()

    @contextmanager
    def making(self) -> Iterator["Making"]:
        """Times the block, over interruptions too, and writes the record where it ends well."""
        if self.began is not None:
            self.began(self)
        self.folder.mkdir(parents=True, exist_ok=True)
        spent = self.folder / "seconds.json"
        before = json.loads(spent.read_text()) if spent.exists() else 0.0
        forget_peak_memory()
        resident, began = resident_memory_mib(), time.monotonic()
        making = Making(self)
        try:
            yield making
        except BaseException:
            write_text(spent, json.dumps(before + time.monotonic() - began))
            raise
        seconds = before + time.monotonic() - began
        record = {
            **self.known, "facts": making.facts, "digest": making.digest(), "seconds": round(seconds, 2), "peak_memory_mib": peak_memory_mib(),
            "resident_before_mib": resident, "code": code_version(), "machine": machine(), "versions": library_versions(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        write_text(self.folder / RECORD, json.dumps(record, indent=1))
        spent.unlink(missing_ok=True)


class Making:
    """What a stage leaves behind while it is being made. facts: small JSON for the record."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.facts: dict[str, Any] = {}
        self._hash = hashlib.sha256()

    def save_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes arrays to an .npz of the stage; they become part of its digest."""
        for key in sorted(arrays):
            self.add(key, array_digest(arrays[key]))
        path = self.stage.folder / name
        temporary = path.with_name(f"{name}.{os.getpid()}.tmp.npz")
        np.savez_compressed(temporary, **arrays)
        os.replace(temporary, path)

    def add(self, name: str, digest: str) -> None:
        """Makes the digest of one output part of the stage's."""
        self._hash.update(f"{name}={digest};".encode())

    def digest(self) -> str:
        return self._hash.hexdigest()


# ---------------------------------------------------------------------- digests


def array_digest(array: np.ndarray) -> str:
    """SHA-256 of an array's dtype, shape and content."""
    content = np.ascontiguousarray(array)
    return hashlib.sha256(f"{content.dtype.str} {content.shape} ".encode() + content.tobytes()).hexdigest()


def source_digest(modules: tuple[str, ...]) -> str:
    """SHA-256 of what these modules (names below sameguard) do: their syntax trees without docstrings, comments and layout."""
    return hashlib.sha256("".join(_module_digest(name) for name in modules).encode()).hexdigest()


@cache
def _module_digest(name: str) -> str:
    spec = importlib.util.find_spec(f"sameguard.{name}")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"sameguard.{name} is not there", name=f"sameguard.{name}")
    return hashlib.sha256(_without_prose(Path(spec.origin).read_text(encoding="utf-8")).encode()).hexdigest()


@cache
def code_digest(*functions: Callable[..., Any]) -> str:
    """SHA-256 of what these functions do, as `source_digest`: for a stage whose code shares its module with much else."""
    found = hashlib.sha256()
    for function in functions:
        found.update(_without_prose(textwrap.dedent(inspect.getsource(function))).encode())
    return found.hexdigest()


def _without_prose(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and body:
            first = body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
                node.body = body[1:]
    return ast.dump(tree)


def small_json(value: Any, depth: int = 3) -> str:
    """JSON that is readable and short: line breaks in the outer levels only."""
    if depth and isinstance(value, dict) and value:
        return "{\n" + ",\n".join(f"{json.dumps(key)}: {small_json(item, depth - 1)}" for key, item in value.items()) + "\n}"
    if depth and isinstance(value, list) and value:
        return "[\n" + ",\n".join(small_json(item, depth - 1) for item in value) + "\n]"
    return json.dumps(value, separators=(",", ":"))


def save_weights(path: Path, network: nn.Module) -> None:
    """Writes a network's weights as safetensors."""
    save_file({name: value.contiguous().clone() for name, value in network.state_dict().items()}, path)


def weights_digest(network: nn.Module) -> str:
    """Digest of a network's parameters and buffers."""
    parts = [name + array_digest(value.detach().cpu().numpy()) for name, value in sorted(network.state_dict().items())]
    return array_digest(np.frombuffer("".join(parts).encode(), np.uint8))


def write_text(path: Path, text: str) -> None:
    """Writes a small file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)
