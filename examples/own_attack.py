"""An attack of one's own: halfway images between pairs of the thief's proxy. `python own_attack.py` tries it against the contract."""

from collections.abc import Callable

import numpy as np
from torch import nn

from sameguard.attacks import Extraction
from sameguard.attacks.base import ask, new_substitute, resolve_budget, train_substitute
from sameguard.data import Split
from sameguard.endpoint import Endpoint
from sameguard.training import FitConfig, RunControl


class Blended:
    """The thief who sends mixtures of two of his images. share: of the first image."""

    def __init__(
        self, proxy: Split, substitute: Callable[[], nn.Module], budget: int | None = None,
        *, share: float = 0.5, labels: str = "soft", config: FitConfig | None = None, control: RunControl | None = None,
    ) -> None:  # fmt: skip
        self.proxy, self.substitute, self.budget, self.share = proxy, substitute, budget, share
        self.labels, self.config, self.control = labels, config or FitConfig(epochs=20), control

    def run(self, endpoint: Endpoint, seed: int = 0) -> Extraction:
        budget = resolve_budget(endpoint, self.budget)
        network = new_substitute(self.substitute, endpoint, seed)  # tried before any query is spent
        rows = np.random.default_rng(seed).choice(len(self.proxy), (2, budget))
        images = self.proxy.inputs
        mixed = self.share * images[rows[0]] + (1 - self.share) * images[rows[1]]
        queries, probs, answered = ask(endpoint, mixed.astype(np.float32), labels=self.labels)
        train_substitute(network, queries, probs, answered, self.config, seed, self.control)
        return Extraction(network, queries, probs, answered, used=budget, notes={"share": self.share})


def main() -> None:
    from sameguard import InputContract
    from sameguard.data import load
    from sameguard.networks import SmallConv
    from sameguard.testing import check_attack
    from sameguard.victim import BlackBox

    weights = np.random.default_rng(0).normal(size=(64, 10))
    victim = BlackBox(lambda raw: raw.reshape(len(raw), -1) @ weights, InputContract.images(1, 8, 8), classes=10, output="logits")
    check_attack(lambda: Blended(load("glyphs").train, SmallConv, config=FitConfig(epochs=1)), lambda: victim, budget=40)
    print("Blended keeps the contract of an attack")


if __name__ == "__main__":
    main()
