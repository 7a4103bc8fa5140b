"""Engines: every provider runs the same graph to the same numbers, and what cannot run says what to do."""

import subprocess
import sys

import numpy as np
import pytest

from sameguard.errors import ArtifactError, ConfigurationError
from sameguard.runtime import engines
from sameguard.runtime.engines import REFERENCE, Provider, available_providers, open_graph, parse_provider, require
from stand_ins import onnx_graph

WEIGHTS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
ROWS = np.random.default_rng(1).random((5, 1, 2, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = onnx_graph(tmp_path_factory.mktemp("graph") / "linear.onnx", ("batch", 1, 2, 2), WEIGHTS, outputs=("labels", "logits"))
    return path.read_bytes()


@pytest.mark.parametrize("provider", available_providers(), ids=str)
def test_every_engine_that_is_here_names_its_outputs_and_agrees_with_numpy(graph, provider):
    run = open_graph(graph, provider, ["labels", "logits"], threads=1)
    found, expected = run(ROWS), ROWS.reshape(5, 4) @ WEIGHTS
    assert set(found) == {"labels", "logits"}
    tolerance = 2e-2 if provider.precision == "bf16" else 1e-5
    assert np.allclose(found["logits"], expected, atol=tolerance)
    assert found["labels"].tolist() == expected.argmax(axis=1).tolist()


@pytest.mark.parametrize("provider", available_providers(), ids=str)
def test_results_of_one_run_survive_the_next_and_batches_may_change_in_size(graph, provider):
    run = open_graph(graph, provider, ["logits"], threads=1)
    first = run(ROWS)["logits"]
    kept = first.copy()
    assert run(np.zeros((2, 1, 2, 2), np.float32))["logits"].shape == (2, 3)
    run(np.ones((5, 1, 2, 2), np.float32))
    assert np.array_equal(first, kept)


def test_without_a_number_of_threads_the_cores_of_this_process_are_used(graph):
    assert np.allclose(open_graph(graph, REFERENCE, ["logits"])(ROWS)["logits"], ROWS.reshape(5, 4) @ WEIGHTS, atol=1e-5)


@pytest.mark.parametrize("provider", available_providers(), ids=str)
def test_a_damaged_graph_is_refused_by_name_of_the_engine(graph, provider):
    for damaged in (b"", b"not a graph", graph[: len(graph) // 2]):
        with pytest.raises(ArtifactError, match=rf"artefact graph could not be opened by {provider}: "):
            open_graph(damaged, provider, ["logits"], threads=1)


@pytest.mark.parametrize("provider", available_providers(), ids=str)
def test_an_output_that_the_graph_lacks_is_refused(graph, provider):
    with pytest.raises(ArtifactError, match=rf"(?s)could not be opened by {provider}: .*error_full"):
        open_graph(graph, provider, ["error_full"], threads=1)


def test_the_reference_comes_first_and_always_runs():
    assert available_providers()[0] == REFERENCE == Provider("onnxruntime", "fp32")
    require(REFERENCE)


def test_without_openvino_only_the_reference_runs_and_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    assert available_providers() == [REFERENCE]
    with pytest.raises(ArtifactError, match=r"bound to openvino-fp32, this machine runs onnxruntime-fp32: install it .*\[openvino\]"):
        require(Provider("openvino", "fp32"))


def test_bf16_is_offered_only_where_the_cpu_has_it(monkeypatch):
    class Core:
        def __init__(self, capabilities: list[str]) -> None:
            self.capabilities = capabilities

        def get_property(self, device: str, name: str) -> list[str]:
            return self.capabilities

    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(engines, "_openvino_core", lambda: Core(["FP32", "INT8"]))
    assert Provider("openvino", "bf16") not in available_providers()
    with pytest.raises(ArtifactError, match="bound to openvino-bf16, this machine runs onnxruntime-fp32, openvino-fp32"):
        require(Provider("openvino", "bf16"))
    monkeypatch.setattr(engines, "_openvino_core", lambda: Core(["FP32", "BF16"]))
    require(Provider("openvino", "bf16"))


@pytest.mark.parametrize(
    ("name", "provider"),
    [
        ("onnxruntime", REFERENCE),
        ("onnxruntime-fp32", REFERENCE),
        ("openvino", Provider("openvino", "fp32")),
        ("openvino-fp32", Provider("openvino", "fp32")),
        ("openvino-bf16", Provider("openvino", "bf16")),
    ],
)
def test_names_of_engines_are_read(name, provider):
    assert parse_provider(name) == provider
    assert parse_provider(str(provider)) == provider


@pytest.mark.parametrize("name", ["", "torch", "onnxruntime-bf16", "openvino-fp16", "OpenVINO", "openvino-fp32-x", "auto"])
def test_other_names_are_refused(name):
    with pytest.raises(ConfigurationError, match=f"engine must be auto, onnxruntime, openvino, .* got '{name}'"):
        parse_provider(name)


@pytest.mark.skipif(len(available_providers()) == 1, reason="openvino is not installed")
def test_a_signal_after_many_engines_were_opened_and_dropped_is_harmless(graph, tmp_path):
    (tmp_path / "graph.onnx").write_bytes(graph)
    script = (
        "import gc, os, pathlib, signal, numpy as np\n"
        "from sameguard.runtime.engines import available_providers, open_graph\n"
        f"content = pathlib.Path({str(tmp_path / 'graph.onnx')!r}).read_bytes()\n"
        "for _ in range(4):\n"
        "    runs = [open_graph(content, provider, ['logits'], 1) for provider in available_providers()]\n"
        "    [run(np.ones((2, 1, 2, 2), np.float32)) for run in runs]\n"
        "    del runs[1]; gc.collect(); del runs; gc.collect()  # the older one first\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('handled'))\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "handled"), done.stderr
