"""A plain autoencoder as a detector, and the victim asked again on its reconstruction: what SAME has to beat (algorithms.md 4.2).

No mask and no transformer: two strided convolutions, a narrow code, and back (vectors: an MLP). The second detector is the idea of
comparing an answer with the answer to a reconstruction, with the victim itself as the judge; it costs a second victim query.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sameguard.contract import InputContract
from sameguard.data import Split
from sameguard.detectors.base import canonical, checked, finite_probs, in_batches, tie_checkpoint, training_rows
from sameguard.errors import ConfigurationError, InvalidQueryError, NotFittedError
from sameguard.networks.classifier import as_float
from sameguard.shapes import Queries, Scores
from sameguard.training import FitConfig, RunControl, seeded, train
from sameguard.victim import BlackBox

STAGE = "plain_autoencoder"
NARROWEST, WIDEST = 2, 128  # numbers in the code
Inputs = Float[Tensor, "batch *input"]


class PlainAutoencoder:
    """Score: mean squared reconstruction error, in input units; for vectors in units of each feature's standard deviation.

    code: numbers between encoder and decoder; None takes an eighth of the input's values, at most 128 (vectors: a quarter).
    """

    def __init__(self, contract: InputContract, code: int | None = None) -> None:
        values = math.prod(contract.shape)
        code = min(max(values // (8 if contract.is_image else 4), NARROWEST), WIDEST) if code is None else code
        if code < 1:
            raise ConfigurationError(f"code must be at least 1 number, got {code}.")
        self.contract = contract
        self.code = code
        self.network: _Autoencoder | None = None
        self.epoch_losses: list[float] = []

    def fit(self, inputs: np.ndarray | Split, config: FitConfig | None = None, control: RunControl | None = None) -> "PlainAutoencoder":
        """Trains from scratch on uint8 or canonical float32 inputs; resumable (stage `plain_autoencoder`). No labels, no outliers.

        Raises InvalidDataError for no rows, InvalidQueryError where they break the contract, TrainingError, TrainingPausedError.
        """
        control = control or RunControl()
        rows = training_rows(inputs, self.contract)
        config = config or _default_fit(len(rows))
        tie_checkpoint(control, STAGE, rows)
        with seeded(config.seed):
            network = _Autoencoder(self.contract.shape, self.code)
        data = torch.from_numpy(rows).to(config.device)
        network.set_normalisation(as_float(data[:5000]).cpu())
        network.to(config.device, memory_format=torch.channels_last if self.contract.is_image else torch.preserve_format)

        def step(indices: Tensor, generator: torch.Generator, epoch: int) -> Tensor:
            return network.loss(as_float(data[indices]))

        self.epoch_losses = train(network, step, len(data), config, control, stage=STAGE).epoch_losses
        self.network = network.to(torch.device("cpu"))
        return self

    def reconstruct(self, queries: np.ndarray) -> Queries:
        """The autoencoder's picture of each query, float32 (batch, *input), neither clipped nor on the grid.

        Raises NotFittedError before fit(), InvalidQueryError for queries outside the contract.
        """
        self._fitted()
        queries = canonical(queries, self.contract)
        parts = [self._picture(queries[start : start + 256]) for start in range(0, len(queries), 256)]
        return np.concatenate(parts) if parts else queries

    def score(self, queries: np.ndarray, victim_probs: np.ndarray) -> Scores:
        """float64 (batch,), >= 0; victim_probs are not looked at. Raises as `reconstruct` does."""
        unit = 1.0 if self.contract.is_image else self._fitted().scale.numpy().astype(np.float64)
        self._fitted()

        def errors(batch: np.ndarray) -> np.ndarray:
            return np.square((self._picture(batch).astype(np.float64) - batch) / unit).reshape(len(batch), -1).mean(axis=1)

        return in_batches(checked(queries, victim_probs, self.contract), errors)

    @torch.no_grad()
    def _picture(self, queries: np.ndarray) -> np.ndarray:
        return self._fitted()(torch.from_numpy(queries)).numpy()

    def _fitted(self) -> "_Autoencoder":
        if self.network is None:
            raise NotFittedError("PlainAutoencoder needs fit() before it can score, got an unfitted detector.")
        return self.network.eval()


class VictimOnReconstruction:
    """Score: KL(V(x) || V(AE(x))) in nats, where V is the victim itself; the reconstruction is put on the victim's grid first."""

    def __init__(self, autoencoder: PlainAutoencoder, victim: BlackBox) -> None:
        if victim.contract != autoencoder.contract:
            raise ConfigurationError("victim and autoencoder must share a contract: build both from one InputContract.")
        self.autoencoder = autoencoder
        self.victim = victim
        self.contract = autoencoder.contract

    def score(self, queries: np.ndarray, victim_probs: np.ndarray) -> Scores:
        """float64 (batch,), >= 0; asks the victim once more for each query. Raises as the autoencoder and the victim do."""
        queries = checked(queries, victim_probs, self.contract)
        probs = finite_probs(victim_probs)
        if probs.shape[1] != self.victim.classes:
            raise InvalidQueryError(f"victim_probs must have {self.victim.classes} columns, the victim's classes, got {probs.shape[1]}.")
        if len(queries) == 0:
            return np.empty(0)
        pictures = np.clip(self.autoencoder.reconstruct(queries), *self.contract.bounds)
        return kl_divergence(probs, self.victim.answer(self.contract.canonicalise(pictures)).astype(np.float64))


def kl_divergence(probs: Float[np.ndarray, "batch classes"], others: Float[np.ndarray, "batch classes"]) -> Scores:
    """sum_k p_k log(p_k / q_k) in nats, with 0 log 0 = 0; q below 1e-12 counts as that, so a class that q rules out costs at most 28 nats."""
    known = probs > 0
    ratio = np.log(np.where(known, probs, 1.0)) - np.log(np.maximum(others, 1e-12))
    return np.maximum(np.where(known, probs * ratio, 0.0).sum(axis=1), 0.0)


def _default_fit(rows: int) -> FitConfig:
    """About 2,500 steps, in 4 to 60 epochs: a minute for MNIST on two cores."""
    return FitConfig(
        epochs=min(max(2500 * 128 // rows, 4), 60), batch_size=min(128, max(1, rows // 8)), learning_rate=2e-3, weight_decay=1e-4
    )


class _Autoencoder(nn.Module):
    """Reconstructions of inputs, both in input units; standardised inside, by channel (images) or by feature (vectors)."""

    def __init__(self, shape: tuple[int, ...], code: int) -> None:
        super().__init__()
        if len(shape) == 1:
            self.encoder: nn.Module = nn.Sequential(nn.Linear(shape[0], 128), nn.GELU(), nn.Linear(128, code))
            self.decoder: nn.Module = nn.Sequential(nn.Linear(code, 128), nn.GELU(), nn.Linear(128, shape[0]))
        else:
            channels, height, width = shape
            half, quarter = ((height + 1) // 2, (width + 1) // 2), ((height + 3) // 4, (width + 3) // 4)
            self.encoder = nn.Sequential(
                nn.Conv2d(channels, 16, 3, 2, 1), nn.GELU(), nn.Conv2d(16, 32, 3, 2, 1), nn.GELU(), nn.Flatten(),
                nn.Linear(32 * quarter[0] * quarter[1], code),
            )  # fmt: skip
            self.decoder = nn.Sequential(
                nn.Linear(code, 32 * quarter[0] * quarter[1]), nn.GELU(), nn.Unflatten(1, (32, *quarter)),
                nn.Upsample(half), nn.Conv2d(32, 16, 3, 1, 1), nn.GELU(),
                nn.Upsample((height, width)), nn.Conv2d(16, channels, 3, 1, 1),
            )  # fmt: skip
        per_channel = (shape[0], *([1] * (len(shape) - 1)))
        self.register_buffer("shift", torch.zeros(per_channel))
        self.register_buffer("scale", torch.ones(per_channel))

    @torch.no_grad()
    def set_normalisation(self, inputs: Inputs) -> None:
        """Fits shift and scale to training inputs: mean and standard deviation of each channel or feature, the latter at least 1e-3."""
        std, mean = torch.std_mean(inputs.double(), dim=[axis for axis in range(inputs.ndim) if axis != 1], correction=0)
        self.shift.copy_(mean.reshape(self.shift.shape))
        self.scale.copy_(std.clamp_min(1e-3).reshape(self.scale.shape))

    def loss(self, inputs: Inputs) -> Float[Tensor, ""]:
        """Mean squared error in standardised units."""
        standard = (inputs - self.shift) / self.scale
        return F.mse_loss(self.decoder(self.encoder(standard)).float(), standard)

    def forward(self, inputs: Inputs) -> Inputs:
        return self.decoder(self.encoder((inputs - self.shift) / self.scale)) * self.scale + self.shift
