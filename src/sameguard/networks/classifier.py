"""Training a classifier: victims, auxiliary models and substitutes all learn here, on labels or on another model's answers.

Data live on the device as they come (8-bit images stay 8-bit) and are turned to float batch by batch. Convolutional networks run
channels-last, which the CPU's and GPU's kernels prefer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torch.nn import functional as F

from sameguard.errors import ConfigurationError, InvalidDataError
from sameguard.precision import compile_in_place
from sameguard.training import FitConfig, RunControl, TrainReport, train

Images = Float[Tensor, "batch channels height width"]
Loss = Literal["cross_entropy", "mse", "kl"]


@dataclass(frozen=True)
class Augmentation:
    """Shifts by up to `shift` pixels (reflected borders) and mirroring: none, random, or alternate (every epoch the other side)."""

    shift: int = 0
    flip: Literal["none", "random", "alternate"] = "none"

    def __call__(self, images: Images, indices: Tensor, generator: torch.Generator, epoch: int) -> Images:
        if self.flip == "random":
            mirrored = torch.rand(len(images), generator=generator, device=images.device) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        elif self.flip == "alternate":  # a fixed half starts mirrored; all change sides each epoch
            mirrored = (indices * 2654435761 // 65536 + epoch) % 2 == 1
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        return self._shifted(images, generator) if self.shift else images

    def _shifted(self, images: Images, generator: torch.Generator) -> Images:
        B, _, H, W = images.shape  # batch, channels, height, width
        padded = F.pad(images, [self.shift] * 4, mode="reflect")
        offsets = torch.randint(0, 2 * self.shift + 1, (2, B, 1), generator=generator, device=images.device)
        rows = offsets[0] + torch.arange(H, device=images.device)  # B, H
        columns = offsets[1] + torch.arange(W, device=images.device)  # B, W
        batch = torch.arange(B, device=images.device)[:, None, None]
        return padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # B, C, H, W (channels-last in memory)


def fit_classifier(
    network: nn.Module,
    inputs: np.ndarray | Tensor,
    targets: np.ndarray,
    config: FitConfig,
    control: RunControl | None = None,
    *,
    stage: str = "classifier",
    loss: Loss = "cross_entropy",
    label_smoothing: float = 0.0,
    augmentation: Augmentation | None = None,
    transform: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> TrainReport:
    """Trains `network` in place and leaves it in eval mode.

    inputs: float32 in canonical units, or uint8 images 0..255 (n, C, H, W). targets: labels (n,) or probabilities (n, K).
    loss: cross_entropy (soft or hard), mse between probabilities, or kl(targets || network). transform: applied to each float batch
    after augmentation, without gradient (SAME's masked reconstructions).
    """
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise InvalidDataError(
            f"{stage} needs as many targets as inputs and at least 1, got {len(inputs)} inputs and {len(targets)} targets."
        )
    if loss != "cross_entropy" and targets.ndim != 2:
        raise ConfigurationError(f"loss {loss} needs probabilities (n, classes) as targets, got shape {targets.shape}.")
    data = torch.as_tensor(inputs).to(config.device)
    wanted = torch.as_tensor(targets, dtype=torch.float32 if targets.ndim == 2 else torch.int64).to(config.device)
    channels_last = data.ndim == 4
    network.to(config.device, memory_format=torch.channels_last if channels_last else torch.preserve_format)
    if hasattr(network, "set_normalisation"):
        with torch.no_grad():
            network.set_normalisation(as_float(data[:5000]).cpu())
    if config.compile:
        compile_in_place([network], (control or RunControl()).say)

    def step(indices: Tensor, generator: torch.Generator, epoch: int) -> Tensor:
        batch = as_float(data[indices])
        if augmentation is not None:
            batch = augmentation(batch, indices, generator, epoch)
        if transform is not None:
            with torch.no_grad():
                batch = transform(batch, generator)
        if channels_last:
            batch = batch.contiguous(memory_format=torch.channels_last)
        logits = network(batch).float()
        if loss == "cross_entropy":
            return F.cross_entropy(logits, wanted[indices], label_smoothing=label_smoothing)
        if loss == "mse":
            return (logits.softmax(1) - wanted[indices]).square().sum(1).mean()
        return F.kl_div(logits.log_softmax(1), wanted[indices], reduction="batchmean")

    groups = getattr(network, "parameter_groups", None)
    return train(network, step, len(data), config, control or RunControl(), stage=stage, groups=groups)


@torch.no_grad()
def predict_logits(
    network: nn.Module, inputs: np.ndarray | Tensor, *, batch_size: int = 256, mirrored: bool = False
) -> Float32[np.ndarray, "batch classes"]:
    """Logits in eval mode, in fp32; mirrored adds those of the flipped image and halves the sum."""
    network.eval()
    device = next(network.parameters()).device
    rows = []
    for start in range(0, len(inputs), batch_size):
        batch = as_float(torch.as_tensor(inputs[start : start + batch_size]).to(device))
        if batch.ndim == 4:
            batch = batch.contiguous(memory_format=torch.channels_last)
        logits = network(batch)
        if mirrored:
            logits = (logits + network(batch.flip(3))) / 2
        rows.append(logits.float().cpu())
    return torch.cat(rows).numpy()


def as_float(batch: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1]; anything else as float32."""
    return batch.float() / 255.0 if batch.dtype == torch.uint8 else batch.float()
