"""Knockoff Nets (Orekondy, Schiele, Fritz, CVPR 2019), adaptive strategy: a gradient bandit chooses the proxy class to draw from.

A small substitute learns along, since one reward is its own surprise; the one that is kept is trained from scratch on all answers.
Four images are drawn from one policy and asked about together, for four answers make one step of the substitute (algorithms.md 3.1
updates after each answer; a lag of three draws is the price of a quarter of the requests). Above 30 classes the bandit has two levels,
made by k-means on the mean image of each class: the thief has no better features before the first answer.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import nn
from torch.nn import functional as F

from sameguard.attacks.bandit import ArmTree, Baseline, Draw, Rewards
from sameguard.attacks.base import ASK_BATCH, SUBSTITUTE_FIT, Extraction, as_queries, check_proxy, check_rows
from sameguard.attacks.transcript import Means
from sameguard.data import Split
from sameguard.endpoint import Endpoint, Record
from sameguard.errors import ConfigurationError, InvalidDataError
from sameguard.networks import predict_logits
from sameguard.shapes import Queries
from sameguard.training import FitConfig, RunControl, seeded

FLAT_CLASSES = 30  # up to so many, one level
LARGEST_TREE = 30  # coarse nodes
ONLINE_BATCH = 4
ONLINE_RATE, ONLINE_MOMENTUM = 0.01, 0.5
NORMALISATION_ROWS = 5000


class AdaptiveKnockoff:
    """The Knockoff thief who learns which classes of his proxy are worth asking about.

    proxy: labelled images; class numbers may have gaps. rewards: some of certainty, diversity, loss. coarse_nodes: nodes of the upper level,
    None for one (flat) up to 30 classes and twice the square root of their number, at most 30, above. window: answers and rewards that
    "recent" means. A refused query earns nothing. The rest as in KnockoffNets.
    """

    def __init__(
        self,
        proxy: Split,
        substitute: Callable[[], nn.Module],
        budget: int | None = None,
        *,
        rewards: Sequence[str] = ("certainty", "diversity", "loss"),
        coarse_nodes: int | None = None,
        window: int = 25,
        labels: str = "soft",
        config: FitConfig = SUBSTITUTE_FIT,
        batch_size: int = ASK_BATCH,
        control: RunControl | None = None,
    ) -> None:
        if proxy.labels is None:
            raise InvalidDataError("proxy must carry labels, got none: the bandit chooses among its classes; use KnockoffNets without.")
        self.means = Means(substitute, budget, labels, config, batch_size, control)
        Rewards(rewards, 2, window)  # refuses wrong settings here rather than in run
        if budget is not None:
            check_rows(proxy.raw, budget)
        self.classes, self.class_of_row = np.unique(proxy.labels, return_inverse=True)  # numbers without gaps
        if coarse_nodes is None:
            coarse_nodes = 1 if len(self.classes) <= FLAT_CLASSES else min(LARGEST_TREE, 2 * math.isqrt(len(self.classes)))
        if not 1 <= coarse_nodes <= len(self.classes):
            raise ConfigurationError(f"coarse_nodes must be in [1, {len(self.classes)}], the proxy's classes, got {coarse_nodes}.")
        self.proxy = proxy
        self.rewards = tuple(rewards)
        self.coarse_nodes = coarse_nodes
        self.window = window

    def run(self, endpoint: Endpoint, seed: int = 0) -> Extraction:
        """Spends the budget and trains a substitute. Same seed and same answers: same queries; no image is asked about twice.

        Raises InvalidDataError where the proxy has another shape or range than the endpoint's queries or fewer rows than the budget,
        ConfigurationError where the endpoint allows less or the substitute does not fit; in each case before the first query.
        """
        check_proxy(self.proxy.raw, endpoint, rows=1)
        transcript, network = self.means.begin(endpoint, seed)
        check_rows(self.proxy.raw, transcript.budget)
        rng = np.random.default_rng(seed)
        pools, tree = self._pools(rng), ArmTree(self._nodes(seed))
        rewards, baseline = Rewards(self.rewards, endpoint.classes, self.window), Baseline(self.window)
        online = _OnlineSubstitute(network, as_queries(self.proxy.raw[rng.permutation(len(self.proxy))[:NORMALISATION_ROWS]]), seed)
        while transcript.left:
            draws, rows = _drawn(tree, pools, min(ONLINE_BATCH, transcript.left), rng)
            known = transcript.ask(as_queries(self.proxy.raw[rows]))
            log_probs = online.log_probs(known.queries)
            for draw, answer, answered, expected in zip(draws, known.probs, known.answered, log_probs, strict=True):
                tree.update(draw, baseline.advantage(rewards(answer, expected) if answered else 0.0))
            online.learn(known)
        network = self.means.train(self.means.fresh(endpoint, seed), transcript.so_far(), seed)
        return transcript.extraction(network, notes={"rewards": ", ".join(self.rewards), "coarse_nodes": self.coarse_nodes})

    def _pools(self, rng: np.random.Generator) -> list[list[int]]:
        """The unused rows of each class, in random order; the last is drawn next."""
        order = rng.permutation(len(self.proxy))
        grouped = order[np.argsort(self.class_of_row[order], kind="stable")]
        sizes = np.bincount(self.class_of_row, minlength=len(self.classes))
        return [rows.tolist() for rows in np.split(grouped, np.cumsum(sizes)[:-1])]

    def _nodes(self, seed: int) -> list[list[int]]:
        """Classes of each coarse node, by k-means on the classes' mean images."""
        count = len(self.classes)
        if self.coarse_nodes == 1:
            return [list(range(count))]
        means = np.stack([self._mean_image(place) for place in range(count)])
        if len(np.unique(means, axis=0)) < self.coarse_nodes:
            raise InvalidDataError(
                f"proxy must have at least coarse_nodes = {self.coarse_nodes} classes whose mean images differ, got fewer: lower coarse_nodes."
            )
        node_of_class = KMeans(self.coarse_nodes, n_init=10, random_state=seed).fit_predict(means)
        return [np.flatnonzero(node_of_class == node).tolist() for node in range(self.coarse_nodes)]

    def _mean_image(self, place: int) -> np.ndarray:
        images = as_queries(self.proxy.raw[self.class_of_row == place])
        return images.reshape(len(images), -1).mean(axis=0, dtype=np.float64)


def _drawn(tree: ArmTree, pools: list[list[int]], count: int, rng: np.random.Generator) -> tuple[list[Draw], list[int]]:
    """`count` draws and the unused proxy row that each takes; classes without rows left are retired."""
    draws, rows = [], []
    for _ in range(count):
        draw = tree.draw(rng)
        rows.append(pools[draw.leaf].pop())
        draws.append(draw)
        if not pools[draw.leaf]:
            tree.retire(draw.leaf)
    return draws, rows


class _OnlineSubstitute:
    """The substitute that learns while the thief asks: one SGD step for each request. It only serves the reward."""

    def __init__(self, network: nn.Module, images: Queries, seed: int) -> None:
        self.network = network
        self.seed = seed
        self.steps = 0
        if hasattr(network, "set_normalisation"):
            with torch.no_grad():
                network.set_normalisation(torch.from_numpy(np.asarray(images, np.float32)))
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=ONLINE_RATE, momentum=ONLINE_MOMENTUM)

    def log_probs(self, queries: Queries) -> np.ndarray:
        """Log-probabilities (batch, classes) of queries, before they are learnt from."""
        return torch.from_numpy(predict_logits(self.network, queries)).log_softmax(1).numpy()

    def learn(self, known: Record) -> None:
        """One step on the answered rows; a single one is left out, for BatchNorm needs two."""
        rows = np.flatnonzero(known.answered)
        if len(rows) < 2:
            return
        self.steps += 1
        self.network.train()
        self.optimizer.zero_grad()
        with seeded(self.seed + self.steps):  # dropout draws from torch's global generator
            loss = F.cross_entropy(self.network(torch.from_numpy(known.queries[rows])), torch.from_numpy(known.probs[rows]))
            loss.backward()
            self.optimizer.step()
        self.network.eval()
