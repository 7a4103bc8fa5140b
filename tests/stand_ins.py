"""Small honest stand-ins: a scorer whose networks are a blur and a linear model, victims of the same kind, and tiny ONNX graphs."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sameguard.contract import InputContract
from sameguard.endpoint import Answers
from sameguard.scoring import ScoreConfig, TwoStageScorer
from sameguard.victim import BlackBox

IMAGES = InputContract.images(1, 4, 4)
CLASSES = 3
WEIGHTS = np.random.default_rng(7).normal(scale=3.0, size=(16, CLASSES)).astype(np.float32)


def smooth_images(rows: int, seed: int = 0) -> np.ndarray:
    """Benign traffic: 4x4 ramps with a little grain, canonical, float32 (rows, 1, 4, 4), no two alike."""
    rng = np.random.default_rng(seed)
    down, across = np.meshgrid(np.linspace(-1, 1, 4), np.linspace(-1, 1, 4), indexing="ij")
    slopes = rng.uniform(-0.2, 0.2, (rows, 2, 1, 1))
    images = 0.5 + slopes[:, 0] * down + slopes[:, 1] * across + rng.uniform(-0.05, 0.05, (rows, 4, 4))
    return IMAGES.canonicalise(images[:, None].astype(np.float32))


def noise_images(rows: int, seed: int = 0) -> np.ndarray:
    """Malicious traffic: black and white pixels at random, which no blur reconstructs."""
    return np.random.default_rng(seed).integers(0, 2, (rows, 1, 4, 4)).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def linear_victim(contract: InputContract = IMAGES, weights: np.ndarray = WEIGHTS) -> BlackBox:
    """The victim that `BlurScorer` has an auxiliary of."""
    return BlackBox(lambda raw: raw.reshape(len(raw), -1) @ weights, contract, classes=weights.shape[1], output="logits")


class Watched:
    """A function that remembers the batches it was called with."""

    def __init__(self, function: Callable[[np.ndarray], np.ndarray]) -> None:
        self.function = function
        self.batches: list[np.ndarray] = []

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        self.batches.append(raw.copy())
        return self.function(raw)

    @property
    def rows(self) -> np.ndarray:
        return np.concatenate(self.batches)


class EchoEndpoint:
    """Refuses each query that begins with 1 and gives the others even probabilities."""

    def __init__(self, contract: InputContract, classes: int = 2) -> None:
        self.contract = contract
        self.classes = classes
        self.received: list[np.ndarray] = []

    def query(self, queries: np.ndarray) -> Answers:
        self.received.append(queries)
        answered = queries.reshape(len(queries), -1)[:, 0] < 1.0
        probs = np.full((len(queries), self.classes), 1.0 / self.classes, np.float32)
        probs[~answered] = np.nan
        return Answers(probs, answered)


class BlurScorer(TwoStageScorer):
    """`full` reconstruction: mean over each pixel and its row and column neighbours; `masked`: two passes, one direction each.

    The auxiliary is a fixed linear model. No training, no torch, and yet noise is reconstructed worse than ramps.
    """

    def __init__(
        self,
        contract: InputContract = IMAGES,
        config: ScoreConfig | None = None,
        auxiliary_view: str = "full",
        weights: np.ndarray = WEIGHTS,
    ) -> None:
        super().__init__(contract, weights.shape[1], config or ScoreConfig(), auxiliary_view)
        self.weights = weights
        self.largest_batch = 0

    def _reconstruct(self, queries: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        self.largest_batch = max(self.largest_batch, len(queries))
        across, down = _blurred(queries, -1), _blurred(queries, -2) if queries.ndim == 4 else _blurred(queries, -1)
        views = {"full": (across + down) / 2, "masked": np.stack([across, down], axis=1)}
        errors = {
            "error_full": ((views["full"] - queries) ** 2).reshape(len(queries), -1).mean(axis=1),
            "error_masked": ((views["masked"] - queries[:, None]) ** 2).reshape(len(queries), -1).mean(axis=1),
        }
        return views, errors

    def _auxiliary_logits(self, images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1) @ self.weights


def _blurred(queries: np.ndarray, axis: int) -> np.ndarray:
    side = queries.shape[axis]
    padded = np.concatenate([queries.take([0], axis), queries, queries.take([side - 1], axis)], axis)
    parts = [padded.take(range(shift, shift + side), axis) for shift in range(3)]
    return (sum(parts) / np.float32(3)).astype(np.float32)


# ---------------------------------------------------------------------- building things


def onnx_graph(
    path: Path,
    input_shape: tuple[int | str, ...],
    weights: np.ndarray,
    *,
    input_type: int = TensorProto.FLOAT,
    outputs: tuple[str, ...] = ("logits",),
    inputs: int = 1,
) -> Path:
    """Writes x -> flatten(x) @ weights as `logits`, and its argmax as `labels`; only the named outputs are declared."""
    rows = input_shape[0]
    declared = {
        "logits": helper.make_tensor_value_info("logits", TensorProto.FLOAT, [rows, weights.shape[1]]),
        "labels": helper.make_tensor_value_info("labels", TensorProto.INT64, [rows]),
    }
    names = ["x", *(f"unused{index}" for index in range(1, inputs))] if inputs else []
    nodes = [
        helper.make_node("Cast", ["x" if inputs else "constant"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["numbers"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["labels"], axis=1, keepdims=0),
    ]
    constants = [numpy_helper.from_array(weights.astype(np.float32), "weights")]
    if not inputs:
        constants.append(numpy_helper.from_array(np.zeros((1, len(weights)), np.float32), "constant"))
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info(name, input_type, list(input_shape)) for name in names],
        [declared[name] for name in outputs],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))
    return path


def unchecked(kind: type, *args: Any, **kwargs: Any) -> Any:
    """An object made without the import hook's type check of its arguments, as in service, where the hook is off."""
    made = object.__new__(kind)
    inspect.unwrap(kind.__init__)(made, *args, **kwargs)
    return made
