"""The guard described by itself, and fuzzed by that description: it answers what it declares, refuses what it declares wrong, never fails."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
import schemathesis
from echo_upstream import EchoUpstream
from hostile_bodies import oip_variants, raw_batch
from hypothesis import HealthCheck, settings
from rig import DIALECT, INFER, Rig, demo_queries, infer_message, rigged
from schemathesis.checks import not_a_server_error, response_schema_conformance
from schemathesis.specs.openapi.checks import content_type_conformance, negative_data_rejection, response_headers_conformance

from blur_artifact import write_blur_artifact
from sameguard.contract import InputContract
from sameguard.protocol import DIALECTS, InferResponse, ModelContract, OpenInference, PlainJson, PlainJsonPaths, Tensor, ask
from sameguard.server.demo_server import demo_contract
from sameguard.server.openapi import openapi_document
from sameguard.server.openapi_bodies import answer_schema, request_schema

# the servers beside us draw random numbers in their threads while hypothesis draws its own
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
DOCUMENT = openapi_document(DIALECT)
MODELS = {
    "images": demo_contract(),
    "bytes, channels last": ModelContract("digits", InputContract.images(3, 2, 4, dtype="UINT8", layout="NHWC"), 3, max_rows=4,
    parameters=("temperature",)),
    "vectors": ModelContract("digits", InputContract.vectors(5), 2, plain_json=PlainJsonPaths(tensor="/a/0/b", batched=False)),
}  # fmt: skip
CHECKS = [not_a_server_error, response_schema_conformance, content_type_conformance, response_headers_conformance, negative_data_rejection]
SMALL = ModelContract("digits", InputContract.images(1, 4, 4), 3, output="logits", output_kind="logits", max_rows=2)
# refused is refused, also with a challenge in the answer or for its size
CONFIG = schemathesis.Config.from_dict({"checks": {"negative_data_rejection": {"expected-statuses": ["4xx"]}}})
SCHEMAS = {name: schemathesis.openapi.from_dict(openapi_document(make(SMALL)), config=CONFIG) for name, make in DIALECTS.items()}
BOUNDED = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def rigs(tmp_path_factory) -> Iterator[dict[str, Rig]]:
    """A guard of each dialect, before an echo."""
    artifact = write_blur_artifact(tmp_path_factory.mktemp("openapi") / "artefact", contract=SMALL.input)
    with contextlib.ExitStack() as stack:
        found = {}
        for dialect in DIALECTS:
            url = stack.enter_context(EchoUpstream(dialect, classes=3, binary=False).running())
            changes = {"cache": {"seconds": 0}, "canary": {"enabled": False}, "listen": {"max_rows": 2}, "upstream": {"dialect": dialect}}
            found[dialect] = stack.enter_context(rigged(upstream_url=url, artifact=artifact, **changes))
        yield found


def test_every_door_is_described_and_no_other():
    described = {(method.upper(), path) for path, operations in DOCUMENT["paths"].items() for method in operations}
    assert described == {(method, path.decode()) for method, path in DIALECT.routes.paths}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_has_a_valid_document(name, model):
    contract = MODELS[model]
    if name == "tf-serving":
        contract = replace(contract, parameters=())
    document = openapi_document(DIALECTS[name](contract), challenge_status=429)
    schemathesis.openapi.from_dict(document)
    json.dumps(document, allow_nan=False)
    infer = next(operation["post"] for operation in document["paths"].values() if "post" in operation)
    assert "402" not in infer["responses"]
    assert set(infer["responses"]["429"]["headers"]) >= {"WWW-Authenticate", "Retry-After"}
    assert "proof of work" in infer["responses"]["429"]["description"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", DIALECTS)
def test_good_requests_fit_the_description(name, model):
    contract = replace(MODELS[model], binary_tensors=False, parameters=())
    dialect = DIALECTS[name](contract)
    batched = contract.plain_json.batched or not isinstance(dialect, PlainJson)
    queries = contract.input.canonicalise(np.random.default_rng(0).random((2 if batched else 1, *contract.input.shape), np.float32))
    jsonschema_rs.validate(request_schema(dialect), json.loads(dialect.build_infer(ask(queries, contract)).body))


def test_good_answers_fit_the_description():
    plain = OpenInference(replace(DIALECT.model, binary_tensors=False))
    request = ask(demo_queries()[0][:2], plain.model)
    tensor = Tensor("logits", "FP32", np.zeros((2, 10), np.float32))
    answer = plain.build_infer_response(InferResponse((tensor,), np.empty((0, 10), np.float32), model_name="digits"), request)
    jsonschema_rs.validate(answer_schema(plain), json.loads(answer.body))
    assert infer_message(demo_queries()[0][:1])[0]["content-type"] in DOCUMENT["paths"][INFER]["post"]["requestBody"]["content"]


def test_what_the_description_refuses_the_guard_refuses_and_what_passes_fits_it():
    """On the bodies that were made to be taken for two things."""
    contract = demo_contract().input
    validator = jsonschema_rs.validator_for(request_schema(DIALECT))
    fitting = 0
    for name, variant in oip_variants(contract).items():
        if variant.headers or variant.wanted == "either":
            continue
        try:
            document = json.loads(variant.body)
        except (ValueError, RecursionError):
            assert variant.wanted == "refused", name
            continue
        if variant.wanted == "passes":
            assert validator.is_valid(document), name
            fitting += 1
    assert fitting > 5
    assert not validator.is_valid({"inputs": []})
    assert raw_batch(contract).size == contract.shape[1] * contract.shape[2]


def check(case: Any, url: str) -> None:
    response = case.call(base_url=url)
    assert response.elapsed < 30
    if case.method.upper() != case.operation.method.upper():  # it tries other methods, too: they are not described
        assert response.status_code == 404
        return
    case.validate_response(response, checks=CHECKS)
    declared = {int(status) for status in case.operation.responses.status_codes if status.isdigit()}
    assert response.status_code in declared  # `default` is the model server's own errors: this one makes none
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        document = response.json()
        assert response.headers["content-type"] == ["application/problem+json"]
        assert document["status"] == response.status_code
        assert set(document) <= {"type", "title", "status", "detail", "error", "challenge", "header", "expires_in"}
        assert response.headers["guard-action"]
        assert response.headers["cache-control"] == ["no-store"]


@SCHEMAS["oip"].parametrize()
@BOUNDED
def test_fuzzed_by_its_own_description_it_answers_what_it_declares(rigs, case):
    check(case, rigs["oip"].url)


@SCHEMAS["tf-serving"].parametrize()
@BOUNDED
def test_so_does_a_guard_that_speaks_tf_serving(rigs, case):
    check(case, rigs["tf-serving"].url)


@SCHEMAS["plain-json"].parametrize()
@BOUNDED
def test_so_does_a_guard_that_speaks_plain_json(rigs, case):
    check(case, rigs["plain-json"].url)


def test_no_request_of_all_these_failed_for_a_reason_of_ours(rigs):
    decisions = [decision for rig in rigs.values() for decision in rig.noted.decisions]
    assert {decision.reason for decision in decisions if decision.outcome == "failed"} == set()
    assert all(len(rig.noted.decisions) > 20 for rig in rigs.values())
    assert any(decision.rows for decision in decisions)  # some of them were understood
