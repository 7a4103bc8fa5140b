"""torch -> ONNX, checked: the exported graphs must give torch's raw terms before anything is written.

Two graphs, because the guard may stop between them: `reconstruction.onnx` (stage A) and `auxiliary.onnx` (stage B).
"""

import io
import logging
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from sameguard.artifact import write_artifact
from sameguard.errors import ArtifactError, NotFittedError
from sameguard.reconstruction import MaskedAutoencoder
from sameguard.runtime.engines import REFERENCE, open_graph

if TYPE_CHECKING:
    from sameguard.detectors.same import SAME

OPSET = 18
PARITY_BATCHES = (1, 3, 16)
RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 1e-4, 1e-6


class _Views(nn.Module):
    """The autoencoder's scoring passes as one graph: for each view its reconstruction and its error."""

    def __init__(self, autoencoder: MaskedAutoencoder, views: tuple[str, ...]) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.views = views

    def forward(self, queries: Tensor) -> tuple[Tensor, ...]:
        outputs: list[Tensor] = []
        if "full" in self.views:
            full = self.autoencoder.reconstruct_full(queries)
            outputs += [full, self.autoencoder.error_full(queries, full)]
        if "masked" in self.views:
            masked = self.autoencoder.reconstruct_masked(queries)
            outputs += [masked, self.autoencoder.error_masked(queries, masked)]
        return tuple(outputs)


def export_artifact(same: "SAME", directory: Path, victim_output: str, overwrite: bool) -> None:
    """Exports both networks, checks them against torch, and writes the artefact in one rename.

    Raises NotFittedError before fit(), ArtifactError where a graph does not reproduce torch.
    """
    if same.autoencoder is None or same.auxiliary is None:
        raise NotFittedError("export needs a fitted detector, got an unfitted one: call fit() first.")
    views = tuple(view for view in ("full", "masked") if view in same.score_config.views or view == same.auxiliary_view)
    autoencoder, auxiliary = same.autoencoder.cpu().eval(), same.auxiliary.cpu().eval()
    names = [f"{kind}_{view}" for view in views for kind in ("reconstruction", "error")]
    shape = same.contract.shape
    graphs = {
        "reconstruction.onnx": to_onnx(_Views(autoencoder, views), shape, "queries", names),
        "auxiliary.onnx": to_onnx(auxiliary.to(memory_format=torch.contiguous_format), shape, "reconstruction", ["logits"]),
    }
    check_parity(same, graphs, views, names)
    tensors = {f"autoencoder.{key}": value for key, value in autoencoder.state_dict().items()}
    tensors |= {f"auxiliary.{key}": value for key, value in auxiliary.state_dict().items()}
    digests = io.BytesIO()
    np.savez_compressed(digests, **{"digests.train": same.train_digests})
    files = graphs | {
        "weights.safetensors": save({key: value.contiguous().clone() for key, value in tensors.items()}),
        "benign.npz": digests.getvalue(),
    }
    write_artifact(directory, _manifest(same, views, victim_output), files, overwrite=overwrite)


def to_onnx(module: nn.Module, shape: tuple[int, ...], input_name: str, output_names: list[str]) -> bytes:
    """One graph with a free batch axis, weights inside. The exporter's own optimiser takes longer than it saves: engines have theirs."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    example = torch.full((2, *shape), 0.5)
    with warnings.catch_warnings(), _quiet("torch.onnx"):
        warnings.simplefilter("ignore")  # the exporter's own deprecations are not the user's business
        program = torch.onnx.export(
            module, (example,), dynamo=True, opset_version=OPSET, input_names=[input_name], output_names=output_names,
            dynamic_shapes=({0: batch},), verbose=False, external_data=False, optimize=False,
        )  # fmt: skip
    return program.model_proto.SerializeToString()


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """The exporter logs a warning for every optional package that is not there."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def check_parity(same: "SAME", graphs: dict[str, bytes], views: tuple[str, ...], names: list[str]) -> None:
    """Compares the graphs' raw terms with fp32 torch at batch 1, 3 and 16, on random queries.

    Raises ArtifactError beyond 1e-4 relative plus 1e-6 absolute.
    """
    reconstruct = open_graph(graphs["reconstruction.onnx"], REFERENCE, names)
    judge = open_graph(graphs["auxiliary.onnx"], REFERENCE, ["logits"])
    draw = np.random.default_rng(0)
    shift, scale = same.autoencoder.shift.numpy(), same.autoencoder.scale.numpy()
    for rows in PARITY_BATCHES:
        noise = draw.standard_normal((rows, *same.contract.shape)).astype(np.float32) * scale + shift
        queries = same.contract.canonicalise(np.clip(noise, *same.contract.bounds))
        expected_views, expected = same._reconstruct(queries)
        found = reconstruct(queries)
        for view in views:
            _compare(f"error_{view}", rows, expected[f"error_{view}"], found[f"error_{view}"])
        images = expected_views[same.auxiliary_view]
        images = np.ascontiguousarray(images if same.auxiliary_view == "full" else images[:, 0])
        probs = [_softmax(logits) for logits in (same._auxiliary_logits(images), judge(images)["logits"])]
        _compare("auxiliary probabilities", rows, *probs)


def _compare(name: str, rows: int, expected: np.ndarray, found: np.ndarray) -> None:
    if expected.shape != found.shape or not np.allclose(found, expected, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE):
        worst = "another shape" if expected.shape != found.shape else f"{np.abs(found - expected).max():.3g} away"
        raise ArtifactError(
            f"exported {name} must equal torch's at batch {rows}, got {worst}: report the versions of torch and onnxruntime."
        )


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _manifest(same: "SAME", views: tuple[str, ...], victim_output: str) -> dict[str, Any]:
    return {
        "sameguard": version("sameguard"),
        "contract": same.contract.to_json(),
        "classes": same.classes,
        "victim": {"output": victim_output},
        "preset": same.preset.name,
        "autoencoder": same.autoencoder_config.to_json(),
        "views": list(views),
        "auxiliary": {
            "view": same.auxiliary_view,
            "target": same.auxiliary_config.target,
            "share": same.share,
            "network": type(same.auxiliary).__name__,
        },
        "score": same.score_config.to_json(),
        "fit": same.report,
        "versions": {name: version(name) for name in ("torch", "onnx", "onnxruntime", "numpy")} | {"python": platform.python_version()},
    }
