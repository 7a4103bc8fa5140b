"""Claim: a training step of the `cpu` preset in bf16 with attention written out is at least 2x fp32 with the fused kernel, 2.5x compiled.

Baseline in the same run: fp32 with scaled_dot_product_attention. Needs a CPU with AVX512-BF16 or AMX; elsewhere it prints what it found.
"""

import sys
from contextlib import nullcontext

import torch

from machine import report, seconds
from sameguard.precision import compile_in_place
from sameguard.reconstruction import MAEConfig, MaskedAutoencoder
from sameguard.reconstruction.transformer import Attention
from sameguard.training import seeded

BATCH = 256


def step_of(*, bf16: bool, fused: bool, compiled: bool):
    with seeded(0):
        network = MaskedAutoencoder(MAEConfig.cpu((3, 32, 32)))
    for module in network.modules():
        if isinstance(module, Attention):
            module.fused = fused
    if compiled:
        compile_in_place([network.encoder, network.decoder], print)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    images, generator = torch.rand(BATCH, 3, 32, 32), torch.Generator().manual_seed(0)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            loss = network.loss(images, generator)
        loss.backward()
        optimizer.step()

    return step


def main(compiled: bool) -> None:
    cases = {"fp32, fused attention (baseline)": (False, True, False), "bf16, fused attention": (True, True, False),
             "bf16, written out": (True, False, False)}  # fmt: skip
    if compiled:
        cases["bf16, written out, compiled"] = (True, False, True)
    found = {}
    for name, (bf16, fused, is_compiled) in cases.items():
        times = seconds(step_of(bf16=bf16, fused=fused, compiled=is_compiled), repeats=7, warm_up=3)
        found[name] = {"images_per_second": BATCH / times["median"], **times}
    baseline = found["fp32, fused attention (baseline)"]["images_per_second"]
    ratios = {name: entry["images_per_second"] / baseline for name, entry in found.items()}
    report("training_step", {"batch": BATCH, "cases": found, "ratios": ratios, "claim": "bf16 written out >= 2, compiled >= 2.5"})


if __name__ == "__main__":
    main(compiled="--no-compile" not in sys.argv)
