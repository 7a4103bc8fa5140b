"""Queries of pure noise: the cheapest thief, who owns no images, and the first test of any detector (algorithms.md 3.4).

`uniform` draws every value anew between the contract's bounds, `bernoulli` takes the lowest or the highest value with even chances; the
latter lies on the 8-bit grid as it is drawn.
"""

from collections.abc import Callable

import numpy as np
from torch import nn

from sameguard.attacks.base import ASK_BATCH, SUBSTITUTE_FIT, Extraction
from sameguard.attacks.transcript import Means
from sameguard.contract import InputContract
from sameguard.endpoint import Endpoint
from sameguard.errors import ConfigurationError
from sameguard.shapes import Queries
from sameguard.training import FitConfig, RunControl

KINDS = ("uniform", "bernoulli")


class NoiseQueries:
    """The thief with a random number generator.

    substitute: makes a fresh network from queries to logits. budget: queries to spend, None for all that the endpoint allows; refused
    ones count. kind: uniform or bernoulli. labels: learn from `soft` answers or `hard` ones. config: the substitute's training, whose
    seed is `run`'s. batch_size: queries in one request.
    """

    def __init__(
        self,
        substitute: Callable[[], nn.Module],
        budget: int | None = None,
        *,
        kind: str = "uniform",
        labels: str = "soft",
        config: FitConfig = SUBSTITUTE_FIT,
        batch_size: int = ASK_BATCH,
        control: RunControl | None = None,
    ) -> None:
        if kind not in KINDS:
            raise ConfigurationError(f"kind must be uniform or bernoulli, got {kind!r}.")
        self.means = Means(substitute, budget, labels, config, batch_size, control)
        self.kind = kind

    def run(self, endpoint: Endpoint, seed: int = 0) -> Extraction:
        """Spends the budget and trains a substitute. Same seed: same noise, whatever is answered.

        Raises ConfigurationError, before the first query, where the contract has no bounds to draw between, the endpoint allows less than
        the budget, or the substitute does not fit.
        """
        lowest, highest = endpoint.contract.bounds
        if not np.isfinite([lowest, highest]).all():
            raise ConfigurationError(
                f"noise needs finite bounds to draw between, got a contract with bounds ({lowest}, {highest}): give it bounds."
            )
        transcript, network = self.means.begin(endpoint, seed)
        known = transcript.ask(noise(endpoint.contract, transcript.budget, self.kind, np.random.default_rng(seed)))
        network = self.means.train(network, known, seed)
        return transcript.extraction(network, notes={"kind": self.kind})


def noise(contract: InputContract, rows: int, kind: str, rng: np.random.Generator) -> Queries:
    """float32 (rows, *contract.shape) between the bounds; not yet on the grid where `kind` is uniform."""
    lowest, highest = (np.float32(bound) for bound in contract.bounds)
    drawn = rng.random((rows, *contract.shape), dtype=np.float32)
    if kind == "bernoulli":
        drawn = (drawn < 0.5).astype(np.float32)
    return lowest + (highest - lowest) * drawn
