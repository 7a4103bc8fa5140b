"""Jacobian-based data augmentation (Papernot et al., AsiaCCS 2017), and its targeted kin JBDA-TR (Juuti et al., EuroS&P 2019).

From a few natural seeds, round after round: train the substitute on all that was answered, move each known image by one signed gradient
step, ask about the result (algorithms.md 3.2). What is asked doubles each round; the last round is cut to a uniform subset, so that the
budget is met exactly. Both directions that are published as "JBDA" are here, and so is the direction of the logit.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from sameguard.attacks.base import (
    ASK_BATCH,
    SUBSTITUTE_FIT,
    Extraction,
    Transform,
    as_queries,
    check_proxy,
    disguised,
    inputs_of,
)
from sameguard.attacks.transcript import Means
from sameguard.data import Split
from sameguard.endpoint import Endpoint, Record
from sameguard.errors import ConfigurationError, InvalidDataError
from sameguard.networks import predict_logits
from sameguard.shapes import Labels, Queries
from sameguard.training import FitConfig, RunControl

ROUND_FIT = SUBSTITUTE_FIT.with_(epochs=20)
DIRECTIONS = {"jacobian": 1.0, "loss": -1.0}  # the loss is -log p, so its ascent is the descent of the class's own output
GRADIENT_BATCH = 256

Move = Callable[[nn.Module, Queries, Labels, int, np.random.Generator], Queries]  # network, parents, their classes, round


class JBDA:
    """The thief who extends a few natural images along the substitute's gradients.

    seeds: natural in-distribution images of the thief's own, a Split or an array; `seed_count` of them are drawn and asked about first.
    step: of one move, in canonical units; its sign turns every `flip_every` rounds. direction: `jacobian` climbs the output of the class
    that the victim named, `loss` climbs the cross-entropy, which is the same way back. of: climb log p (`prob`) or the `logit`.
    reservoir: after `reservoir_after` rounds at most so many parents a round, drawn uniformly; None for all. round_fit: the training
    between rounds, from fresh weights each time. transform: what the thief does to moved images before they are sent (laundering).
    config: the training of the final substitute. The rest as in KnockoffNets.
    """

    def __init__(
        self,
        seeds: Split | np.ndarray,
        substitute: Callable[[], nn.Module],
        budget: int | None = None,
        *,
        step: float = 0.1,
        direction: str = "jacobian",
        of: str = "prob",
        flip_every: int = 5,
        reservoir: int | None = None,
        reservoir_after: int = 3,
        seed_count: int = 200,
        round_fit: FitConfig = ROUND_FIT,
        transform: Transform | None = None,
        labels: str = "soft",
        config: FitConfig = SUBSTITUTE_FIT,
        batch_size: int = ASK_BATCH,
        control: RunControl | None = None,
    ) -> None:
        if direction not in DIRECTIONS or of not in ("prob", "logit"):
            raise ConfigurationError(f"direction must be jacobian or loss and of prob or logit, got {direction!r} and {of!r}.")
        if direction == "loss" and of == "logit":
            raise ConfigurationError("of must be prob where direction is loss, got logit: the cross-entropy is that of probabilities.")
        if flip_every < 1:
            raise ConfigurationError(f"flip_every must be at least 1 round, got {flip_every}.")
        self.means = Means(substitute, budget, labels, config, batch_size, control)
        self.growth = _Growth(inputs_of(seeds), step, seed_count, reservoir, reservoir_after, round_fit, transform)
        self.direction = direction
        self.of = of
        self.flip_every = flip_every

    def run(self, endpoint: Endpoint, seed: int = 0) -> Extraction:
        """Spends the budget and trains a substitute; `natural` marks the seeds. Same seed and same answers: same queries.

        Raises ConfigurationError, before the first query, where the budget is smaller than the seeds, the endpoint allows less than the
        budget or the substitute does not fit, InvalidDataError where the seeds are too few, of another shape or out of range.
        """

        def move(network: nn.Module, parents: Queries, classes: Labels, round_number: int, rng: np.random.Generator) -> Queries:
            step = np.float32(DIRECTIONS[self.direction] * step_of_round(self.growth.step, round_number, self.flip_every))
            return parents + step * ascent_signs(network, parents, classes, self.of)

        notes: dict[str, float | int | str] = {"direction": self.direction, "of": self.of, "flip_every": self.flip_every}
        return self.growth.run(endpoint, seed, self.means, move, notes)


class TargetedJBDA:
    """JBDA-TR: every known image moves one step towards a random class other than the one that the victim named.

    The arguments are those of JBDA; the step never turns.
    """

    def __init__(
        self,
        seeds: Split | np.ndarray,
        substitute: Callable[[], nn.Module],
        budget: int | None = None,
        *,
        step: float = 0.1,
        reservoir: int | None = None,
        reservoir_after: int = 3,
        seed_count: int = 200,
        round_fit: FitConfig = ROUND_FIT,
        transform: Transform | None = None,
        labels: str = "soft",
        config: FitConfig = SUBSTITUTE_FIT,
        batch_size: int = ASK_BATCH,
        control: RunControl | None = None,
    ) -> None:
        self.means = Means(substitute, budget, labels, config, batch_size, control)
        self.growth = _Growth(inputs_of(seeds), step, seed_count, reservoir, reservoir_after, round_fit, transform)

    def run(self, endpoint: Endpoint, seed: int = 0) -> Extraction:
        """As `JBDA.run`."""

        def move(network: nn.Module, parents: Queries, classes: Labels, round_number: int, rng: np.random.Generator) -> Queries:
            targets = other_classes(classes, endpoint.classes, rng)
            return parents + np.float32(self.growth.step) * ascent_signs(network, parents, targets)  # down the loss of the target

        return self.growth.run(endpoint, seed, self.means, move, {"direction": "targeted"})


# ---------------------------------------------------------------------- one move


def step_of_round(step: float, round_number: int, flip_every: int) -> float:
    """The step of a round counted from 1: step (-1)^floor(round / flip_every), so that it first turns in round `flip_every`."""
    return step * (-1.0) ** (round_number // flip_every)


def ascent_signs(network: nn.Module, inputs: Queries, classes: Labels, of: str = "prob") -> Queries:
    """Sign of the gradient, by the input, of the network's output for each input's class; 0 where the gradient is 0.

    of: `prob` takes log p_y, which has the sign pattern of p_y, `logit` the logit itself. log p_y rises and falls with z_y - log sum_(k != y)
    exp z_k, whose gradient does not vanish in float32 where p_y is 1 (that of log p_y, as of p_y, does).
    """
    network.eval()
    signs = []
    for start in range(0, len(inputs), GRADIENT_BATCH):
        batch = torch.from_numpy(inputs[start : start + GRADIENT_BATCH]).requires_grad_(True)
        wanted = torch.from_numpy(classes[start : start + GRADIENT_BATCH])[:, None]  # batch, 1
        logits = network(batch)
        outputs = logits.gather(1, wanted)[:, 0]  # batch
        if of == "prob":
            outputs = outputs - logits.scatter(1, wanted, -torch.inf).logsumexp(1)
        (gradient,) = torch.autograd.grad(outputs.sum(), batch)
        signs.append(gradient.sign().numpy())
    return np.concatenate(signs)


def other_classes(classes: Labels, count: int, rng: np.random.Generator) -> Labels:
    """For each class another one of `count`, uniformly."""
    return (classes + rng.integers(1, count, len(classes))) % count


def classes_of(known: Record, network: nn.Module) -> Labels:
    """The class that the victim named for each query; where it refused, the class that the substitute names."""
    classes = np.empty(len(known.queries), np.int64)
    classes[known.answered] = known.probs[known.answered].argmax(axis=1)
    refused = ~known.answered
    if refused.any():
        classes[refused] = predict_logits(network, known.queries[refused]).argmax(axis=1)
    return classes


# ---------------------------------------------------------------------- the rounds


@dataclass(frozen=True, eq=False)
class _Growth:
    """How the asked set grows from its seeds, whatever the move is."""

    seeds: np.ndarray
    step: float
    seed_count: int
    reservoir: int | None
    reservoir_after: int
    round_fit: FitConfig
    transform: Transform | None

    def __post_init__(self) -> None:
        if not self.step > 0:
            raise ConfigurationError(f"step must be positive, got {self.step}: the direction is a setting of its own.")
        if self.seed_count < 1:
            raise ConfigurationError(f"seed_count must be at least 1, got {self.seed_count}.")
        if self.reservoir_after < 0 or (self.reservoir is not None and self.reservoir < 1):
            raise ConfigurationError(
                f"reservoir must be at least 1 parent a round or None, and reservoir_after at least 0 rounds, got {self.reservoir} and "
                f"{self.reservoir_after}."
            )
        if len(self.seeds) < self.seed_count:
            raise InvalidDataError(
                f"seeds must hold at least seed_count = {self.seed_count} images, got {len(self.seeds)}: give more or lower seed_count."
            )

    def run(self, endpoint: Endpoint, seed: int, means: Means, move: Move, notes: dict[str, float | int | str]) -> Extraction:
        check_proxy(self.seeds, endpoint, rows=self.seed_count, name="seeds")
        transcript, network = means.begin(endpoint, seed)
        if transcript.budget < self.seed_count:
            raise ConfigurationError(
                f"budget must cover the seeds, {self.seed_count} queries, got {transcript.budget}: raise it or lower seed_count."
            )
        rng = np.random.default_rng(seed)
        drawn = rng.choice(len(self.seeds), size=self.seed_count, replace=False)
        transcript.ask(as_queries(self.seeds[drawn]))
        rounds, distances, largest = 0, [], 0.0
        while transcript.left:
            rounds += 1
            known = transcript.so_far()
            fresh = means.fresh(endpoint, seed + rounds)  # other weights each round: equal ones would send a parent the same way twice
            network = means.train(fresh, known, seed, config=self.round_fit, stage=f"substitute-round-{rounds}")
            rows = self._parents(len(known.queries), rounds, transcript.left, rng)
            parents = known.queries[rows]
            moved = move(network, parents, classes_of(known, network)[rows], rounds, rng)
            sent = transcript.ask(disguised(np.clip(moved, *endpoint.contract.bounds), self.transform)).queries
            change = (sent - parents).reshape(len(sent), -1)
            distances.append(np.linalg.norm(change, axis=1))
            largest = max(largest, float(np.abs(change).max()))
        network = means.train(means.fresh(endpoint, seed), transcript.so_far(), seed)
        natural = np.arange(transcript.asked) < self.seed_count
        repeated = transcript.asked - len(np.unique(endpoint.contract.digests(transcript.so_far().queries), axis=0))
        notes = {**notes, "seeds": self.seed_count, "rounds": rounds, "step": self.step, "repeated": repeated}
        if rounds:
            notes |= {"mean_distance": float(np.concatenate(distances).mean()), "largest_change": largest}  # from parent to child, as sent
        return transcript.extraction(network, natural, notes)

    def _parents(self, known: int, round_number: int, left: int, rng: np.random.Generator) -> np.ndarray:
        """Rows of the parents of this round, in order: all that is known, or a uniform subset where reservoir or budget ask for one."""
        count = min(known, left)
        if self.reservoir is not None and round_number > self.reservoir_after:
            count = min(count, self.reservoir)
        return np.sort(rng.choice(known, size=count, replace=False))
