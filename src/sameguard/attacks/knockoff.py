"""Knockoff Nets (Orekondy, Schiele, Fritz, CVPR 2019): rebuild the victim from its answers to natural images of another kind.

Random strategy: B distinct images of the thief's own proxy set, uniformly without replacement; the substitute learns the soft answers
(algorithms.md 3.1). Exactly B images are asked about, not the whole proxy set. Left out so far: the adaptive (bandit) strategy.
"""

from collections.abc import Callable

import numpy as np
from torch import nn

from sameguard.attacks.base import (
    ASK_BATCH,
    SUBSTITUTE_FIT,
    Extraction,
    as_queries,
    ask,
    check_labels,
    check_proxy,
    check_rows,
    inputs_of,
    new_substitute,
    resolve_budget,
    train_substitute,
)
from sameguard.data import Split
from sameguard.endpoint import Endpoint
from sameguard.errors import ConfigurationError
from sameguard.training import FitConfig, RunControl


class KnockoffNets:
    """The random Knockoff thief.

    proxy: images (or vectors) of the endpoint's input shape, a Split or an array, uint8 or canonical float32; labels are not looked at.
    substitute: makes a fresh network from queries to logits. budget: queries to spend, None for all that the endpoint allows; refused
    ones count. labels: learn from `soft` answers or `hard` ones. config: the substitute's training, whose seed is `run`'s. batch_size:
    queries in one request.
    """

    def __init__(
        self,
        proxy: Split | np.ndarray,
        substitute: Callable[[], nn.Module],
        budget: int | None = None,
        *,
        labels: str = "soft",
        config: FitConfig = SUBSTITUTE_FIT,
        batch_size: int = ASK_BATCH,
        control: RunControl | None = None,
    ) -> None:
        self.proxy = inputs_of(proxy)
        if budget is not None and budget < 1:
            raise ConfigurationError(f"budget must be at least 1 query, got {budget}.")
        if batch_size < 1:
            raise ConfigurationError(f"batch_size must be at least 1, got {batch_size}.")
        if budget is not None:
            check_rows(self.proxy, budget)
        self.substitute = substitute
        self.budget = budget
        self.labels = check_labels(labels)
        self.config = config
        self.batch_size = batch_size
        self.control = control

    def run(self, endpoint: Endpoint, seed: int = 0) -> Extraction:
        """Spends the budget and trains a substitute. Same seed: same images in the same order, whatever is answered.

        Raises InvalidDataError where the proxy has another shape than the endpoint's queries or fewer rows than the budget,
        ConfigurationError where the endpoint allows less or the substitute does not fit; in each case before the first query.
        """
        check_proxy(self.proxy, endpoint, rows=1)
        budget = resolve_budget(endpoint, self.budget)
        check_rows(self.proxy, budget)
        network = new_substitute(self.substitute, endpoint, seed)
        rows = np.random.default_rng(seed).choice(len(self.proxy), size=budget, replace=False)
        queries, probs, answered = ask(endpoint, as_queries(self.proxy[rows]), self.batch_size, self.labels)
        network = train_substitute(network, queries, probs, answered, self.config, seed, self.control)
        return Extraction(network, queries, probs, answered, used=len(queries))
