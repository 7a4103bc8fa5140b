"""Inference engines for the artefact's graphs: onnxruntime in fp32 everywhere, OpenVINO where installed, in bf16 where the CPU has it.

An engine plus a precision is one *provider*; thresholds belong to the provider that they were calibrated on.
"""

import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from sameguard.errors import ArtifactError, ConfigurationError

Run = Callable[[np.ndarray], dict[str, np.ndarray]]  # one input batch -> output name -> array


class Provider(NamedTuple):
    """engine: onnxruntime or openvino. precision: fp32 or bf16."""

    engine: str
    precision: str

    def __str__(self) -> str:
        return f"{self.engine}-{self.precision}"


REFERENCE = Provider("onnxruntime", "fp32")


def available_providers() -> list[Provider]:
    """What can run here, the reference first."""
    providers = [REFERENCE]
    if importlib.util.find_spec("openvino") is not None:
        providers.append(Provider("openvino", "fp32"))
        if "BF16" in _openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            providers.append(Provider("openvino", "bf16"))
    return providers


def parse_provider(name: str) -> Provider:
    """`onnxruntime`, `openvino`, or with a precision: `openvino-bf16`. Raises ConfigurationError for anything else."""
    engine, _, precision = name.partition("-")
    provider = Provider(engine, precision or "fp32")
    if (
        engine not in ("onnxruntime", "openvino")
        or provider.precision not in ("fp32", "bf16")
        or provider == Provider("onnxruntime", "bf16")
    ):
        raise ConfigurationError(f"engine must be auto, onnxruntime, openvino, openvino-fp32 or openvino-bf16, got {name!r}.")
    return provider


def require(provider: Provider) -> None:
    """Raises ArtifactError where the provider cannot run on this machine, with the remedy."""
    if provider not in available_providers():
        installed = ", ".join(map(str, available_providers()))
        raise ArtifactError(
            f"artefact is bound to {provider}, this machine runs {installed}: install it (pip install 'sameguard[openvino]'), or calibrate "
            "again on an engine that is here: sameguard calibrate --engine auto."
        )


def open_graph(content: bytes, provider: Provider, outputs: Sequence[str], threads: int | None = None) -> Run:
    """A function that runs one graph and returns these outputs by name. threads: None takes all cores that this process may use.

    Raises ArtifactError where the graph cannot be opened or lacks an output.
    """
    threads = threads or _usable_cores()
    try:
        return (
            _onnxruntime(content, outputs, threads)
            if provider.engine == "onnxruntime"
            else _openvino(content, outputs, provider.precision, threads)
        )
    except Exception as error:
        raise ArtifactError(f"artefact graph could not be opened by {provider}: {type(error).__name__}: {error}") from error


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _onnxruntime(content: bytes, outputs: Sequence[str], threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning burns a core between queries
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (graph_input,) = session.get_inputs()
    names = list(outputs)
    missing = set(names) - {output.name for output in session.get_outputs()}
    if missing:
        raise ValueError(f"no output {', '.join(sorted(missing))}")

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {graph_input.name: batch}), strict=True))

    return run


def _openvino(content: bytes, outputs: Sequence[str], precision: str, threads: int) -> Run:
    core = _openvino_core()
    settings = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(core.read_model(content), "CPU", settings)
    request = compiled.create_infer_request()
    ports = {name: compiled.output(name) for name in outputs}  # by name: a port may carry several

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        request.infer({0: batch})
        return {name: request.get_tensor(port).data.copy() for name, port in ports.items()}

    return run


@cache
def _openvino_core():
    """One Core for the process. Each one installs an alternate signal stack and, when destroyed out of order, leaves the thread on one
    that is freed: the next signal (Ctrl-C) is then a segmentation fault (seen with OpenVINO 2026.4.1)."""
    import openvino

    return openvino.Core()
