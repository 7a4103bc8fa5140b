"""Knockoff Nets (Orekondy, Schiele, Fritz, CVPR 2019), random strategy: rebuild the victim from its answers to natural images of another kind.

B distinct images of the thief's own proxy set, uniformly without replacement; the substitute learns the answers (algorithms.md 3.1).
Exactly B images are asked about, not the whole proxy set. The adaptive strategy is knockoff_adaptive.py.
"""

from collections.abc import Callable

import numpy as np
from torch import nn

from sameguard.attacks.base import (
    ASK_BATCH,
    SUBSTITUTE_FIT,
    Extraction,
    Transform,
    as_queries,
    check_proxy,
    check_rows,
    disguised,
    inputs_of,
)
from sameguard.attacks.transcript import Means
from sameguard.data import Split
from sameguard.endpoint import Endpoint
from sameguard.training import FitConfig, RunControl


class KnockoffNets:
    """The random Knockoff thief.

    proxy: images (or vectors) of the endpoint's input shape, a Split or an array, uint8 or canonical float32; labels are not looked at.
    substitute: makes a fresh network from queries to logits. budget: queries to spend, None for all that the endpoint allows; refused
    ones count. transform: what the thief does to the canonical images before sending them. labels: learn from `soft` answers or `hard`
    ones. config: the substitute's training, whose seed is `run`'s. batch_size: queries in one request.
    """

    def __init__(
        self,
        proxy: Split | np.ndarray,
        substitute: Callable[[], nn.Module],
        budget: int | None = None,
        *,
        transform: Transform | None = None,
        labels: str = "soft",
        config: FitConfig = SUBSTITUTE_FIT,
        batch_size: int = ASK_BATCH,
        control: RunControl | None = None,
    ) -> None:
        self.proxy = inputs_of(proxy)
        self.means = Means(substitute, budget, labels, config, batch_size, control)
        self.transform = transform
        if budget is not None:
            check_rows(self.proxy, budget)

    def run(self, endpoint: Endpoint, seed: int = 0) -> Extraction:
        """Spends the budget and trains a substitute. Same seed: same images in the same order, whatever is answered.

        Raises InvalidDataError where the proxy has another shape or range than the endpoint's queries or fewer rows than the budget,
        ConfigurationError where the endpoint allows less or the substitute does not fit; in each case before the first query.
        """
        check_proxy(self.proxy, endpoint, rows=1)
        transcript, network = self.means.begin(endpoint, seed)
        check_rows(self.proxy, transcript.budget)
        rows = np.random.default_rng(seed).choice(len(self.proxy), size=transcript.budget, replace=False)
        images = endpoint.contract.canonicalise(as_queries(self.proxy[rows]))
        known = transcript.ask(disguised(images, self.transform))
        network = self.means.train(network, known, seed)
        return transcript.extraction(network)
