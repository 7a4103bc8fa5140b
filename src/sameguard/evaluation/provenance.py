"""Where a number comes from: code version, machine, library versions, wall time, peak memory. Recorded with every result."""

import os
import platform
import resource
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from sameguard.precision import cpu_has_bf16

LIBRARIES = ("sameguard", "torch", "numpy", "scipy", "scikit-learn", "onnxruntime", "openvino", "matplotlib")


@cache
def code_version() -> dict[str, Any]:
    """Package version and, in a git checkout, the commit and whether the sources differ from it."""
    found: dict[str, Any] = {"sameguard": version("sameguard"), "commit": None, "changed": None}
    folder = Path(__file__).resolve().parent
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is not None:
        found |= {"commit": commit, "changed": bool(_git(folder, "status", "--porcelain", "--", str(folder.parent)))}
    return found


@cache
def machine() -> dict[str, Any]:
    """Processor, usable cores, threads, memory, bf16, accelerator."""
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if cpuinfo.exists()
        else []
    )
    return {
        "processor": names[0] if names else platform.processor() or "unknown",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1) if hasattr(os, "sysconf") else None,
        "bf16": cpu_has_bf16(),
        "accelerator": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "system": platform.platform(),
    }


@cache
def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that numbers depend on; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def forget_peak_memory() -> None:
    """Starts measuring the peak anew, where the system allows it (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_mib() -> float:
    """Peak resident memory since `forget_peak_memory`, or of the whole process where the system cannot forget."""
    peak = _status_mib("VmHWM")
    if peak is not None:
        return peak
    unit = 2**20 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def resident_memory_mib() -> float | None:
    """Memory that the process holds now, None where the system does not tell (all but Linux)."""
    return _status_mib("VmRSS")


def _status_mib(name: str) -> float | None:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return round(int(line.split()[1]) / 1024, 1)
    return None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
