"""What is said about a model in advance: settings that contradict, metadata that does not match, problems as they go out."""

import json

import numpy as np
import pytest
from wire_samples import IMAGES, MODEL, model_of

from sameguard.contract import InputContract
from sameguard.errors import ConfigurationError, SameguardError
from sameguard.protocol import (
    DIALECTS,
    PROBLEMS,
    BodyTooLargeError,
    Dialect,
    InvalidRequestError,
    InvalidResponseError,
    Limits,
    ModelMetadata,
    OpenInference,
    PlainJsonPaths,
    Problem,
    TensorSpec,
    UnsupportedMediaError,
    check_metadata,
    read_problem,
)
from sameguard.protocol.errors import shown

# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize("name", ["oip", "tf-serving", "plain-json"])
def test_every_dialect_of_the_registry_speaks_about_a_model(name):
    dialect = DIALECTS[name](MODEL)
    assert isinstance(dialect, Dialect)
    assert dialect.model is MODEL
    assert dialect.routes.classify("POST", dialect.infer_path.encode()).upstream_path == dialect.infer_path
    assert dialect.routes.classify("GET", dialect.ready_path.encode()).upstream_path == dialect.ready_path
    sent = dialect.build_infer(dialect.parse_infer(*_zeros(name)))
    assert np.array_equal(dialect.parse_infer(sent.body, sent.headers).queries, np.zeros((1, 1, 2, 3)))


def _zeros(name: str) -> tuple[bytes, dict[str, str]]:
    data = np.zeros((1, 1, 2, 3)).tolist()
    tensor = {"name": "input", "shape": [1, 1, 2, 3], "datatype": "FP32", "data": data}
    return json.dumps({"oip": {"inputs": [tensor]}, "tf-serving": {"instances": data}, "plain-json": {"input": data}}[name]).encode(), {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"version": "1/../2"}, "model version must be letters, digits, blanks and"),
        ({"version": ".."}, r"model version must be .*, got '\.\.'"),
        ({"label": "a%2fb"}, "model label must be"),
        ({"version": "1", "label": "stable"}, "version and label exclude each other, got '1' and 'stable'"),
        ({"output_kind": "label"}, "output_kind must be probs, logits or labels, got 'label'"),
        ({"max_rows": 0}, "max_rows at least 1, got 3 and 0"),
        ({"parameters": ("binary_data_output",)}, "parameter 'binary_data_output' cannot be allowed"),
        ({"parameters": ("shared_memory_region",)}, "parameter 'shared_memory_region' cannot be allowed"),
        ({"parameters": ("content_type",)}, "parameter 'content_type' cannot be allowed"),
    ],
)
def test_settings_that_open_a_second_door_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        model_of(IMAGES, **settings)


def test_limits_and_paths_are_checked():
    with pytest.raises(ConfigurationError, match="body_bytes, inflate_ratio and answer_bytes must be at least 1, got 0, 100 and"):
        Limits(body_bytes=0)
    model = model_of(IMAGES, limits=Limits(body_bytes=2**30, answer_bytes=100))
    assert model.request_limits.body_bytes == model.max_rows * model.row_values * 64 + 128 * 2**10
    assert model.answer_limits.body_bytes == 100
    assert model_of(IMAGES, limits=Limits(body_bytes=10)).request_limits.body_bytes == 10
    for path in ("predict", "/a//b", "/a/../b", "/a%2fb", "/", "/a?b"):
        with pytest.raises(ConfigurationError, match="plain-json path infer must be a plain absolute path"):
            PlainJsonPaths(infer=path)
    with pytest.raises(ConfigurationError, match="plain-json paths infer and health must differ"):
        PlainJsonPaths(infer="/health")


# ---------------------------------------------------------------------- metadata

INPUT = TensorSpec("input", "FP32", (-1, 1, 2, 3))
OUTPUT = TensorSpec("probs", "FP32", (-1, 3))


def test_metadata_of_the_protocol_is_read():
    body = {
        "name": "digits",
        "versions": ["1", "3"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 2, 3]}],
        "outputs": [{"name": "probs", "datatype": "FP32", "shape": [-1, 3]}, {"name": "extra", "datatype": "BYTES"}],
    }
    found = OpenInference(MODEL).parse_metadata(json.dumps(body).encode())
    assert found == ModelMetadata("digits", ("1", "3"), (INPUT,), (OUTPUT, TensorSpec("extra", "BYTES", None)))
    check_metadata(found, model_of(IMAGES, version="3", outputs=("extra",)))
    assert OpenInference(MODEL).parse_metadata(b'{"name": "digits", "inputs": null}') == ModelMetadata("digits")


@pytest.mark.parametrize(
    "body", [b"[]", b"{}", b"<", b'{"name": "x", "inputs": [1]}', b'{"name": "x", "inputs": [{"name": "y"}]}', b"null"]
)
def test_metadata_of_another_form_are_refused(body):
    with pytest.raises(InvalidResponseError, match="model metadata must give name, inputs and outputs"):
        OpenInference(MODEL).parse_metadata(body)


def test_extensions_tell_whether_binary_tensors_are_spoken():
    dialect = OpenInference(MODEL)
    assert dialect.extensions_path == "/v2"
    body = b'{"name": "triton", "version": "2", "extensions": ["binary_tensor_data", "statistics"]}'
    assert dialect.parse_extensions(body) == {"binary_tensor_data", "statistics"}
    assert dialect.parse_extensions(b'{"name": "mlserver"}') == frozenset()
    for broken in (b"[]", b'{"extensions": 1}'):
        with pytest.raises(InvalidResponseError, match="server metadata must be an object"):
            dialect.parse_extensions(broken)


@pytest.mark.parametrize(
    ("metadata", "settings", "message"),
    [
        (ModelMetadata("other"), {}, "upstream model must be 'digits', got 'other'"),
        (ModelMetadata("digits", ("1", "2")), {"version": "3"}, r"must have version '3', got \['1', '2'\]"),
        (ModelMetadata("digits", inputs=(TensorSpec("x", "FP32", None),)), {}, r"must have an input 'input', got \['x'\]"),
        (ModelMetadata("digits", inputs=(TensorSpec("input", "UINT8", None),)), {}, "input 'input' must be FP32, got UINT8"),
        (
            ModelMetadata("digits", inputs=(TensorSpec("input", "FP32", (-1, 2, 3, 1)),)),
            {},
            r"must have shape \[-1, 1, 2, 3\], got \[-1, 2, 3, 1\]",
        ),
        (ModelMetadata("digits", inputs=(TensorSpec("input", "FP32", (-1, 6)),)), {}, "must have shape"),
        (ModelMetadata("digits", inputs=(INPUT, TensorSpec("mask", "FP32", None))), {}, r"must have one input, got \['input', 'mask'\]"),
        (ModelMetadata("digits", outputs=(TensorSpec("logits", "FP32", None),)), {}, r"must have an output 'probs', got \['logits'\]"),
        (ModelMetadata("digits", outputs=(TensorSpec("probs", "FP32", (-1, 10)),)), {}, r"must have shape \[-1, 3\], got \[-1, 10\]"),
        (ModelMetadata("digits", outputs=(OUTPUT,)), {"outputs": ("extra",)}, "must have an output 'extra'"),
        (ModelMetadata("digits", outputs=(TensorSpec("probs", "INT64", (-1, 3)),)), {"output_kind": "labels"}, r"must have shape \[-1\]"),
    ],
)
def test_a_served_model_that_is_not_the_artefacts_is_noticed(metadata, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        check_metadata(metadata, model_of(IMAGES, **settings))


@pytest.mark.parametrize("shape", [None, (-1, -1, -1, -1), (1, 1, 2, 3)])
def test_what_the_server_leaves_open_is_not_held_against_it(shape):
    check_metadata(ModelMetadata("digits", inputs=(TensorSpec("input", "FP32", shape),), outputs=(OUTPUT,)), MODEL)
    check_metadata(ModelMetadata("digits"), model_of(IMAGES, version="3"))
    labels = model_of(IMAGES, output_kind="labels")
    for sides in ((-1,), (-1, 1), (-1, -1)):
        check_metadata(ModelMetadata("digits", outputs=(TensorSpec("probs", "INT64", sides),)), labels)


# ---------------------------------------------------------------------- problems


@pytest.mark.parametrize("kind", sorted(PROBLEMS))
def test_a_problem_goes_out_and_comes_back(kind):
    problem = Problem(kind, "what to do", error="short", extensions={"challenge": {"a": [1]}})
    message = problem.to_message()
    assert message.headers == {"content-type": "application/problem+json", "cache-control": "no-store"}
    document = json.loads(message.body)
    assert document["status"] == problem.status == PROBLEMS[kind][0]
    assert (document["error"], document["title"], document["challenge"]) == ("short", PROBLEMS[kind][1], {"a": [1]})
    assert read_problem(problem.status, message.body) == problem


def test_a_challenge_may_go_out_under_another_status_and_members_keep_their_meaning():
    problem = Problem("proof-of-work-required", "solve it", 428)
    assert json.loads(problem.to_message().body)["status"] == 428
    assert problem.error == "solve it"
    with pytest.raises(ValueError, match=r"problem extensions must not be named .*, got"):
        Problem("quota", "wait", extensions={"error": "x"})


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequestError("reason", "detail"), 400, "input-invalid"),
        (BodyTooLargeError("reason", "detail"), 413, "too-large"),
        (UnsupportedMediaError("reason", "detail"), 415, "input-invalid"),
        (InvalidResponseError("detail"), 502, "upstream-error"),
    ],
)
def test_errors_tell_the_client_the_public_reason_and_the_log_the_detail(error, status, kind):
    problem = Problem.of(error)
    assert (problem.status, problem.kind) == (status, kind)
    assert b"(detail)" not in problem.to_message().body
    assert str(error).endswith("(detail)")
    assert isinstance(error, SameguardError)
    assert isinstance(error, ValueError)


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (400, b'{"error": "unexpected shape"}', "unexpected shape"),
        (500, b"<html>oops</html>", "<html>oops</html>"),
        (503, b"", "Service Unavailable"),
        (599, b"", "HTTP status 599"),
        (500, b"\xff\xfe", "\ufffd\ufffd"),
        (500, b"[" * 100_000, "[" * 200),
        (500, b"[1]", "[1]"),
        (404, b'{"detail": "Not Found"}', "Not Found"),
    ],
)
def test_errors_of_other_servers_become_problems_without_a_kind(status, body, text):
    problem = read_problem(status, body)
    assert (problem.kind, problem.status, problem.detail) == ("about:blank", status, text)
    assert json.loads(problem.to_message().body)["type"] == "about:blank"


def test_what_a_client_sent_is_shown_short_and_in_ascii():
    assert shown("é\n") == r"'\xe9\n'"
    assert shown({"a": 1}) == "an object"
    assert len(shown("x" * 10_000)) == 60


def test_contracts_with_a_name_of_their_own_are_spoken_about():
    contract = InputContract.images(1, 2, 3, name="pixels")
    dialect = OpenInference(model_of(contract))
    with pytest.raises(InvalidRequestError, match="input name must be 'pixels', got 'input'"):
        dialect.parse_infer(*_zeros("oip"))
