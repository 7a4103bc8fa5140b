"""Copycat CNN (Correia-Silva et al., IJCNN 2018): random natural images, and nothing but the class that the victim names.

It is random Knockoff under hard labels, and a class of its own because the literature reports it as one (algorithms.md 3.5).
"""

from collections.abc import Callable

import numpy as np
from torch import nn

from sameguard.attacks.base import ASK_BATCH, SUBSTITUTE_FIT, Extraction
from sameguard.attacks.knockoff import KnockoffNets
from sameguard.data import Split
from sameguard.endpoint import Endpoint
from sameguard.training import FitConfig, RunControl


class Copycat:
    """The thief who needs labels only; its arguments are those of `KnockoffNets`."""

    def __init__(
        self,
        proxy: Split | np.ndarray,
        substitute: Callable[[], nn.Module],
        budget: int | None = None,
        *,
        config: FitConfig = SUBSTITUTE_FIT,
        batch_size: int = ASK_BATCH,
        control: RunControl | None = None,
    ) -> None:
        self.knockoff = KnockoffNets(proxy, substitute, budget, labels="hard", config=config, batch_size=batch_size, control=control)

    def run(self, endpoint: Endpoint, seed: int = 0) -> Extraction:
        """Spends the budget and trains a substitute on one-hot answers. Raises as `KnockoffNets.run` does."""
        return self.knockoff.run(endpoint, seed)
