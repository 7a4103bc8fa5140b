"""What the guard costs: CPU per request against the model server's own, latency it adds, and what it does at ten times its load.

Claims (issue of the guard): without scoring, 3 kB binary bodies, 16 connections, the guard's process spends at most 1.5x the CPU-seconds
per request of the upstream stub (one uvicorn worker, starlette, reads the body, answers a fixed tensor); at concurrency 1 it adds at most
the scorer's own time and 1.5 ms at p50; with a scorer of 20 ms a row and 10x the load that it carries, goodput stays at 80 % of the maximum, the
rest gets 503 within 50 ms, and memory grows by less than 100 MiB in a soak of ten minutes. Client, guard and stub share the cores.

    python benchmarks/bench_guard.py [--soak SECONDS]
"""

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import numpy as np

from machine import report
from sameguard.protocol import OpenInference, ask
from sameguard.runtime import Scorer
from sameguard.server.demo_server import demo_contract, demo_folder

PROCESSES = Path(__file__).with_name("guard_processes.py")
DIALECT = OpenInference(demo_contract())
CONNECTIONS, REQUESTS, REPEATS = 16, 2000, 5
TICKS = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def process(*arguments: str) -> Iterator[tuple[int, str]]:
    """Process id and address."""
    started = subprocess.Popen([sys.executable, str(PROCESSES), *arguments], stdout=subprocess.PIPE, text=True)
    try:
        line = next(line for line in started.stdout if line.strip().isdigit())
        yield started.pid, f"http://127.0.0.1:{int(line)}"
    finally:
        started.terminate()
        started.wait(10)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def body(rows: int) -> tuple[dict[str, str], bytes]:
    """A request of the demonstration's first digit, which its guard allows, so often."""
    with demo_folder() as folder:
        digit = np.load(folder / "queries.npz", allow_pickle=False)["digits"][:1].astype(np.float32) / np.float32(255)
    message = DIALECT.build_infer(ask(np.repeat(digit, rows, axis=0), DIALECT.model))
    return message.headers, message.body


async def closed_loop(url: str, rows: int, connections: int, requests: int) -> tuple[float, list[float]]:
    """Requests per second, and the latencies, of clients that ask again when they are answered."""
    headers, content = body(rows)
    latencies: list[float] = []
    left = iter(range(requests))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections)) as session:

        async def client() -> None:
            for _ in left:
                began = time.perf_counter()
                async with session.post(url + DIALECT.infer_path, data=content, headers=headers) as answer:
                    await answer.read()
                    assert answer.status == 200, answer.status
                latencies.append(time.perf_counter() - began)

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(connections)))
        return requests / (time.perf_counter() - began), latencies


def cost_of_passing() -> dict[str, object]:
    """The guard's CPU against the stub's, and beside it that of a bare relay on the same libraries: what no guard of this kind can go below."""
    with (
        process("stub") as (stub_pid, stub),
        process("relay", stub) as (relay_pid, relay),
        process("guard", "open", stub) as (guard_pid, guard),
    ):
        for url in (relay, guard):
            asyncio.run(closed_loop(url, 12, CONNECTIONS, 300))
        ratios, relay_ratios, rates, direct_rates = [], [], [], []
        for _ in range(REPEATS):
            before = cpu_seconds(stub_pid)
            direct_rate, _ = asyncio.run(closed_loop(stub, 12, CONNECTIONS, REQUESTS))
            direct = cpu_seconds(stub_pid) - before
            before = cpu_seconds(relay_pid)
            asyncio.run(closed_loop(relay, 12, CONNECTIONS, REQUESTS))
            relay_ratios.append((cpu_seconds(relay_pid) - before) / direct)
            before = cpu_seconds(guard_pid)
            rate, _ = asyncio.run(closed_loop(guard, 12, CONNECTIONS, REQUESTS))
            ratios.append((cpu_seconds(guard_pid) - before) / direct)
            rates.append(rate)
            direct_rates.append(direct_rate)
    return {
        "guard_cpu_over_stub_cpu": {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios), "n": REPEATS},
        "relay_cpu_over_stub_cpu": {
            "median": statistics.median(relay_ratios),
            "lowest": min(relay_ratios),
            "highest": max(relay_ratios),
            "n": REPEATS,
        },
        "stub_cpu_ms_per_request": 1000 * direct / REQUESTS,
        "requests_per_second": {"direct": statistics.median(direct_rates), "through_the_guard": statistics.median(rates)},
    }


def added_latency() -> dict[str, object]:
    """At concurrency 1, one row, with the demonstration's scorer."""
    with demo_folder() as folder:
        scorer = Scorer(folder / "artefact")
        query = np.full((1, 1, 8, 8), 0.5, np.float32)
        probs = np.full((1, 10), 0.1, np.float32)
        own = []
        for _ in range(200):
            began = time.perf_counter()
            scorer.score(query, probs)
            own.append(time.perf_counter() - began)
    with process("stub") as (_, stub), process("guard", "open", stub) as (_, passing), process("guard", "real", stub) as (_, scoring):
        found = {}
        for name, url in (("direct", stub), ("passing", passing), ("scoring", scoring)) * 3:
            latencies = asyncio.run(closed_loop(url, 1, 1, 300))[1][50:]
            found.setdefault(name, []).append(1000 * statistics.median(latencies))
    medians = {name: min(values) for name, values in found.items()}
    scorer_ms = 1000 * statistics.median(own[50:])
    return {
        "p50_ms": medians,
        "scorer_ms": scorer_ms,
        "added_beyond_the_scorer_ms": medians["scoring"] - medians["direct"] - scorer_ms,
        "added_without_scoring_ms": medians["passing"] - medians["direct"],
    }


async def open_loop(url: str, per_second: float, seconds: float, pid: int) -> dict[str, float]:
    """Offers so many requests a second, whether they are answered or not."""
    headers, content = body(1)
    answered, shed, slowest, other = 0, [], [], 0
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one() -> None:
            nonlocal answered, other
            began = time.perf_counter()
            try:
                async with session.post(url + DIALECT.infer_path, data=content, headers=headers) as answer:
                    await answer.read()
                    status = answer.status
            except aiohttp.ClientError:
                other += 1
                return
            taken = time.perf_counter() - began
            if status == 200:
                answered += 1
                slowest.append(taken)
            elif status == 503:
                shed.append(taken)
            else:
                other += 1

        tasks: set[asyncio.Task[None]] = set()
        before, began, sent = memory_mib(pid), time.perf_counter(), 0
        while (now := time.perf_counter() - began) < seconds:
            while sent < now * per_second:
                task = asyncio.create_task(one())
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                sent += 1
            await asyncio.sleep(0.005)
        taken = time.perf_counter() - began
        await asyncio.gather(*tasks)
        grown = memory_mib(pid) - before
    return {
        "offered_per_second": sent / taken, "goodput_per_second": answered / taken, "shed": len(shed), "other": other,
        "shed_p50_ms": 1000 * float(np.median(shed)) if shed else 0.0, "shed_p99_ms": 1000 * float(np.quantile(shed, 0.99)) if shed else 0.0,
        "answered_p99_ms": 1000 * float(np.quantile(slowest, 0.99)) if slowest else 0.0, "memory_grown_mib": grown, "seconds": taken,
    }  # fmt: skip


def overload(soak: float) -> dict[str, object]:
    with process("stub") as (_, stub), process("guard", "slow", stub) as (pid, guard):
        most, _ = asyncio.run(closed_loop(guard, 1, 8, 300))
        found = asyncio.run(open_loop(guard, 10 * most, soak, pid))
    return {"most_per_second": most, **found, "goodput_over_most": found["goodput_per_second"] / most}


def main() -> None:
    soak = float(sys.argv[sys.argv.index("--soak") + 1]) if "--soak" in sys.argv else 30.0
    passing, latency, load = cost_of_passing(), added_latency(), overload(soak)
    report(
        "guard",
        {
            "claims": {
                "guard CPU per request at most 1.5x the stub's": passing["guard_cpu_over_stub_cpu"]["median"] <= 1.5,
                "added latency at most the scorer's time + 1.5 ms": latency["added_beyond_the_scorer_ms"] <= 1.5,
                "goodput at least 80 % at 10x load": load["goodput_over_most"] >= 0.8,
                "the rest is shed within 50 ms (p99)": load["shed_p99_ms"] <= 50,
                "memory grows by less than 100 MiB": load["memory_grown_mib"] < 100,
            },
            "passing": passing,
            "latency": latency,
            "overload": load,
        },
    )


if __name__ == "__main__":
    main()
