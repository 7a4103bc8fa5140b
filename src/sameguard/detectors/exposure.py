"""Training on the owner's data with outliers beside them: what Outlier Exposure and the Ensemble of Diverse Models share.

One joint step: a batch of training rows and a batch of outliers pass the network together, so that BatchNorm sees both, and one loss of
both outputs is minimised. Outliers are drawn with replacement from the loop's own generator, so a resumed run draws the same ones.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from sameguard.contract import InputContract
from sameguard.data import Split
from sameguard.detectors.base import tie_checkpoint, training_rows
from sameguard.errors import ConfigurationError, InvalidDataError, NotFittedError
from sameguard.networks import Augmentation
from sameguard.networks.classifier import as_float
from sameguard.precision import compile_in_place
from sameguard.training import FitConfig, RunControl, TrainReport, train

JointLoss = Callable[[Tensor, Tensor, Tensor], Tensor]  # outputs of training rows, their labels, outputs of outliers -> a number
SMALL_DATA = 10_000  # rows below which more epochs cost little


def fit_beside_outliers(
    network: nn.Module,
    joint_loss: JointLoss,
    train_data: Split,
    outliers: Split | np.ndarray,
    config: FitConfig,
    control: RunControl,
    *,
    contract: InputContract,
    classes: int,
    stage: str,
    outliers_per_row: int,
    augmentation: Augmentation | None,
) -> TrainReport:
    """Trains `network` in place and leaves it in eval mode. Its output ends in (batch, classes); an ensemble's begins with its members.

    outliers: unlabelled inputs of the same shape, of another kind (labels are not looked at). outliers_per_row: outliers drawn for each
    training row. augmentation: of both alike.

    Raises InvalidDataError for unlabelled or empty data, InvalidQueryError where they break the contract, and what `train` raises.
    """
    labels = _labels(train_data, classes, stage)
    rows, foreign = training_rows(train_data, contract), training_rows(outliers, contract, "outliers")
    tie_checkpoint(control, stage, rows, labels, foreign)
    data, wanted, outside = (torch.from_numpy(array).to(config.device) for array in (rows, labels, foreign))
    network.to(config.device, memory_format=torch.channels_last if contract.is_image else torch.preserve_format)
    if hasattr(network, "set_normalisation"):
        with torch.no_grad():
            network.set_normalisation(as_float(data[:5000]).cpu())
    if config.compile:
        compile_in_place([network], control.say)

    def step(indices: Tensor, generator: torch.Generator, epoch: int) -> Tensor:
        drawn = torch.randint(len(outside), (outliers_per_row * len(indices),), generator=generator, device=indices.device)
        batch = torch.cat([as_float(data[indices]), as_float(outside[drawn])])
        if augmentation is not None:
            batch = augmentation(batch, torch.cat([indices, drawn]), generator, epoch)
        if contract.is_image:
            batch = batch.contiguous(memory_format=torch.channels_last)
        outputs = network(batch).float()  # ..., batch, classes
        return joint_loss(outputs[..., : len(indices), :], wanted[indices], outputs[..., len(indices) :, :])

    groups = getattr(network, "parameter_groups", None)
    return train(network, step, len(data), config, control, stage=stage, groups=groups)


def default_fit(network: nn.Module, rows: int, *, epochs: int, batch_size: int) -> FitConfig:
    """Training that suits the network on two cores: the `strong` network's own recipe, SGD for other BatchNorm ones, AdamW for the rest.

    epochs: on a data set of MNIST's or CIFAR-10's size; small data get 40.
    """
    if hasattr(network, "parameter_groups"):
        return FitConfig(
            epochs=epochs, batch_size=batch_size, learning_rate=1.5 * batch_size / 1024, weight_decay=1.33e-3, optimizer="sgd", momentum=0.85,
            schedule="linear", warmup_epochs=0.23 * epochs, final_fraction=0.07, gradient_clip=None,
        )  # fmt: skip
    if any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return FitConfig(
            epochs=epochs, batch_size=128, learning_rate=0.1, weight_decay=5e-4, optimizer="sgd", warmup_epochs=0.0, gradient_clip=None
        )
    if rows < SMALL_DATA:
        epochs = 40
    return FitConfig(epochs=epochs, batch_size=64, learning_rate=1e-3, weight_decay=1e-4, warmup_epochs=0.1 * epochs)


def default_augmentation(contract: InputContract) -> Augmentation | None:
    """Shifts by 2 pixels and mirroring for colour images, none for grey ones and vectors: as the `cpu` preset does."""
    return Augmentation(shift=2, flip="alternate") if contract.is_image and contract.shape[0] > 1 else None


def served_contract(contract: InputContract) -> InputContract:
    """The contract of a victim trained on canonical inputs: those of `contract`, sent as they are."""
    layout = "NCHW" if contract.is_image else "flat"
    return InputContract(contract.shape, contract.name, "FP32", layout, bounds=contract.bounds, grid=contract.grid)


def check_exposure(classes: int, name: str, weight: float) -> None:
    if classes < 2:
        raise ConfigurationError(f"classes must be at least 2, got {classes}.")
    if not 0.0 <= weight < float("inf"):
        raise ConfigurationError(f"{name} must be a number >= 0, got {weight}.")


def not_fitted(name: str) -> NotFittedError:
    return NotFittedError(f"{name} needs fit() before it can score or serve, got an unfitted defence.")


def _labels(train_data: Split, classes: int, stage: str) -> np.ndarray:
    if train_data.labels is None:
        raise InvalidDataError(f"{stage} needs labelled training data, got none: pass a Split with labels.")
    if len(train_data) and train_data.labels.max() >= classes:
        raise InvalidDataError(f"training labels must be in [0, {classes}), got up to {train_data.labels.max()}.")
    return train_data.labels
