"""What the processor is good at: whether bf16 is faster here than fp32, and whether modules can be compiled."""

import shutil
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

_measured: dict[str, str] = {}


def resolve_precision(precision: str, device: str = "cpu") -> str:
    """fp32 or bf16; auto takes bf16 where the device has it and a short matrix product is at least 1.3x faster in it."""
    if precision != "auto":
        return precision
    if device not in _measured:
        _measured[device] = _faster_precision(device)
    return _measured[device]


def _faster_precision(device: str) -> str:
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    if not cpu_has_bf16():
        return "fp32"
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones(2048, 192, dtype=dtype), torch.ones(192, 768, dtype=dtype)
        times = []
        for _ in range(12):
            began = time.perf_counter()
            left @ right
            times.append(time.perf_counter() - began)
        seconds[dtype] = min(times[2:])
    return "bf16" if seconds[torch.bfloat16] * 1.3 < seconds[torch.float32] else "fp32"


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 in hardware (AVX512-BF16 or AMX)."""
    return bool(torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()) or bool(torch.cpu._is_amx_tile_supported())


def compile_in_place(parts: list[nn.Module], say: Callable[[str], None]) -> None:
    """Compiles modules in place where a C++ compiler is there; otherwise says so in the log and goes on uncompiled."""
    if shutil.which("g++") is None and shutil.which("clang++") is None and not sys.platform.startswith("win"):
        say("torch.compile needs a C++ compiler and found none: training goes on uncompiled.")
        return
    for part in parts:
        part.compile(dynamic=False)
