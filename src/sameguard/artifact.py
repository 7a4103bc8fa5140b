"""The artefact: a directory that serves. Read with every checksum verified, written so that nothing half-done is ever loaded.

    manifest.json         what everything is: contract, classes, score, thresholds, engine, roles of data, SHA-256 of each file and its own
    reconstruction.onnx   queries -> reconstructions and errors of each view, normalisation inside
    auxiliary.onnx        reconstructions -> the auxiliary model's logits
    weights.safetensors   the same networks' weights, to go on training; serving does not read them, and an artefact may come without
    benign-<sha>.npz      fitted score statistics, calibration scores, digests of the roles, canary queries (after calibration)

A new artefact is written beside its place and renamed. An existing one is changed by adding files and then replacing the manifest, in
one rename, which is the commit. No file is pickled. It is a secret: folder and files are for their owner only, from the first byte.
"""

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sameguard.errors import ArtifactError

try:
    import fcntl
except ImportError:  # Windows: writers are not kept apart
    fcntl = None

SCHEMA = 1
MANIFEST = "manifest.json"
REQUIRED = ("schema", "sameguard", "contract", "classes", "score", "views", "auxiliary", "files", "sha256")
READ_ATTEMPTS = 5
SIZE_LIMIT = 2 * 1024**3  # bytes of one file: more is not one of ours


@dataclass(frozen=True)
class Artifact:
    """A verified artefact. files: name -> content, exactly the bytes whose checksum was right."""

    directory: Path
    manifest: dict[str, Any]
    files: dict[str, bytes]

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of a .npz file. Raises ArtifactError where it is missing or damaged."""
        try:
            with np.load(io.BytesIO(self.files[name]), allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}
        except Exception as error:
            raise ArtifactError(f"artefact {self.directory} must hold a readable {name}, got {type(error).__name__}: {error}") from error


def read_artifact(directory: str | Path, *, names: tuple[str, ...] | None = None) -> Artifact:
    """Reads and verifies an artefact; with `names`, only these of its files (missing ones are left out).

    Raises ArtifactError where there is none, its schema is newer, a file is missing, or a checksum is wrong.
    """
    directory = Path(directory)
    for attempt in range(READ_ATTEMPTS):
        before = _manifest_content(directory)
        try:
            return _read(directory, names)
        except ArtifactError:  # a calibration may have committed between manifest and files: then read what is in force now
            if attempt + 1 == READ_ATTEMPTS or _manifest_content(directory) == before:
                raise
    raise AssertionError("unreachable")


def _manifest_content(directory: Path) -> bytes | None:
    path = directory / MANIFEST
    try:
        return None if _is_endless(path) else path.read_bytes()
    except OSError:
        return None


def _is_endless(path: Path) -> bool:
    """Whether a device or a pipe lies there, which would be read for ever."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _read(directory: Path, names: tuple[str, ...] | None) -> Artifact:
    path = directory / MANIFEST
    if _is_endless(path):
        raise ArtifactError(f"artefact manifest {path} must be a regular file, got something else: it is not ours.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"artefact {directory} must hold a {MANIFEST}, got none: make one with `sameguard fit`.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"artefact manifest {path} must be readable JSON, got {type(error).__name__}: restore it or fit again."
        ) from error
    _check_manifest(path, manifest)
    wanted = manifest["files"] if names is None else {name: entry for name, entry in manifest["files"].items() if name in names}
    return Artifact(directory, manifest, {name: _verified(directory, name, entry) for name, entry in wanted.items()})


def _check_manifest(path: Path, manifest: Any) -> None:
    if not isinstance(manifest, dict) or not isinstance(manifest.get("schema"), int):
        raise ArtifactError(f"artefact manifest {path} must be an object with a schema number, got something else: it is not ours.")
    if manifest["schema"] > SCHEMA:
        raise ArtifactError(
            f"artefact manifest {path} has schema {manifest['schema']}, this version reads up to {SCHEMA}: upgrade sameguard "
            f"(it was written by {manifest.get('sameguard', 'an unknown version')})."
        )
    missing = [key for key in REQUIRED if key not in manifest]
    if missing:
        raise ArtifactError(f"artefact manifest {path} must hold {', '.join(REQUIRED)}, got no {', '.join(missing)}: fit again.")
    if manifest["sha256"] != _manifest_digest(manifest):
        raise ArtifactError(
            f"artefact manifest {path} must have SHA-256 {manifest['sha256']} over its other entries, got {_manifest_digest(manifest)}: it was "
            "edited; restore it, or calibrate or fit again."
        )
    files = manifest["files"]
    if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
        raise ArtifactError(f"artefact manifest {path} must name each of its files with an object, got something else: it was edited.")


def _manifest_digest(manifest: dict[str, Any]) -> str:
    """SHA-256 of everything in the manifest but this digest. It shows damage and edits; whoever can write here can also forge it."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _verified(directory: Path, name: str, entry: dict[str, Any]) -> bytes:
    file_name = str(entry.get("file", ""))
    if file_name in ("", "..") or Path(file_name).name != file_name:
        raise ArtifactError(f"artefact file {name} must be a plain file name in the artefact's directory, got {file_name!r}.")
    path = directory / file_name
    if _is_endless(path):
        raise ArtifactError(f"artefact file {path} must be a regular file, got something else: it is not ours.")
    try:
        if path.stat().st_size > SIZE_LIMIT:
            raise ArtifactError(f"artefact file {path} must be at most {SIZE_LIMIT} bytes, got {path.stat().st_size}: it is not ours.")
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ArtifactError(f"artefact file {path} is named in the manifest and missing: restore it or fit again.") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"artefact file {path} must be readable, got {type(error).__name__}: {error}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != entry.get("sha256"):
        raise ArtifactError(
            f"artefact file {path} must have SHA-256 {entry.get('sha256')}, got {digest}: it was truncated or edited; restore it or fit again."
        )
    return content


# ---------------------------------------------------------------------- writing


def write_artifact(directory: str | Path, manifest: dict[str, Any], files: dict[str, bytes], *, overwrite: bool = False) -> None:
    """Writes a new artefact, whole or not at all.

    Raises ArtifactError where the directory exists and `overwrite` is not set, or the disk refuses; what was there before then stays.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise ArtifactError(f"artefact directory {directory} must be a directory, got a file of that name: choose another name.")
    if directory.exists() and not overwrite and any(directory.iterdir()):
        raise ArtifactError(f"artefact directory {directory} must be new or empty, got one with content: choose another, or overwrite.")
    temporary = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".tmp", dir=directory.parent))  # mode 0700
        for name, content in files.items():
            _write_file(temporary / name, content)
        _write_file(temporary / MANIFEST, _manifest_bytes(manifest, {name: (name, content) for name, content in files.items()}))
        _swap(temporary, directory)
    except OSError as error:
        raise ArtifactError(f"artefact {directory} could not be written: {error}; nothing was changed.") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def update_artifact(directory: str | Path, manifest: dict[str, Any], arrays: dict[str, np.ndarray], *, name: str = "benign.npz") -> None:
    """Adds one .npz file to an artefact and commits it with the new manifest; the old state stays valid until that rename.

    manifest: the one that was read, with what changes. Raises ArtifactError where the disk refuses, or the artefact was changed since it was
    read; it is then as it was.
    """
    directory = Path(directory)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    content = buffer.getvalue()
    stem, suffix = name.rsplit(".", 1)
    file_name = f"{stem}-{hashlib.sha256(content).hexdigest()[:12]}.{suffix}"
    kept = {key: entry for key, entry in manifest["files"].items() if key != name}
    text = _manifest_bytes(manifest, {name: (file_name, content)}, kept)
    try:
        with _locked(directory):
            _check_unchanged(directory, manifest)
            _replace_file(directory / file_name, content)  # never in place: equal arrays have the name of the file that is in force
            _replace_file(directory / MANIFEST, text)
            for old in [*directory.glob(f"{stem}-*.{suffix}"), directory / name]:  # what this or an interrupted update left behind
                if old.name != file_name:
                    old.unlink(missing_ok=True)
    except OSError as error:
        raise ArtifactError(f"artefact {directory} could not be changed: {error}; it is as it was.") from error


def _check_unchanged(directory: Path, manifest: dict[str, Any]) -> None:
    """Raises ArtifactError where the manifest on disk is no longer the one that `manifest` was made from."""
    found = json.loads((directory / MANIFEST).read_text(encoding="utf-8")).get("sha256")
    if found != manifest.get("sha256"):
        raise ArtifactError(
            f"artefact {directory} must be as it was when it was read, got another manifest: someone fitted or calibrated it meanwhile; "
            "read it again."
        )


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One writer at a time, where the system has advisory locks; a lock dies with its process."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _manifest_bytes(manifest: dict[str, Any], files: dict[str, tuple[str, bytes]], kept: dict[str, Any] | None = None) -> bytes:
    entries = dict(kept or {})
    for name, (file_name, content) in files.items():
        entries[name] = {"file": file_name, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    whole = json.loads(json.dumps({**manifest, "schema": SCHEMA, "files": entries}, allow_nan=False))  # as it will be read: no tuples
    return json.dumps({**whole, "sha256": _manifest_digest(whole)}, indent=2).encode() + b"\n"


def _replace_file(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        _write_file(temporary, content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_file(path: Path, content: bytes) -> None:
    try:
        path.touch(0o600)
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _swap(temporary: Path, directory: Path) -> None:
    """Puts the new directory in the old one's place; the old one is only removed once the new one stands."""
    if not directory.exists():
        temporary.rename(directory)
        return
    aside = directory.with_name(f".{directory.name}.{os.getpid()}.old")
    try:
        directory.rename(aside)
        temporary.rename(directory)
    except BaseException:  # Ctrl-C between the two renames as well
        if aside.exists() and not directory.exists():
            aside.rename(directory)
        raise
    shutil.rmtree(aside, ignore_errors=True)
