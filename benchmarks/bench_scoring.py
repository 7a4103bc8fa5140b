"""Scoring at batch 1, 8 and 32: torch eager, onnxruntime, OpenVINO in one run, on the `cpu` preset's colour network (random weights).

Weights do not matter for speed; what engine agrees with fp32 is decided on benign data at calibration (`choose_engine`).
"""

import os

import numpy as np
import torch

from machine import report, seconds
from sameguard.detectors.export import _Views, to_onnx
from sameguard.reconstruction import MAEConfig, MaskedAutoencoder
from sameguard.runtime.engines import available_providers, open_graph
from sameguard.training import seeded

SHAPE = (3, 32, 32)


def main() -> None:
    with seeded(0):
        network = MaskedAutoencoder(MAEConfig.cpu(SHAPE)).eval()
    cases = {}
    for view in ("full", "masked"):
        module = _Views(network, (view,)).eval()
        names = [f"reconstruction_{view}", f"error_{view}"]
        graph = to_onnx(module, SHAPE, "queries", names)
        runs = {"torch-fp32": lambda batch, module=module: module(torch.from_numpy(batch))}
        runs |= {str(provider): open_graph(graph, provider, names) for provider in available_providers()}
        for name, run in runs.items():
            for batch in (1, 8, 32):
                images = np.random.default_rng(0).random((batch, *SHAPE)).astype(np.float32)
                with torch.no_grad():
                    times = seconds(lambda run=run, images=images: run(images), repeats=11)
                cases[f"{view}, {name}, batch {batch}"] = {"ms_per_query": 1000 * times["median"] / batch, **times}
    ratios = {
        name: cases[f"{name.split(',')[0]}, torch-fp32, {name.split(', ')[2]}"]["ms_per_query"] / entry["ms_per_query"]
        for name, entry in cases.items()
    }
    report("scoring", {"cores": len(os.sched_getaffinity(0)), "cases": cases, "times_faster_than_torch_fp32": ratios})


if __name__ == "__main__":
    main()
