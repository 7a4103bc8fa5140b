"""The gradient bandit of adaptive Knockoff: preferences over classes, in one level or two, and the rewards that move them.

Formulae: algorithms.md 3.1. A draw is paid with the policy that it was drawn from: within its node at the level of the leaves, and with
that level's own count. Exhausted arms keep their preference and are drawn no more.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from sameguard.errors import ConfigurationError

Policy = Float[np.ndarray, "arms"]
Live = Bool[np.ndarray, "arms"]
REWARDS = ("certainty", "diversity", "loss")


class GradientBandit:
    """Preferences H over arms; arms are drawn by softmax(H) over those that are live."""

    def __init__(self, arms: int) -> None:
        self.preferences = np.zeros(arms)
        self.draws = np.zeros(arms, np.int64)
        self.live = np.ones(arms, bool)

    def policy(self) -> Policy:
        """Chances of the arms, 0 for those that are exhausted; finite whatever the preferences are. At least one arm must be live."""
        shifted = np.where(self.live, self.preferences, -np.inf)
        chances = np.exp(shifted - shifted.max())
        return chances / chances.sum()

    def update(self, arm: int, policy: Policy, advantage: float) -> None:
        """One step on the arm drawn from `policy`, of size advantage / N(arm); the preferences' sum does not change."""
        self.draws[arm] += 1
        step = advantage / self.draws[arm]
        self.preferences -= step * policy
        self.preferences[arm] += step


class Draw(NamedTuple):
    """A leaf, and how it was come by: its node, its place there, and the policies at both levels."""

    leaf: int
    node: int
    place: int
    node_policy: np.ndarray
    leaf_policy: np.ndarray


class ArmTree:
    """Leaves below nodes, a bandit on each level. One node alone makes a flat bandit, for the upper level then has nothing to choose.

    nodes: the leaves of each node; together they are 0..n-1, each once.
    """

    def __init__(self, nodes: Sequence[Sequence[int]]) -> None:
        self.nodes = [np.asarray(leaves) for leaves in nodes]
        self.upper = GradientBandit(len(nodes))
        self.lower = [GradientBandit(len(leaves)) for leaves in nodes]
        self._address = {int(leaf): (node, place) for node, leaves in enumerate(self.nodes) for place, leaf in enumerate(leaves)}

    def draw(self, rng: np.random.Generator) -> Draw:
        """A live leaf, by the policies as they stand; nothing is changed."""
        node_policy = self.upper.policy()
        node = _sampled(node_policy, rng)
        leaf_policy = self.lower[node].policy()
        place = _sampled(leaf_policy, rng)
        return Draw(int(self.nodes[node][place]), node, place, node_policy, leaf_policy)

    def update(self, draw: Draw, advantage: float) -> None:
        """Pays a draw at both levels. advantage: reward minus the mean of recent ones."""
        self.upper.update(draw.node, draw.node_policy, advantage)
        self.lower[draw.node].update(draw.place, draw.leaf_policy, advantage)

    def retire(self, leaf: int) -> None:
        """The leaf is exhausted; so is its node when no other leaf of it is live."""
        node, place = self._address[leaf]
        self.lower[node].live[place] = False
        self.upper.live[node] = self.lower[node].live.any()


def _sampled(policy: Policy, rng: np.random.Generator) -> int:
    if len(policy) == 1:
        return 0
    cumulated = np.cumsum(policy)
    return int(np.searchsorted(cumulated, rng.random() * cumulated[-1], side="right"))


class Rewards:
    """What an answer is worth, in [0, 1]: the mean of the chosen rewards, each rescaled by the extremes seen so far (0 while they agree).

    certainty: margin between the two highest probabilities. diversity: how far the answer exceeds the mean of the previous `window` ones.
    loss: cross-entropy of the answer under the substitute before it learns from it.
    """

    def __init__(self, names: Sequence[str], classes: int, window: int) -> None:
        if not names or len(set(names)) != len(names) or not set(names) <= set(REWARDS):
            raise ConfigurationError(f"rewards must be some of certainty, diversity and loss, each once, got {tuple(names)}.")
        if window < 1:
            raise ConfigurationError(f"window must be at least 1 answer, got {window}.")
        self.names = tuple(names)
        self._recent = np.zeros((window, classes))
        self._seen = 0
        self._lowest, self._highest = np.full(len(names), np.inf), np.full(len(names), -np.inf)

    def __call__(self, answer: Float[np.ndarray, "classes"], log_probs: Float[np.ndarray, "classes"]) -> float:
        """answer: the victim's probabilities. log_probs: the substitute's, of the same query. Both join what later answers are held against."""
        raw = self.raw(answer, log_probs)
        self._recent[self._seen % len(self._recent)] = answer
        self._seen += 1
        self._lowest, self._highest = np.minimum(self._lowest, raw), np.maximum(self._highest, raw)
        span = self._highest - self._lowest
        return float(np.divide(raw - self._lowest, span, out=np.zeros_like(raw), where=span > 0).mean())

    def raw(self, answer: Float[np.ndarray, "classes"], log_probs: Float[np.ndarray, "classes"]) -> Float[np.ndarray, "rewards"]:
        """The chosen rewards before they are rescaled, in their own units; nothing is remembered."""
        values = []
        for name in self.names:
            if name == "certainty":
                second, first = np.partition(answer, -2)[-2:]
                values.append(first - second)
            elif name == "diversity":
                held = self._recent[: min(self._seen, len(self._recent))]
                mean = held.sum(axis=0) / len(held) if len(held) else answer  # nothing is new where nothing is old
                values.append(np.maximum(0.0, answer - mean).sum())
            else:
                possible = answer > 0  # 0 log 0 = 0
                values.append(-(answer[possible] @ log_probs[possible]))
        return np.array(values, np.float64)


class Baseline:
    """Mean of the last `window` rewards; 0 before the first."""

    def __init__(self, window: int) -> None:
        self._recent: deque[float] = deque(maxlen=window)

    def advantage(self, reward: float) -> float:
        """The reward above that mean, which it then joins."""
        mean = sum(self._recent) / len(self._recent) if self._recent else 0.0
        self._recent.append(reward)
        return reward - mean
