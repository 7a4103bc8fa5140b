"""Figure 4 over HTTP: benign users and thieves against a real guard in another process, each query a request, each proof really solved.

    python benchmarks/http_theft.py [--budget 150]

The demonstration's digits model and artefact: 8x8 toys, one seed. A proof is solved up to PROOFS times in a cell; beyond that a query is counted as
paid, and its cost is the cell's mean so far (`extrapolated`). Response times are the client's, proof included; guard, client and solver share the
cores, so they are upper bounds on such a machine. Thieves' substitutes are judged on held-out digits against the bundled victim.
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
from sameguard.victim import from_onnx

PROOFS = 200
DEFENCES = {
    "shadow": ("--mode", "shadow"),
    "reject": ("--policy", "reject"),
    "proof of work": ("--policy", "proof-of-work"),
    "ladder": ("--policy", "ladder"),
}
FIT = FitConfig(epochs=25, batch_size=64, learning_rate=2e-3, weight_decay=1e-4, precision="fp32")


class Timed:
    """An endpoint that asks query by query and notes how long each took; after PROOFS challenges it stops paying for real."""

    def __init__(self, url: str) -> None:
        model = demo_contract()
        self.paying = RemoteEndpoint(url, model, config=ClientConfig(solving=SolveLimits(60.0)))
        self.contract, self.classes = self.paying.contract, self.paying.classes
        self.seconds: list[float] = []
        self.extrapolated = 0

    def query(self, queries: np.ndarray) -> Answers:
        parts = []
        for query in self.contract.canonicalise(queries):
            if self.paying.traffic.challenges >= PROOFS:
                self.extrapolated += 1
                parts.append(Answers(np.full((1, self.classes), np.nan, np.float32), np.zeros(1, bool)))
                continue
            began = time.perf_counter()
            parts.append(self.paying.query(query[None]))
            self.seconds.append(time.perf_counter() - began)
        return Answers(np.concatenate([part.probs for part in parts]), np.concatenate([part.answered for part in parts]))


@contextlib.contextmanager
def guard(*arguments: str) -> Iterator[str]:
    ports = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            ports.append(taken.getsockname()[1])
    command = [sys.executable, "-m", "sameguard", "serve", "--demo", "--port", str(ports[0]), "--admin-port", str(ports[1]), *arguments]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{ports[1]}/readyz", timeout=5).close()
                break
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


def measured(url: str, user: Callable[[MeteredEndpoint], object], budget: int, victim, judged: np.ndarray) -> dict[str, object]:
    endpoint = Timed(url)
    meter = MeteredEndpoint(endpoint, budget=budget, record=True)
    found = user(meter)
    answered = meter.recorded().answered
    traffic, rows, times = endpoint.paying.traffic, endpoint.paying.rows, np.array(endpoint.seconds)
    asked = len(times)
    cpu = traffic.cpu_seconds / max(1, asked)
    result = {
        "queries": meter.used,
        "answered": (int(answered.sum()) + endpoint.extrapolated) / meter.used,
        "refused": rows.refused,
        "challenges_solved": traffic.challenges,
        "tries": traffic.tries,
        "extrapolated_queries": endpoint.extrapolated,
        "response_p50_ms": 1000 * float(np.median(times)),
        "response_p99_ms": 1000 * float(np.quantile(times, 0.99)),
        "proof_cpu_seconds": traffic.cpu_seconds,
        "proof_cpu_hours_for_10000_queries": cpu * 10_000 / 3600,
        "fidelity": None if found is None else fidelity(found.substitute, victim, judged),
    }
    endpoint.paying.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=int, default=150)
    budget = parser.parse_args().budget
    torch.set_num_threads(1)
    digits = held_out_digits()
    with demo_folder() as folder:
        victim = from_onnx(str(folder / "victim.onnx"), demo_contract().input, output="logits")
        found = {}
        for defence, arguments in DEFENCES.items():
            with guard(*arguments) as url:
                for name, user in users(budget, digits).items():
                    found.setdefault(name, {})[defence] = measured(url, user, budget, victim, digits.inputs[30:])
                    print(name, defence, found[name][defence], file=sys.stderr, flush=True)
    report(
        "http_theft",
        {
            "note": "8x8 digits, one seed, one client; guard, model server, client and solver on the same cores",
            "cores": len(os.sched_getaffinity(0)),
            "budget": budget,
            "proofs_solved_at_most": PROOFS,
            "users": found,
        },
    )


if __name__ == "__main__":
    main()
