"""What a resumed fit may use again: intermediate arrays sealed to their origin, a work directory tied to its data and victim."""

import hashlib
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import nn

from sameguard.errors import TrainingError
from sameguard.training import ProgressEvent, RunControl, TrainingPausedError
from sameguard.victim import BlackBox


def known(victim: BlackBox, answers: np.ndarray) -> bytes:
    return f"{victim.contract} {victim.classes} {victim.output}".encode() + (np.round(answers, 2) + 0.0).tobytes()


def weights_digest(network: nn.Module) -> bytes:
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.digest()


def bind(control: RunControl, keys: np.ndarray, victim: BlackBox, answers: np.ndarray) -> None:
    """Ties a checkpoint directory to its training data and its victim: a resume with others must not mix two runs.

    The victim is known by its contract, its declared output and its first answers, to two decimals, so that another number of threads
    does not make it another victim.
    """
    if control.checkpoint_dir is None:
        return
    if not control.resume:  # a fit that starts anew must find nothing of an older one when it is resumed
        for name in ("autoencoder.checkpoint", "auxiliary.checkpoint", "answers.npy", "reconstructions.npy"):
            (Path(control.checkpoint_dir) / name).unlink(missing_ok=True)
    fingerprint = known(victim, answers)
    for name, what, content in (("data", "training data", keys.tobytes()), ("victim", "victim", fingerprint)):
        path, digest = Path(control.checkpoint_dir) / f"{name}.sha256", hashlib.sha256(content).hexdigest()
        if control.resume and path.exists() and path.read_text().strip() != digest:
            raise TrainingError(
                f"checkpoints in {control.checkpoint_dir} must come from the same {what}, got another: delete them to start again."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(digest)


def in_chunks(stage: str, rows: int, size: int, chunk: Callable[[int], np.ndarray], control: RunControl) -> np.ndarray:
    began, parts = time.monotonic(), []
    for start in range(0, rows, size):
        if control.deadline is not None and time.monotonic() >= control.deadline:
            raise TrainingPausedError(
                f"{stage} stopped at row {start} of {rows}: the time budget is spent; this stage starts again on resume."
            )
        parts.append(chunk(start))
        if control.progress is not None:
            done = min(start + size, rows)
            left = (time.monotonic() - began) / done * (rows - done)
            control.progress(ProgressEvent(stage, done, rows, float("nan"), left))
    control.seconds[stage] = control.seconds.get(stage, 0.0) + time.monotonic() - began
    return np.concatenate(parts)


def stored(control: RunControl, name: str, made_by: bytes, make: Callable[[], np.ndarray]) -> np.ndarray:
    """An intermediate array, kept beside the checkpoints so that a resumed fit does not make it again.

    made_by: digest of what it was made from. An array of other origin, or a damaged one, is made again.
    """
    if control.checkpoint_dir is None:
        return make()
    path = Path(control.checkpoint_dir) / f"{name}.npy"
    seal = path.with_suffix(".sha256")
    if control.resume and path.exists() and seal.exists():
        content = path.read_bytes()
        if seal.read_text().strip() == hashlib.sha256(made_by + content).hexdigest():
            return np.load(io.BytesIO(content), allow_pickle=False)
        control.say(f"{path} is damaged or was made from something else: it is made again.")
    made = make()
    buffer = io.BytesIO()
    np.save(buffer, made, allow_pickle=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(buffer.getbuffer())
    seal.write_text(hashlib.sha256(made_by + buffer.getvalue()).hexdigest())
    temporary.replace(path)
    return made
