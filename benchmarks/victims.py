"""The victims of the real-data runs, trained on a fixed 90 % of the official training set: Conv3 on MNIST, `strong` on CIFAR-10.

python benchmarks/victims.py mnist --data-root data --out runs/mnist
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import typer
from safetensors.torch import load_file, save_file
from torch import nn

from sameguard.data import load
from sameguard.evaluation.victims import RECIPES, held_out_split, new_network, train_victim
from sameguard.networks import predict_logits
from sameguard.training import ProgressEvent, RunControl

VICTIMS = {"mnist": "conv3", "cifar10": "strong"}


def load_victim(dataset: str, folder: Path, seed: int = 0) -> nn.Module:
    network = new_network(VICTIMS[dataset])
    network.load_state_dict(load_file(folder / f"victim-{seed}.safetensors"))
    return network.eval()


def main(dataset: str, data_root: Path = Path("data"), out: Path = Path("runs"), seed: int = 0) -> None:
    """Trains one victim (resumable) and writes its weights and accuracy."""
    data = load(dataset, root=data_root)
    fitted, _ = held_out_split(data.train)

    def show(event: ProgressEvent) -> None:
        if event.step % 20 == 0:
            print(
                f"{event.stage} {event.step}/{event.steps} loss {event.loss:.4f} {event.seconds_left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    began = time.monotonic()
    config = RECIPES[VICTIMS[dataset]].fit.with_(seed=seed)
    network = train_victim(VICTIMS[dataset], fitted, config, RunControl(out / "checkpoints", resume=True, progress=show))
    report = {
        "dataset": dataset,
        "seed": seed,
        "rows": len(fitted),
        "seconds": round(time.monotonic() - began, 1),
        "threads": torch.get_num_threads(),
    }
    for name, mirrored in (("accuracy", False), ("accuracy_mirrored", True)):
        logits = predict_logits(network, data.test.raw, mirrored=mirrored)
        report[name] = round(float(np.mean(logits.argmax(1) == data.test.labels)), 5)
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, out / f"victim-{seed}.safetensors")
    (out / f"victim-{seed}.json").write_text(json.dumps(report, indent=1))
    print(json.dumps(report))


if __name__ == "__main__":
    typer.run(main)
