"""What a benchmark prints first: processor, threads, versions. And how it times: medians of repeats, so that a claim is a ratio."""

import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sameguard.precision import cpu_has_bf16

RESULTS = Path(__file__).resolve().parent.parent / "results" / "benchmarks"


def machine() -> dict[str, Any]:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "unknown"
    )
    return {
        "processor": model, "threads": torch.get_num_threads(), "bf16": cpu_has_bf16(), "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(), **{name: version(name) for name in ("torch", "numpy", "onnxruntime", "openvino")},
    }  # fmt: skip


def seconds(work: Callable[[], object], *, repeats: int = 7, warm_up: int = 2) -> dict[str, float]:
    """Median, lowest and highest wall time of a call, after warming up."""
    times = []
    for repeat in range(repeats + warm_up):
        began = time.perf_counter()
        work()
        if repeat >= warm_up:
            times.append(time.perf_counter() - began)
    return {"median": statistics.median(times), "lowest": min(times), "highest": max(times), "n": repeats}


def report(name: str, found: dict[str, Any]) -> None:
    """Prints the result and keeps it under results/benchmarks."""
    text = json.dumps({"benchmark": name, "machine": machine(), **found}, indent=1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)
