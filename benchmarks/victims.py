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

from sameguard.data import Split, load, split
from sameguard.networks import Augmentation, Conv3, FastCifar, fit_classifier, predict_logits
from sameguard.training import FitConfig, ProgressEvent, RunControl, seeded

HELD_OUT_SEED = 0
LABEL_SMOOTHING = 0.2


def held_out_split(train: Split) -> tuple[Split, Split]:
    """The fixed 90 % that victims train on, and the 10 % that they never see."""
    fitted, held_out = split(train, (0.9, 0.1), seed=HELD_OUT_SEED)
    return fitted, held_out


def new_victim(dataset: str) -> nn.Module:
    return Conv3(10) if dataset == "mnist" else FastCifar(10)


def train_victim(dataset: str, fitted: Split, control: RunControl, seed: int = 0) -> nn.Module:
    with seeded(seed):
        network = new_victim(dataset)
    if dataset == "mnist":
        config = FitConfig(epochs=8, batch_size=128, learning_rate=1e-3, weight_decay=1e-4, warmup_epochs=0.5, seed=seed)
        fit_classifier(network, fitted.raw, fitted.labels, config, control, stage="victim")
        return network
    config = FitConfig(
        epochs=15, batch_size=1024, learning_rate=1.5, weight_decay=1.33e-3, optimizer="sgd", momentum=0.85, schedule="linear",
        warmup_epochs=3.45, final_fraction=0.07, gradient_clip=None, seed=seed,
    )  # fmt: skip
    fit_classifier(
        network, fitted.raw, fitted.labels, config, control, stage="victim", label_smoothing=LABEL_SMOOTHING,
        augmentation=Augmentation(shift=2, flip="alternate"),
    )  # fmt: skip
    return network


def load_victim(dataset: str, folder: Path, seed: int = 0) -> nn.Module:
    network = new_victim(dataset)
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
    network = train_victim(dataset, fitted, RunControl(out / "checkpoints", resume=True, progress=show), seed)
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
