"""`sameguard serve --check-config`: what can be known of settings without the model server and the store. Nothing is written."""

import fcntl
import os
from pathlib import Path
from typing import NamedTuple

from sameguard.errors import SameguardError
from sameguard.server.identity import Identity
from sameguard.server.keys import make_proofs
from sameguard.server.replay import redis_client
from sameguard.server.settings import Settings
from sameguard.server.snapshot import Snapshot, load_snapshot


class Checked(NamedTuple):
    """snapshot: None where the artefact cannot be served. mistakes: a guard would not start. notes: it may."""

    snapshot: Snapshot | None
    mistakes: list[str]
    notes: list[str]


def check_settings(settings: Settings) -> Checked:
    """Each part is looked at whatever is wrong with the others. The snapshot's queue is closed."""
    mistakes, notes = [], []
    snapshot = None
    try:
        Identity(settings.identity, settings.listen.trusted_proxies)
    except SameguardError as error:
        mistakes.append(str(error))
    try:
        make_proofs(settings.proofs, boot_id=None)
    except SameguardError as error:
        mistakes.append(str(error))
    if settings.proofs.shared_store is not None:
        try:
            redis_client(settings.proofs.shared_store)
        except SameguardError as error:
            mistakes.append(str(error))
    try:
        snapshot = load_snapshot(settings, binary_tensors=bool(settings.upstream.binary))
        snapshot.queue.close()
    except SameguardError as error:
        mistakes.append(str(error))
    if settings.audit.path is not None:
        mistakes += _audit_mistakes(settings.audit.path)
        if not mistakes and _is_held(settings.audit.path):
            notes.append(f"audit.path {settings.audit.path} is held by another guard: a second one starts once that one has stopped.")
    return Checked(snapshot, mistakes, notes)


def _audit_mistakes(path: Path) -> list[str]:
    """The file may be missing, and the folders above it: the guard makes them."""
    if path.exists():
        if not path.is_file():
            return [f"audit.path {path} must be a file, got something else of this name: give another."]
        return [] if os.access(path, os.R_OK | os.W_OK) else [f"audit.path {path} must be readable and writable by this user: chown it."]
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if above.is_dir() and os.access(above, os.W_OK | os.X_OK):
        return []
    return [f"audit.path {path} must be a file that this user can make, got {above}, which is no folder or not writable."]


def _is_held(path: Path) -> bool:
    """Whether a guard has it open: `AuditFile` locks what it writes."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
