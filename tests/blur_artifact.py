"""A calibrated artefact on disk without torch or training: the blur and the linear model of `stand_ins` as ONNX graphs."""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from sameguard.artifact import write_artifact
from sameguard.calibration import calibrate
from sameguard.contract import InputContract
from sameguard.runtime import Scorer
from sameguard.scoring import ScoreConfig
from stand_ins import CLASSES, IMAGES, WEIGHTS, linear_victim, smooth_images


def write_blur_artifact(
    directory: Path, *, contract: InputContract = IMAGES, config: ScoreConfig | None = None, output: str = "logits", rate: float = 0.05
) -> Path:
    """`directory`, with an artefact of `linear_victim()` calibrated on 600 smooth images."""
    config = config or ScoreConfig()
    manifest = {
        "sameguard": "0",
        "contract": contract.to_json(),
        "classes": CLASSES,
        "score": config.to_json(),
        "views": ["full", "masked"],
        "auxiliary": {"view": "full", "network": "linear"},
        "victim": {"output": output},
        "preset": "none",
    }
    write_artifact(directory, manifest, {"reconstruction.onnx": _reconstruction(), "auxiliary.onnx": _auxiliary()})
    scorer = Scorer(directory, for_calibration=True, threads=1)
    scorer.save(calibrate(scorer, smooth_images(600, seed=1), linear_victim(), rate))
    return directory


def _reconstruction() -> bytes:
    """Zero-padded means over each pixel's row and column neighbours, and their errors."""
    kernels = {"across": np.full((1, 1, 1, 3), 1 / 3, np.float32), "down": np.full((1, 1, 3, 1), 1 / 3, np.float32)}
    constants = [numpy_helper.from_array(kernel, f"{name}_kernel") for name, kernel in kernels.items()]
    constants += [numpy_helper.from_array(np.array(values, np.int64), name) for name, values in (("one", [1]), ("all", [1, 2, 3, 4]))]
    constants += [numpy_helper.from_array(np.array([1, 2, 3], np.int64), "sides"), numpy_helper.from_array(np.float32(0.5), "half")]
    nodes = [
        helper.make_node("Conv", ["x", "across_kernel"], ["across"], pads=[0, 1, 0, 1]),
        helper.make_node("Conv", ["x", "down_kernel"], ["down"], pads=[1, 0, 1, 0]),
        helper.make_node("Add", ["across", "down"], ["sum"]),
        helper.make_node("Mul", ["sum", "half"], ["reconstruction_full"]),
        helper.make_node("Unsqueeze", ["across", "one"], ["first"]),
        helper.make_node("Unsqueeze", ["down", "one"], ["second"]),
        helper.make_node("Concat", ["first", "second"], ["reconstruction_masked"], axis=1),
        helper.make_node("Unsqueeze", ["x", "one"], ["queries"]),
    ]
    for view, queries, axes in (("full", "x", "sides"), ("masked", "queries", "all")):
        nodes += [
            helper.make_node("Sub", [f"reconstruction_{view}", queries], [f"difference_{view}"]),
            helper.make_node("Mul", [f"difference_{view}"] * 2, [f"squared_{view}"]),
            helper.make_node("ReduceMean", [f"squared_{view}", axes], [f"error_{view}"], keepdims=0),
        ]
    shapes = {
        "reconstruction_full": ["n", 1, 4, 4],
        "reconstruction_masked": ["n", 2, 1, 4, 4],
        "error_full": ["n"],
        "error_masked": ["n"],
    }
    return _model(nodes, [("x", ["n", 1, 4, 4])], list(shapes.items()), constants)


def _auxiliary() -> bytes:
    nodes = [helper.make_node("Flatten", ["x"], ["flat"], axis=1), helper.make_node("MatMul", ["flat", "weights"], ["logits"])]
    return _model(nodes, [("x", ["n", 1, 4, 4])], [("logits", ["n", CLASSES])], [numpy_helper.from_array(WEIGHTS, "weights")])


def _model(nodes: list, inputs: list, outputs: list, constants: list) -> bytes:
    declared = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in infos] for infos in (inputs, outputs)]
    graph = helper.make_graph(nodes, "stand-in", *declared, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
