"""What data-free thieves share: a generator played against the substitute, and its gradient through a victim that answers but has none.

The gradient of a loss of the victim's answer is estimated by forward differences *before* tanh (algorithms.md 3.3): probes w + step u along
random directions are squashed, put on the endpoint's grid and asked like any query. On an 8-bit grid a small step drowns in rounding.
The substitute sees what the victim saw, so its own loss is measured on the queries as sent. A refused probe gives no gradient.
"""

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sameguard.attacks.base import Extraction
from sameguard.attacks.transcript import Means, Transcript
from sameguard.contract import InputContract
from sameguard.endpoint import Endpoint
from sameguard.errors import ConfigurationError, TrainingError
from sameguard.networks.dfme_generator import DFMEGenerator, check_side
from sameguard.training import ProgressEvent, seeded

SUBSTITUTE_STAGE = "substitute"
LOWEST_PROBABILITY = 1e-12  # rounded answers hold zeros, and log 0 is no number
Rows = Float[Tensor, "batch"]


# ---------------------------------------------------------------------- arithmetic


def centred_logs(probs: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
    """log p - mean log p: the victim's logits less their mean, which is all of them that probabilities give away."""
    logs = probs.clamp_min(LOWEST_PROBABILITY).log()
    return logs - logs.mean(dim=1, keepdim=True)


def unit_directions(like: Tensor, generator: torch.Generator) -> Tensor:
    """A direction for each row of `like`, uniform on the unit sphere of all its values."""
    drawn = torch.randn(like.shape, generator=generator, device=like.device)
    return drawn / drawn.flatten(1).norm(dim=1).reshape(-1, *[1] * (like.ndim - 1))


def forward_differences(
    base: Rows, probed: Float[Tensor, "probes batch"], directions: Float[Tensor, "probes batch *input"], step: float
) -> Float[Tensor, "batch *input"]:
    """Estimated gradient of each row's loss: (d / step) times the mean over probes of (loss(w + step u) - loss(w)) u, d values a row."""
    values = directions[0, 0].numel()
    slopes = (probed - base) / step  # probes, batch
    return values * (slopes.reshape(*slopes.shape, *[1] * (directions.ndim - 2)) * directions).mean(dim=0)


# ---------------------------------------------------------------------- the game


class Asked:
    """One batch as it went: queries as sent, answers and which came, on the game's device."""

    def __init__(self, queries: np.ndarray, probs: np.ndarray, answered: np.ndarray, device: str) -> None:
        self.queries = torch.from_numpy(queries).to(device)
        self.probs = torch.from_numpy(np.nan_to_num(probs)).to(device)
        self.answered = torch.from_numpy(answered).to(device)


class Game:
    """Generator, substitute and transcript of one run.

    loss: (victim's probabilities, substitute's logits) -> loss of each row. cost: queries of one iteration for each row of its batches.
    """

    def __init__(
        self,
        transcript: Transcript,
        substitute: nn.Module,
        loss: Callable[[Tensor, Tensor], Rows],
        *,
        seed: int,
        batch_size: int,
        cost: int,
        latent: int,
        device: str,
    ) -> None:
        contract = transcript.endpoint.contract
        self.transcript = transcript
        self.contract = contract
        self.loss = loss
        self.batch_size = batch_size
        self.cost = cost
        self.latent = latent
        self.device = device
        self.draws = torch.Generator(device).manual_seed(seed)
        with seeded(seed + 1):
            self.generator = DFMEGenerator(latent, contract.shape[0], contract.shape[1]).to(device, memory_format=torch.channels_last)
        self.substitute = substitute.to(device, memory_format=torch.channels_last)
        self.generator_steps = 0
        self.iterations = 0
        self._began = time.monotonic()
        self._loss: Tensor | None = None  # of the latest step of the substitute

    @property
    def done(self) -> float:
        """Share of the budget that is spent."""
        return self.transcript.asked / self.transcript.budget

    def next_rows(self) -> int:
        """Rows of a batch in the iteration that begins: fewer in the last one, so that a small budget still pays for all of its parts.

        0 where not even one row of each part is left: then the rest is one batch for the substitute.
        """
        self.iterations += 1
        return min(self.batch_size, self.transcript.left // self.cost)

    def latents(self, rows: int) -> Tensor:
        return torch.randn(rows, self.latent, generator=self.draws, device=self.device)

    def ask(self, images_before_tanh: Tensor) -> Asked:
        """Squashes to the contract's bounds and asks."""
        lowest, highest = self.contract.bounds
        images = lowest + (highest - lowest) * (images_before_tanh.detach().tanh() + 1.0) / 2.0
        return Asked(*self.transcript.ask(images.cpu().contiguous().numpy()), self.device)

    def generator_step(self, optimizer: torch.optim.Optimizer, rows: int, probes: int, step: float) -> Asked:
        """One ascent of the generator on the loss, and its base batch. Costs rows (1 + probes) queries."""
        self.generator.train()
        self.substitute.eval()
        before = self.generator(self.latents(rows))
        base = self.ask(before)
        losses, usable, directions = [], base.answered, []
        base_loss = self._loss_of(base)
        for _ in range(probes):
            directions.append(unit_directions(before, self.draws))
            probe = self.ask(before + step * directions[-1])
            losses.append(self._loss_of(probe))
            usable = usable & probe.answered
        gradient = forward_differences(base_loss, torch.stack(losses), torch.stack(directions), step)
        usable = usable & gradient.flatten(1).isfinite().all(dim=1)  # a diverged substitute gives none; `close_iteration` reports it
        if usable.any():
            kept = usable.reshape(-1, *[1] * (before.ndim - 1))
            optimizer.zero_grad(set_to_none=True)
            before.backward(torch.where(kept, -gradient, 0.0) / usable.sum())  # ascent
            optimizer.step()
            self.generator_steps += 1
        return base

    def fresh_batch(self, rows: int) -> Asked:
        """That many generated images, asked; the whole rest of the budget where less than a row of an iteration would remain of it."""
        left = self.transcript.left
        self.generator.train()
        with torch.no_grad():
            before = self.generator(self.latents(rows if left - rows >= self.cost else left))
        return self.ask(before)

    def substitute_step(self, optimizer: torch.optim.Optimizer, batch: Asked) -> None:
        """One descent of the substitute on the answered rows, if any."""
        rows = batch.answered.nonzero()[:, 0]
        if not len(rows):
            return
        if len(rows) == 1:
            rows = rows.repeat(2)  # the same gradient, and BatchNorm needs two rows
        self.substitute.train()
        optimizer.zero_grad(set_to_none=True)
        queries = batch.queries[rows].contiguous(memory_format=torch.channels_last)
        loss = self.loss(batch.probs[rows], self.substitute(queries)).mean()
        loss.backward()
        optimizer.step()
        self._loss = loss.detach()

    def close_iteration(self) -> None:
        """Tells the control of the substitute's loss. Raises TrainingError where that is no number any more."""
        spent, budget = self.transcript.asked, self.transcript.budget
        loss = math.nan if self._loss is None else self._loss.item()
        if self._loss is not None and not math.isfinite(loss):
            raise TrainingError(f"substitute: the loss must stay finite, got {loss} after {spent} queries: lower learning_rate.")
        if self.transcript.control.progress is not None:
            seconds_left = (time.monotonic() - self._began) / spent * self.transcript.left
            self.transcript.control.progress(ProgressEvent(SUBSTITUTE_STAGE, spent, budget, loss, seconds_left))

    def extraction(self, notes: dict[str, float | int | str]) -> Extraction:
        """The run's result; the substitute on the CPU, in eval mode and in the plain memory format."""
        network = self.substitute.eval().to(torch.device("cpu"), memory_format=torch.contiguous_format)
        counted = {"generator_steps": self.generator_steps, "iterations": self.iterations}
        return self.transcript.extraction(network, notes={**counted, **notes})

    @torch.no_grad()
    def _loss_of(self, batch: Asked) -> Tensor:
        return self.loss(batch.probs, self.substitute(batch.queries.contiguous(memory_format=torch.channels_last)))


def hard_loss(probs: Tensor, logits: Tensor) -> Rows:
    """Cross-entropy of the class that was named: what is left of either loss under hard labels."""
    return F.cross_entropy(logits, probs, reduction="none")


def check_game(probe_step: float, probes: int, latent: int, generator_learning_rate: float, keep: int | None) -> None:
    """Raises ConfigurationError for settings out of range."""
    for name, value in (("probe_step", probe_step), ("generator_learning_rate", generator_learning_rate)):
        if not 0 < value < math.inf:
            raise ConfigurationError(f"{name} must be positive and finite, got {value}.")
    if probes < 1 or latent < 1:
        raise ConfigurationError(f"probes and latent must be at least 1, got {probes} and {latent}.")
    if keep is not None and keep < 1:
        raise ConfigurationError(f"keep must be at least 1 query, or None for all, got {keep}.")


def begin(means: Means, endpoint: Endpoint, seed: int, keep: int | None) -> tuple[Transcript, nn.Module]:
    """A transcript and an untrained substitute, normalised on noise: the thief has no images. Raises ConfigurationError for vectors."""
    contract: InputContract = endpoint.contract
    if not contract.is_image or contract.shape[1] != contract.shape[2]:
        raise ConfigurationError(f"data-free attacks need square images, got queries of shape {contract.shape}: use another attack.")
    if not np.isfinite(contract.bounds).all():
        raise ConfigurationError(f"data-free attacks need bounded queries, got bounds {contract.bounds}: declare the range of the inputs.")
    check_side(contract.shape[1])
    transcript, network = means.begin(endpoint, seed, keep=keep)
    if hasattr(network, "set_normalisation"):
        lowest, highest = contract.bounds
        noise = np.random.default_rng(seed).uniform(lowest, highest, (512, *contract.shape)).astype(np.float32)
        with torch.no_grad():
            network.set_normalisation(torch.from_numpy(noise))
    return transcript, network
