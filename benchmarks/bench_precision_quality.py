"""Claim: a fit in bf16 reconstructs held-out benign inputs as well as one in fp32, within the spread over seeds.

    python benchmarks/bench_precision_quality.py                                      # handwritten digits, no data set needed
    python benchmarks/bench_precision_quality.py --dataset mnist --data-root data --rows 10000 --epochs 4

Baseline in the same run: the same fits in fp32. Needs a CPU with AVX512-BF16 or AMX for the times to mean anything; errors are compared anyway.
"""

import time
from pathlib import Path

import numpy as np
import torch
import typer

from machine import report
from sameguard.data import load, split
from sameguard.detectors.presets import preset
from sameguard.networks.classifier import as_float
from sameguard.reconstruction import MaskedAutoencoder
from sameguard.training import RunControl, seeded, train

HELD_OUT = 1000


def held_out_errors(rows: np.ndarray, held_out: np.ndarray, precision: str, seed: int, epochs: int | None) -> dict[str, float]:
    """Mean error of each view on held-out inputs after one fit, and its seconds."""
    chosen = preset("cpu", rows.shape[1:])
    config = chosen.fit.with_(precision=precision, seed=seed, **({} if epochs is None else {"epochs": epochs}))
    with seeded(seed):
        network = MaskedAutoencoder(chosen.autoencoder)
    data = torch.from_numpy(rows)
    network.set_normalisation(as_float(data[:5000]))
    began = time.monotonic()
    train(
        network,
        lambda indices, generator, epoch: network.loss(as_float(data[indices]), generator),
        len(data),
        config,
        RunControl(),
        stage="fit",
    )
    seconds = time.monotonic() - began
    batch = as_float(torch.from_numpy(held_out))
    with torch.no_grad():
        full = network.error_full(batch, network.reconstruct_full(batch)).mean()
        masked = network.error_masked(batch, network.reconstruct_masked(batch)).mean()
    return {"full": float(full), "masked": float(masked), "seconds": seconds}


def main(dataset: str = "digits", data_root: Path = Path("data"), rows: int = 10_000, epochs: int | None = None, seeds: int = 3) -> None:
    whole = load(dataset, root=data_root).train
    train_part, held_out = split(whole, (0.8, 0.2), seed=0)
    found: dict[str, list[dict[str, float]]] = {"fp32": [], "bf16": []}
    for seed in range(seeds):
        for precision, entries in found.items():
            entries.append(held_out_errors(train_part.raw[:rows], held_out.raw[:HELD_OUT], precision, seed, epochs))
            print(f"{dataset} seed {seed} {precision}: {entries[-1]}")
    result = {}
    for view in ("full", "masked"):
        means = {precision: np.array([entry[view] for entry in entries]) for precision, entries in found.items()}
        result[view] = {
            "relative_difference": float(means["bf16"].mean() / means["fp32"].mean() - 1.0),
            "relative_spread_over_seeds": float(means["fp32"].std(ddof=1) / means["fp32"].mean()),
        }
    claim = "|relative_difference| <= 2 relative_spread_over_seeds"
    report("precision_quality", {"dataset": dataset, "rows": min(rows, len(train_part)), "fits": found, "held_out": result, "claim": claim})


if __name__ == "__main__":
    typer.run(main)
