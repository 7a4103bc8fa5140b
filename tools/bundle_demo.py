"""Makes what `sameguard serve --demo` serves: a small digits victim as ONNX, its artefact without training weights, and a few queries.

    python tools/bundle_demo.py            writes src/sameguard/server/demo/

It needs the training half; the guard that serves the result does not. One seed, toy data: it shows the flow, not how good SAME is.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch

from sameguard.artifact import read_artifact, write_artifact
from sameguard.calibration import calibrate
from sameguard.contract import InputContract
from sameguard.data import Split, load, split
from sameguard.data.glyphs import render_glyphs
from sameguard.detectors import SAME
from sameguard.networks import SmallConv, fit_classifier
from sameguard.networks.torch_victim import TorchVictim
from sameguard.reconstruction import MAEConfig
from sameguard.training import FitConfig, RunControl, seeded

OUT = Path(__file__).resolve().parents[1] / "src" / "sameguard" / "server" / "demo"
SHOWN = 50  # digits and glyphs that come with it
FIT = FitConfig(epochs=25, batch_size=64, learning_rate=2e-3, weight_decay=1e-4, precision="fp32")


def main() -> None:
    torch.set_num_threads(1)
    parts = load("digits")
    whole = Split(np.concatenate([parts.train.raw, parts.test.raw]), np.concatenate([parts.train.labels, parts.test.labels]), 10)
    train, benign, test = split(whole, (0.5, 0.4, 0.1), seed=0)
    contract = InputContract.images(1, 8, 8, name="digit")
    with seeded(0):
        network = SmallConv(10)
    fit_classifier(network, train.inputs, train.labels, FIT, RunControl(), stage="victim")
    victim = TorchVictim(network, contract, classes=10)
    same = SAME(contract, 10, autoencoder=MAEConfig((1, 8, 8), 2, 64, 3, 4, 48, 2, 2))
    same.fit(train, victim, FitConfig(epochs=60, batch_size=128, precision="fp32"), benign=benign.inputs)
    with tempfile.TemporaryDirectory() as work:
        made = Path(work) / "artefact"
        scorer = same.export(made)
        scorer.save(calibrate(scorer, benign.inputs, victim, 0.05))
        shutil.rmtree(OUT, ignore_errors=True)
        OUT.mkdir(parents=True)
        found = read_artifact(made)
        served = {name: content for name, content in found.files.items() if name != "weights.safetensors"}
        write_artifact(OUT / "artefact", found.manifest, served)
    example = torch.zeros(2, 1, 8, 8)
    torch.onnx.export(
        network.eval(), (example,), OUT / "victim.onnx", input_names=["digit"], output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},), dynamo=True, external_data=False,
    )  # fmt: skip
    glyphs = render_glyphs(SHOWN, 0)
    np.savez_compressed(
        OUT / "queries.npz", digits=(test.inputs[:SHOWN] * 255).round().astype(np.uint8), labels=test.labels[:SHOWN].astype(np.uint8),
        glyphs=(glyphs.inputs * 255).round().astype(np.uint8),
    )  # fmt: skip
    for path in sorted(OUT.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)  # other artefacts are secrets, this one comes with the package
        print(path.relative_to(OUT), path.stat().st_size)


if __name__ == "__main__":
    main()
