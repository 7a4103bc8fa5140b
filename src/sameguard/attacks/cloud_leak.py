"""Margin queries in the manner of CloudLeak (Yu et al., NDSS 2020): natural images pushed just over the substitute's nearest boundary.

The first part of the budget asks about natural images. Then, round after round: train the substitute on all answers, take the unused
images of which it is least sure, move each within a small ball until another class leads by a margin, ask about the result (algorithms.md
3.5). Left out: the pretrained networks and the feature-space attack of the paper. Each training starts afresh instead of fine-tuning the
last, for networks that fit a normalisation to their data would lose the weights that go with it.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from sameguard.attacks.base import ASK_BATCH, SUBSTITUTE_FIT, Extraction, as_queries, check_proxy, check_rows, inputs_of
from sameguard.attacks.transcript import Means
from sameguard.data import Split
from sameguard.endpoint import Endpoint
from sameguard.errors import ConfigurationError
from sameguard.networks import predict_logits
from sameguard.shapes import Queries
from sameguard.training import FitConfig, RunControl

ROUND_FIT = SUBSTITUTE_FIT.with_(epochs=20)
STEP_FACTOR = 2.5  # a step is this share of epsilon / steps, so that the ball's surface can be reached and walked along
GRADIENT_BATCH = 256


class CloudLeak:
    """The thief who asks about adversarial examples of his own substitute.

    epsilon: greatest change of any value, in canonical units. steps: of the signed descent. margin: by how much of a logit another class
    must lead. start_share: part of the budget for unmodified images, asked first. rounds: equal parts of the rest. round_fit: the
    training between rounds. config: the training of the final substitute. The rest as in KnockoffNets; each image is used once.
    """

    def __init__(
        self,
        proxy: Split | np.ndarray,
        substitute: Callable[[], nn.Module],
        budget: int | None = None,
        *,
        epsilon: float = 8 / 255,
        steps: int = 20,
        margin: float = 0.5,
        start_share: float = 0.2,
        rounds: int = 10,
        round_fit: FitConfig = ROUND_FIT,
        labels: str = "soft",
        config: FitConfig = SUBSTITUTE_FIT,
        batch_size: int = ASK_BATCH,
        control: RunControl | None = None,
    ) -> None:
        if not epsilon > 0 or not margin >= 0:
            raise ConfigurationError(f"epsilon must be positive and margin at least 0, got {epsilon} and {margin}.")
        if steps < 1 or rounds < 1:
            raise ConfigurationError(f"steps and rounds must be at least 1, got {steps} and {rounds}.")
        if not 0 < start_share <= 1:
            raise ConfigurationError(f"start_share must be in (0, 1], got {start_share}.")
        self.proxy = inputs_of(proxy)
        self.means = Means(substitute, budget, labels, config, batch_size, control)
        if budget is not None:
            check_rows(self.proxy, budget)
        self.epsilon = epsilon
        self.steps = steps
        self.margin = margin
        self.start_share = start_share
        self.rounds = rounds
        self.round_fit = round_fit

    def run(self, endpoint: Endpoint, seed: int = 0) -> Extraction:
        """Spends the budget and trains a substitute. Same seed and same answers: same queries.

        Raises InvalidDataError where the proxy has another shape or range than the endpoint's queries or fewer rows than the budget,
        ConfigurationError where the endpoint allows less or the substitute does not fit; in each case before the first query.
        """
        check_proxy(self.proxy, endpoint, rows=1)
        transcript, network = self.means.begin(endpoint, seed)
        check_rows(self.proxy, transcript.budget)
        start = max(1, round(self.start_share * transcript.budget))
        order = np.random.default_rng(seed).permutation(len(self.proxy))
        transcript.ask(as_queries(self.proxy[order[:start]]))
        pool, share = order[start:], -(-transcript.left // self.rounds)  # rounded up: the last round is the short one
        rounds = 0
        while transcript.left:
            rounds += 1
            fresh, stage = self.means.fresh(endpoint, seed), f"substitute-round-{rounds}"
            network = self.means.train(fresh, transcript.so_far(), seed, config=self.round_fit, stage=stage)
            sureness = torch.from_numpy(predict_logits(network, self.proxy[pool])).softmax(1).amax(1).numpy()
            chosen = np.argsort(sureness, kind="stable")[: min(share, transcript.left)]
            images = endpoint.contract.canonicalise(as_queries(self.proxy[pool[chosen]]))
            transcript.ask(
                margin_queries(network, images, epsilon=self.epsilon, steps=self.steps, margin=self.margin, bounds=endpoint.contract.bounds)
            )
            pool = np.delete(pool, chosen)
        network = self.means.train(self.means.fresh(endpoint, seed), transcript.so_far(), seed)
        return transcript.extraction(network, notes={"start": start, "rounds": rounds, "epsilon": self.epsilon})


def margin_queries(
    network: nn.Module, images: Queries, *, epsilon: float, steps: int, margin: float, bounds: tuple[float, float] = (0.0, 1.0)
) -> Queries:
    """The images, each moved by signed descent until another class than its first one leads by `margin` in the logits, or the steps are spent.

    No value moves by more than `epsilon` or leaves the bounds. An image that has arrived moves no further.
    """
    network.eval()
    moved = [
        _descended(network, torch.from_numpy(images[start : start + GRADIENT_BATCH]), epsilon, steps, margin, bounds)
        for start in range(0, len(images), GRADIENT_BATCH)
    ]
    return np.concatenate(moved)


def _descended(
    network: nn.Module, origin: torch.Tensor, epsilon: float, steps: int, margin: float, bounds: tuple[float, float]
) -> np.ndarray:
    with torch.no_grad():
        own = network(origin).argmax(1, keepdim=True)  # batch, 1
    lowest, highest = (origin - epsilon).clamp(*bounds), (origin + epsilon).clamp(*bounds)
    moved = origin.clone()
    for _ in range(steps):
        moved.requires_grad_(True)
        logits = network(moved)
        others = logits.scatter(1, own, -torch.inf).amax(1)
        lead = logits.gather(1, own)[:, 0] - others
        (gradient,) = torch.autograd.grad((lead + margin).clamp_min(0).sum(), moved)  # 0 for those that have arrived
        moved = (moved.detach() - STEP_FACTOR * epsilon / steps * gradient.sign()).clamp(lowest, highest)
    return moved.numpy()
