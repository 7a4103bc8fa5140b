"""The guard described by itself, and fuzzed by that description: no status that is not declared, no failure of ours."""

import jsonschema_rs
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from rig import DIALECT, INFER, demo_queries, infer_message, rigged
from schemathesis.checks import not_a_server_error, response_schema_conformance, status_code_conformance

from sameguard.protocol import DIALECTS, InferResponse, OpenInference, Tensor
from sameguard.server.demo_server import demo_contract
from sameguard.server.openapi import openapi_document

# the servers beside us draw random numbers in their threads while hypothesis draws its own
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
DOCUMENT = openapi_document(DIALECT)
schema = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def rig():
    with rigged(cache={"seconds": 0}) as running:
        yield running


def test_every_door_is_described_and_no_other():
    described = {(method.upper(), path) for path, operations in DOCUMENT["paths"].items() for method in operations}
    assert described == {(method, path.decode()) for method, path in DIALECT.routes.paths}


@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_has_a_valid_document(name):
    document = openapi_document(DIALECTS[name](demo_contract()), challenge_status=429)
    schemathesis.openapi.from_dict(document)
    infer = next(operation["post"] for operation in document["paths"].values() if "post" in operation)
    assert "429" in infer["responses"]


def test_a_good_request_and_its_answer_fit_the_description():
    operation = DOCUMENT["paths"][INFER]["post"]
    plain = OpenInference(type(DIALECT.model)(**{**vars(DIALECT.model), "binary_tensors": False}))
    import json

    from sameguard.protocol import ask

    request = ask(demo_queries()[0][:2], plain.model)
    jsonschema_rs.validate(operation["requestBody"]["content"]["application/json"]["schema"], json.loads(plain.build_infer(request).body))
    tensor = Tensor("logits", "FP32", np.zeros((2, 10), np.float32))
    answer = plain.build_infer_response(InferResponse((tensor,), np.empty((0, 10), np.float32), model_name="digits"), request)
    jsonschema_rs.validate(operation["responses"]["200"]["content"]["application/json"]["schema"], json.loads(answer.body))
    assert infer_message(demo_queries()[0][:1])[0]["content-type"] == "application/octet-stream"


@schema.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_fuzzed_by_its_own_description_it_answers_what_it_declares(rig, case):
    response = case.call(base_url=rig.url)
    case.validate_response(response, checks=[not_a_server_error, status_code_conformance, response_schema_conformance])
    assert response.elapsed < 30


def test_no_request_of_all_these_failed_for_a_reason_of_ours(rig):
    assert {decision.reason for decision in rig.noted.decisions if decision.outcome == "failed"} <= set()
