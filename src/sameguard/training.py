"""The one training loop: warm-up and cosine, mixed precision, checkpoints, resume, time budget, progress.

What is trained and on which loss is the caller's: a `step` gets row numbers and a generator and returns a loss. Everything random
comes from generators whose state is in the checkpoint, so that a run which was stopped and resumed ends with the weights of one that
was not (bit for bit in fp32 on one machine).
"""

import hashlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sameguard.errors import ConfigurationError, SameguardError, TrainingError
from sameguard.precision import resolve_precision

DIVERGED_FACTOR = 2.0  # an epoch's mean loss this many times that of the first epoch means that the learning rate is too high


@dataclass(frozen=True)
class FitConfig:
    """Hyperparameters of one training run; everything that changes the resulting weights is here.

    warmup_epochs, epochs: lengths of the linear warm-up (part of epochs) and of the whole. final_fraction: learning rate at the end
    over the peak. precision: auto measures once whether bf16 is faster than fp32 on this device. snapshot_epochs: after these epochs
    (counted from 1) the weights are kept.
    """

    epochs: int = 24
    batch_size: int = 256
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float = 0.9
    schedule: str = "cosine"
    warmup_epochs: float | int = 1
    final_fraction: float = 0.0
    gradient_clip: float | None = 1.0
    precision: str = "auto"
    compile: bool = False
    device: str = "cpu"
    seed: int = 0
    snapshot_epochs: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ConfigurationError(f"epochs and batch_size must be at least 1, got {self.epochs} and {self.batch_size}.")
        if not self.learning_rate > 0:
            raise ConfigurationError(f"learning_rate must be positive, got {self.learning_rate}.")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ConfigurationError(f"warmup_epochs must be in [0, epochs = {self.epochs}], got {self.warmup_epochs}.")
        if self.optimizer not in ("adamw", "sgd") or self.schedule not in ("cosine", "linear"):
            raise ConfigurationError(
                f"optimizer must be adamw or sgd and schedule cosine or linear, got {self.optimizer!r} and {self.schedule!r}."
            )
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ConfigurationError(f"precision must be auto, fp32 or bf16, got {self.precision!r}.")
        if any(not 1 <= epoch <= self.epochs for epoch in self.snapshot_epochs):
            raise ConfigurationError(f"snapshot_epochs must be in [1, epochs = {self.epochs}], got {self.snapshot_epochs}.")
        if not 0 <= self.seed < 2**32:
            raise ConfigurationError(f"seed must be in [0, 2^32), got {self.seed}.")
        device = self.device.split(":")[0]
        index = self.device.removeprefix(device).removeprefix(":")
        if device not in ("cpu", "cuda") or not (index.isdigit() or self.device == device):
            raise ConfigurationError(f"device must be cpu or cuda, got {self.device!r}.")
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigurationError("device cuda needs a CUDA build of torch and a GPU, got neither: use device cpu.")

    def with_(self, **changes: Any) -> "FitConfig":
        """A copy with some fields changed."""
        return replace(self, **changes)


class ProgressEvent(NamedTuple):
    """One step of one stage: step of steps done, its loss, seconds left in this stage (by its own rate)."""

    stage: str
    step: int
    steps: int
    loss: float
    seconds_left: float


class TrainingPausedError(SameguardError, RuntimeError):
    """The time budget or Ctrl-C stopped training after a checkpoint; the same call with resume goes on."""


@dataclass
class RunControl:
    """How a run is watched and stopped; nothing here changes the weights.

    checkpoint_dir: where checkpoints lie (None: none are written). resume: go on from one that is there. deadline: value of
    time.monotonic() at which to stop cleanly, see `with_time_budget`.
    """

    checkpoint_dir: Path | None = None
    resume: bool = False
    checkpoint_seconds: float = 60.0
    deadline: float | None = None
    progress: Callable[[ProgressEvent], None] | None = None
    log: Callable[[str], None] | None = None
    seconds: dict[str, float] = field(default_factory=dict)  # stage -> seconds spent in this process, filled by `train`

    def with_time_budget(self, seconds: float | None) -> "RunControl":
        return self if seconds is None else replace(self, deadline=time.monotonic() + seconds)

    def say(self, message: str) -> None:
        if self.log is not None:
            self.log(message)


class TrainReport(NamedTuple):
    """epoch_losses: mean training loss of each epoch. precision: what auto chose. snapshots: epoch -> weights."""

    epoch_losses: list[float]
    precision: str
    snapshots: dict[int, dict[str, Tensor]]


def train(
    model: nn.Module,
    step: Callable[[Tensor, torch.Generator, int], Tensor],
    rows: int,
    config: FitConfig,
    control: RunControl,
    *,
    stage: str,
    groups: Callable[[FitConfig], list[dict[str, Any]]] | None = None,
) -> TrainReport:
    """Trains `model` in place and leaves it in eval mode.

    step(indices, generator, epoch) -> loss, where indices are rows of the caller's data, on config.device. Each epoch visits a fresh
    permutation in whole batches (what is left over waits for another epoch). groups: parameter groups instead of the default, which
    spares vectors (norms, biases, tokens) the weight decay.

    Raises TrainingError where the loss becomes NaN or grows, TrainingPausedError at the deadline or on Ctrl-C.
    """
    if rows < 1:
        raise ConfigurationError(f"{stage} needs at least 1 training row, got {rows}.")
    batch = min(config.batch_size, rows)
    steps_per_epoch = rows // batch
    precision = resolve_precision(config.precision, config.device)
    optimizer = _optimizer(model, config, groups)
    generator = torch.Generator(config.device)
    generator.manual_seed(_derived_seed(config.seed, stage))
    state = _State()
    path = None if control.checkpoint_dir is None else Path(control.checkpoint_dir) / f"{stage}.checkpoint"
    fingerprint = _fingerprint(config, precision, rows, stage)
    if path is not None and control.resume and path.exists():
        _restore(path, fingerprint, model, optimizer, generator, state)
    began, began_step, saved = time.monotonic(), state.step, time.monotonic()
    total = config.epochs * steps_per_epoch
    model.train()
    with _interruptible() as interrupted:
        while state.step < total:
            epoch, index = divmod(state.step, steps_per_epoch)
            if index == 0 or state.order is None:
                state.order = _permutation(rows, config, stage, epoch)
            rate = config.learning_rate * schedule_factor(state.step, total, round(config.warmup_epochs * steps_per_epoch), config)
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("lr_scale", 1.0)
            loss = _one_step(model, step, state.order[index * batch : (index + 1) * batch], generator, epoch, optimizer, config, precision)
            if not math.isfinite(loss):
                raise TrainingError(
                    f"{stage}: the loss must stay finite, got {loss} in epoch {epoch + 1}: lower learning_rate ({config.learning_rate:g})."
                )
            state.step += 1
            state.loss_sum += loss
            if index + 1 == steps_per_epoch:
                _close_epoch(state, steps_per_epoch, epoch, model, config, stage)
            now = time.monotonic()
            if control.progress is not None:
                left = (now - began) / (state.step - began_step) * (total - state.step)
                control.progress(ProgressEvent(stage, state.step, total, loss, left))
            out_of_time = control.deadline is not None and now >= control.deadline and state.step < total
            stop = out_of_time or interrupted()
            if path is not None and (stop or state.step == total or now - saved >= control.checkpoint_seconds):
                _save(path, fingerprint, model, optimizer, generator, state)
                saved = now
            if stop:
                control.seconds[stage] = control.seconds.get(stage, 0.0) + now - began
                where = (
                    "nothing was saved, for lack of a checkpoint directory"
                    if path is None
                    else f"saved to {path}, resume goes on from there"
                )
                why = "the time budget is spent" if out_of_time else "interrupted"
                raise TrainingPausedError(f"{stage} stopped at step {state.step} of {total}: {why}; {where}.")
    control.seconds[stage] = control.seconds.get(stage, 0.0) + time.monotonic() - began
    model.eval()
    return TrainReport(state.epoch_losses, precision, state.snapshots)


def schedule_factor(step: int, total: int, warmup: int, config: FitConfig) -> float:
    """Learning rate at a step over its peak: linear up over `warmup` steps, then cosine (or linear) down to final_fraction."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    shape = 0.5 * (1.0 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1.0 - done
    return config.final_fraction + (1.0 - config.final_fraction) * shape


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Initialisation draws from torch's global generator; inside this block it is seeded, and afterwards it is as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


# ---------------------------------------------------------------------- one step, one epoch


@dataclass
class _State:
    step: int = 0
    loss_sum: float = 0.0
    epoch_losses: list[float] = field(default_factory=list)
    snapshots: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    order: Tensor | None = None


def _one_step(
    model: nn.Module,
    step: Callable[[Tensor, torch.Generator, int], Tensor],
    indices: Tensor,
    generator: torch.Generator,
    epoch: int,
    optimizer: torch.optim.Optimizer,
    config: FitConfig,
    precision: str,
) -> float:
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(config.device.split(":")[0], torch.bfloat16) if precision == "bf16" else nullcontext():
        loss = step(indices, generator, epoch)
    loss.backward()
    if config.gradient_clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
    value = loss.item()
    if math.isfinite(value):
        optimizer.step()
    return value


def _close_epoch(state: _State, steps: int, epoch: int, model: nn.Module, config: FitConfig, stage: str) -> None:
    state.epoch_losses.append(state.loss_sum / steps)
    state.loss_sum = 0.0
    state.order = None
    if state.epoch_losses[-1] > DIVERGED_FACTOR * state.epoch_losses[0]:
        raise TrainingError(
            f"{stage}: the loss must fall, got {state.epoch_losses[-1]:.4g} in epoch {epoch + 1} after {state.epoch_losses[0]:.4g} in the first: "
            f"lower learning_rate ({config.learning_rate:g})."
        )
    if epoch + 1 in config.snapshot_epochs:
        state.snapshots[epoch + 1] = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def _optimizer(model: nn.Module, config: FitConfig, groups: Callable[[FitConfig], list[dict[str, Any]]] | None) -> torch.optim.Optimizer:
    if groups is not None:
        chosen = groups(config)
    else:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        matrices = [parameter for parameter in trained if parameter.ndim >= 2 and parameter.shape[0] > 1]
        others = [parameter for parameter in trained if parameter.ndim < 2 or parameter.shape[0] == 1]
        chosen = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    chosen = [group for group in chosen if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(chosen, lr=config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0)
    return torch.optim.AdamW(chosen, lr=config.learning_rate, betas=config.betas, fused=True)


def _permutation(rows: int, config: FitConfig, stage: str, epoch: int) -> Tensor:
    generator = torch.Generator()
    generator.manual_seed(_derived_seed(config.seed, stage, epoch))
    return torch.randperm(rows, generator=generator).to(config.device)


def _derived_seed(*parts: Any) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "little")


# ---------------------------------------------------------------------- checkpoints


def _fingerprint(config: FitConfig, precision: str, rows: int, stage: str) -> str:
    return json.dumps({**asdict(config), "precision": precision, "rows": rows, "stage": stage}, sort_keys=True)


def _save(
    path: Path, fingerprint: str, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator, state: _State
) -> None:
    content = {
        "fingerprint": fingerprint,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generator": generator.get_state(),
        "step": state.step,
        "loss_sum": state.loss_sum,
        "epoch_losses": state.epoch_losses,
        "snapshots": state.snapshots,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # what torch makes of a disk that is full
            raise TrainingError(f"checkpoint {path} could not be written: {error}; the last one stays.") from error
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _restore(
    path: Path, fingerprint: str, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator, state: _State
) -> None:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        stored = content["fingerprint"]
    except Exception as error:
        raise TrainingError(f"checkpoint {path} must be readable, got {type(error).__name__}: delete it to start again.") from error
    if stored != fingerprint:
        old, new = json.loads(stored), json.loads(fingerprint)
        changed = ", ".join(f"{key}: {old.get(key)} then, {new.get(key)} now" for key in new if old.get(key) != new.get(key))
        raise TrainingError(f"checkpoint {path} must come from the same run, got other settings ({changed}): delete it to start again.")
    try:
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
        generator.set_state(content["generator"])
        state.step, state.loss_sum = int(content["step"]), float(content["loss_sum"])
        state.epoch_losses, state.snapshots = content["epoch_losses"], content["snapshots"]
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainingError(
            f"checkpoint {path} must hold this network's weights and state, got {type(error).__name__}: it is another network's or was edited; "
            "delete it to start again."
        ) from error


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C waits for the end of a step, so that the checkpoint is whole; a second Ctrl-C does not wait."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = False
    previous = signal.getsignal(signal.SIGINT)

    def on_interrupt(signum: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, previous)
