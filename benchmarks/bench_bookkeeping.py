"""Claim: counting queries and choosing among the proxy's classes cost under 2 % of an attack's time; training costs the rest.

Attacks of MNIST's shape on an untrained Conv3 victim, whose answers take as long as a trained one's: adaptive Knockoff, the one with a
bandit, and DFME, the one that asks most. Baseline in the same run: the whole attack. The clocks around each call count as bookkeeping, too.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from machine import report
from sameguard.attacks import DFME, AdaptiveKnockoff
from sameguard.attacks.bandit import ArmTree, Baseline, Rewards
from sameguard.contract import InputContract
from sameguard.data import Split
from sameguard.endpoint import Answers, Endpoint, MeteredEndpoint
from sameguard.networks import Conv3
from sameguard.networks.torch_victim import TorchVictim
from sameguard.training import FitConfig, seeded

SHAPE, CLASSES, PROXY_CLASSES, PROXY_ROWS = (1, 28, 28), 10, 40, 8000  # 40 classes: the bandit has both its levels
BUDGETS = {"knockoff-adaptive": 1000, "dfme": 8000}
CONV3_FIT = FitConfig(epochs=30, batch_size=64, learning_rate=1e-3, weight_decay=1e-4, precision="fp32")  # as the laboratory's
BANDIT = ((ArmTree, "draw"), (ArmTree, "update"), (ArmTree, "retire"), (Rewards, "__call__"), (Baseline, "advantage"))
CLAIM, REPEATS = 0.02, 3


class Clocked:
    """The endpoint, and how long its answers took."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.contract, self.classes = endpoint.contract, endpoint.classes
        self.seconds = 0.0

    @property
    def remaining(self) -> int | None:
        return getattr(self.endpoint, "remaining", None)

    def query(self, queries: np.ndarray) -> Answers:
        began = time.perf_counter()
        try:
            return self.endpoint.query(queries)
        finally:
            self.seconds += time.perf_counter() - began


@contextmanager
def clocked(methods: tuple[tuple[type, str], ...], spent: list[float]) -> Iterator[None]:
    """Within the block, what each call of these methods takes is appended to `spent`; none of them calls another."""
    before = [(owner, name, getattr(owner, name)) for owner, name in methods]

    def around(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **settings: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*arguments, **settings)
            finally:
                spent.append(time.perf_counter() - began)

        return call

    try:
        for owner, name, method in before:
            setattr(owner, name, around(method))
        yield
    finally:
        for owner, name, method in before:
            setattr(owner, name, method)


def attack_of(name: str) -> AdaptiveKnockoff | DFME:
    if name == "dfme":
        return DFME(Conv3, BUDGETS[name])
    rng = np.random.default_rng(0)
    proxy = Split(rng.integers(0, 256, (PROXY_ROWS, *SHAPE), dtype=np.uint8), rng.integers(0, PROXY_CLASSES, PROXY_ROWS), PROXY_CLASSES)
    return AdaptiveKnockoff(proxy, Conv3, BUDGETS[name], config=CONV3_FIT)


def one_run(name: str, seed: int) -> dict[str, float]:
    """Seconds of a whole attack, and of its bookkeeping."""
    with seeded(0):
        victim = Clocked(TorchVictim(Conv3(), InputContract.images(*SHAPE), classes=CLASSES))
    meter = Clocked(MeteredEndpoint(victim, budget=BUDGETS[name]))
    attack, bandit = attack_of(name), []
    began = time.perf_counter()
    with clocked(BANDIT, bandit):
        found = attack.run(meter, seed)
    whole = time.perf_counter() - began
    assert found.used == meter.endpoint.used == BUDGETS[name]
    own = {"meter_s": meter.seconds - victim.seconds, "bandit_s": sum(bandit)}
    return {"attack_s": whole, "victim_s": victim.seconds, **own, "share": sum(own.values()) / whole}


def main() -> None:
    cases = {}
    for name, budget in BUDGETS.items():
        runs = [one_run(name, seed) for seed in range(REPEATS)]
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        shares = [run["share"] for run in runs]
        cases[name] = {"budget": budget, "n": REPEATS, **middle, "lowest_share": min(shares), "highest_share": max(shares)}
        print(name, cases[name])
    highest = max(case["highest_share"] for case in cases.values())
    claim = f"highest share of meter and bandit < {CLAIM}"
    report("bookkeeping", {"claim": claim, "holds": highest < CLAIM, "highest_share": highest, "attacks": cases})


if __name__ == "__main__":
    main()
