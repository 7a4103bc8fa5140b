"""Figure 4 over HTTP: benign users and thieves against a real guard in another process, each query a request of its own.

    python benchmarks/http_theft.py [--budget 300]

The demonstration's digits model and artefact: 8x8 toys, one seed. In a cell (one user, one defence) about PROOFS proofs, and SOLVING_SECONDS of
them, are really solved at most, spread over the cell. Any other challenged query counts as paid without being solved: its answer is the model's
own, its CPU time the mean of those solved in the cell, its response time drawn from theirs (`extrapolated`). Response times are the client's,
proof included; guard, model, client and solver share the cores. Substitutes are judged on held-out digits against the bundled victim.
"""

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator

import numpy as np
import torch

from machine import report
from sameguard.attacks import JBDA, KnockoffNets, NoiseQueries
from sameguard.client import ClientConfig, RemoteEndpoint, SolveLimits
from sameguard.data import Split, load, split
from sameguard.data.glyphs import render_glyphs
from sameguard.endpoint import Answers, MeteredEndpoint
from sameguard.evaluation.metrics import fidelity
from sameguard.networks import SmallConv
from sameguard.server.demo_server import demo_contract, demo_folder
from sameguard.training import FitConfig
from sameguard.victim import BlackBox, from_onnx

PROOFS, SOLVING_SECONDS = 200, 30.0
DEFENCES = {
    "shadow": ("--mode", "shadow"),
    "reject": ("--policy", "reject"),
    "proof of work": ("--policy", "proof-of-work"),
    "ladder": ("--policy", "ladder"),
}
FIT = FitConfig(epochs=25, batch_size=64, learning_rate=2e-3, weight_decay=1e-4, precision="fp32")


class Timed:
    """An endpoint that asks query by query and notes how long each took; where enough proofs are solved so far it asks and does not pay.

    budget: of queries, over which solving is spread. paid_seconds: of queries whose proof was solved. other_seconds: of those that cost none.
    assumed: queries that count as paid.
    """

    def __init__(self, url: str, victim: BlackBox, budget: int) -> None:
        self.paying = RemoteEndpoint(url, demo_contract(), config=ClientConfig(solving=SolveLimits(60.0)))
        self.looking = RemoteEndpoint(url, demo_contract(), config=ClientConfig(solve=False))
        self.contract, self.classes = self.paying.contract, self.paying.classes
        self.victim = victim
        self.budget = budget
        self.paid_seconds: list[float] = []
        self.other_seconds: list[float] = []
        self.assumed = 0

    @property
    def spent(self) -> bool:
        share = (len(self.paid_seconds) + len(self.other_seconds) + self.assumed) / self.budget
        return self.paying.traffic.challenges > share * PROOFS or self.paying.traffic.solve_seconds > share * SOLVING_SECONDS

    def query(self, queries: np.ndarray) -> Answers:
        parts = [self._asked(query[None]) for query in self.contract.canonicalise(queries)]
        return Answers(np.concatenate([part.probs for part in parts]), np.concatenate([part.answered for part in parts]))

    def _asked(self, query: np.ndarray) -> Answers:
        endpoint = self.looking if self.spent else self.paying
        solved, unpaid, began = self.paying.traffic.challenges, self.looking.rows.unpaid, time.perf_counter()
        answers = endpoint.query(query)
        taken = time.perf_counter() - began
        if self.looking.rows.unpaid > unpaid:
            self.assumed += 1
            return self.victim.query(query)
        (self.paid_seconds if self.paying.traffic.challenges > solved else self.other_seconds).append(taken)
        return answers

    def response_seconds(self) -> np.ndarray:
        drawn = np.random.default_rng(0).choice(self.paid_seconds, self.assumed) if self.assumed else []
        return np.concatenate([self.paid_seconds, self.other_seconds, drawn])

    def close(self) -> None:
        self.paying.close()
        self.looking.close()


@contextlib.contextmanager
def guard(*arguments: str) -> Iterator[str]:
    ports = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            ports.append(taken.getsockname()[1])
    command = [sys.executable, "-m", "sameguard", "serve", "--demo", "--port", str(ports[0]), "--admin-port", str(ports[1]), *arguments]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{ports[1]}/readyz", timeout=5).close()
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"guard must become ready within a minute, got exit code {process.poll()}.")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{ports[0]}"
    finally:
        process.terminate()
        process.wait(20)


def held_out_digits() -> Split:
    """The tenth of the digits that neither victim nor artefact has seen (tools/bundle_demo.py)."""
    parts = load("digits")
    whole = Split(np.concatenate([parts.train.raw, parts.test.raw]), np.concatenate([parts.train.labels, parts.test.labels]), 10)
    return split(whole, (0.5, 0.4, 0.1), seed=0)[2]


def users(budget: int, digits: Split) -> dict[str, Callable[[MeteredEndpoint], object]]:
    """Name -> what it does with the endpoint; thieves give their Extraction."""

    def new() -> SmallConv:
        return SmallConv(10)

    seeds, natural = digits.inputs[:30], digits.inputs[30:]
    return {
        "benign": lambda endpoint: endpoint.query(natural[:budget]) and None,
        "Knockoff, glyphs": lambda endpoint: KnockoffNets(render_glyphs(2 * budget, 1), new, budget, config=FIT).run(endpoint, 0),
        "JBDA": lambda endpoint: JBDA(seeds, new, budget, seed_count=30, config=FIT, round_fit=FIT.with_(epochs=8)).run(endpoint, 0),
        "noise": lambda endpoint: NoiseQueries(new, budget, kind="bernoulli", config=FIT).run(endpoint, 0),
    }


def measured(url: str, user: Callable[[MeteredEndpoint], object], budget: int, victim: BlackBox, judged: np.ndarray) -> dict[str, object]:
    endpoint = Timed(url, victim, budget)
    meter = MeteredEndpoint(endpoint, budget=budget, record=True)
    found = user(meter)
    endpoint.close()
    traffic, times = endpoint.paying.traffic, 1000 * endpoint.response_seconds()
    seconds = traffic.cpu_seconds * (1 + endpoint.assumed / max(1, traffic.challenges))
    return {
        "queries": meter.used,
        "answered": float(meter.recorded().answered.mean()),
        "charged": traffic.challenges + endpoint.assumed,
        "solved": traffic.challenges,
        "tries_of_solved": traffic.tries,
        "extrapolated": endpoint.assumed > 0,
        "response_p50_ms": float(np.median(times)),
        "response_p99_ms": float(np.quantile(times, 0.99)),
        "proof_cpu_seconds": seconds,
        "proof_cpu_hours_for_10000_queries": seconds / meter.used * 10_000 / 3600,
        "fidelity": None if found is None else fidelity(found.substitute, victim, judged),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=int, default=300)
    budget = parser.parse_args().budget
    torch.set_num_threads(1)
    digits = held_out_digits()
    with demo_folder() as folder:
        victim = from_onnx(str(folder / "victim.onnx"), demo_contract().input, output="logits")
        found: dict[str, dict[str, object]] = {}
        for defence, arguments in DEFENCES.items():
            with guard(*arguments) as url:
                for name, user in users(budget, digits).items():
                    cell = measured(url, user, budget, victim, digits.inputs[30:])
                    found.setdefault(name, {})[defence] = cell
                    print(name, defence, cell, file=sys.stderr, flush=True)
    report(
        "http_theft",
        {
            "note": "8x8 digits, one seed, one client; guard, model server, client and solver on the same cores",
            "cores": len(os.sched_getaffinity(0)),
            "budget": budget,
            "solved_in_a_cell_at_most_about": {"proofs": PROOFS, "seconds": SOLVING_SECONDS},
            "users": found,
        },
    )


if __name__ == "__main__":
    main()
