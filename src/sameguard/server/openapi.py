"""The data plane's doors as an OpenAPI 3.1 document: for client generators, gateways, and tests that fuzz a guard by its own description."""

from importlib.metadata import version
from typing import Any

from sameguard.protocol import PROBLEMS, Dialect, ModelContract, OpenInference, RouteKind

REFUSALS = ("400", "402", "403", "408", "413", "415", "429", "431", "502", "503", "504")
PROBLEM_MEDIA = "application/problem+json"


def openapi_document(dialect: Dialect, *, challenge_status: int = 402) -> dict[str, Any]:
    """Every path that is answered; whatever is not in it is 404. JSON bodies are described in full for the Open Inference Protocol alone."""
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), route in sorted(dialect.routes.paths.items()):
        operation = _inference(dialect, challenge_status) if route.kind is RouteKind.INFER else _passed_through(route.kind)
        paths.setdefault(path.decode("ascii"), {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": f"{dialect.model.name} behind sameguard", "version": version("sameguard")},
        "paths": paths,
        "components": {"schemas": {"Problem": _problem()}},
    }


def _inference(dialect: Dialect, challenge_status: int) -> dict[str, Any]:
    statuses = sorted({*REFUSALS, str(challenge_status)})
    body: dict[str, Any] = {"type": "object"}
    answer: dict[str, Any] = {}
    if isinstance(dialect, OpenInference):
        body, answer = _request(dialect.model), _answer(dialect.model)
    proof = {
        "name": "Guard-Proof", "in": "header", "required": False, "schema": {"type": "string", "maxLength": 4096},
        "description": "The solved challenge of an earlier answer to the same inputs, base64.",
    }  # fmt: skip
    return {
        "summary": "Answered, refused, or to be paid for",
        "parameters": [proof],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {
            "200": {"description": "The model server's answer", "content": {"application/json": {"schema": answer}}},
            **{status: _refusal(status) for status in statuses},
            "default": {"description": "The model server's own error, passed on"},
        },
    }


def _passed_through(kind: RouteKind) -> dict[str, Any]:
    what = "the model server's metadata" if kind is RouteKind.METADATA else "the model server's health: the status counts"
    responses = {status: _refusal(status) for status in ("400", "431", "502", "503", "504")}
    return {
        "summary": f"{what}, passed through unscored",
        "responses": {"200": {"description": what}, **responses, "default": {"description": "The model server's own error, passed on"}},
    }


def _refusal(status: str) -> dict[str, Any]:
    return {
        "description": "No answer; `type` says why",
        "headers": {"Guard-Action": {"schema": {"type": "string"}}, "Guard-Request-Id": {"schema": {"type": "string"}}},
        "content": {PROBLEM_MEDIA: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


def _problem() -> dict[str, Any]:
    text = {"type": "string"}
    return {
        "type": "object",
        "description": f"RFC 9457, and `error` for inference clients. Types: {', '.join(PROBLEMS)}.",
        "required": ["type", "title", "status", "detail", "error"],
        "properties": {
            "type": text, "title": text, "status": {"type": "integer"}, "detail": text, "error": text,
            "challenge": {"type": "object", "description": "An ALTCHA v2 challenge."}, "header": text, "expires_in": {"type": "integer"},
            "retry_proof": text,
        },
    }  # fmt: skip


def _request(model: ModelContract) -> dict[str, Any]:
    """One input under the artefact's contract, nested or flat."""
    number = {"type": "integer", "minimum": 0, "maximum": 255} if model.input.dtype == "UINT8" else {"type": "number"}
    tensor = {
        "type": "object",
        "required": ["name", "shape", "datatype", "data"],
        "additionalProperties": False,
        "properties": {
            "name": {"const": model.input.name},
            "datatype": {"const": model.input.dtype},
            "shape": {
                "type": "array",
                "prefixItems": [{"type": "integer", "minimum": 1, "maximum": model.max_rows}, *({"const": side} for side in model.input.raw_shape)],
                "minItems": 1 + len(model.input.raw_shape),
                "maxItems": 1 + len(model.input.raw_shape),
            },
            "data": {"type": "array", "items": number, "minItems": model.row_values, "maxItems": model.row_values * model.max_rows},
        },
    }  # fmt: skip
    output = {
        "type": "object", "required": ["name"], "additionalProperties": False, "properties": {"name": {"enum": list(model.allowed_outputs)}}
    }  # fmt: skip
    return {
        "type": "object",
        "required": ["inputs"],
        "additionalProperties": False,
        "properties": {
            "id": {"type": "string", "maxLength": 256},
            "inputs": {"type": "array", "items": tensor, "minItems": 1, "maxItems": 1},
            "outputs": {"type": "array", "items": output, "minItems": 1},
        },
    }


def _answer(model: ModelContract) -> dict[str, Any]:
    tensor = {"type": "object", "required": ["name", "shape", "datatype"], "properties": {"name": {"enum": list(model.allowed_outputs)}}}
    return {"type": "object", "required": ["model_name", "outputs"], "properties": {"outputs": {"type": "array", "items": tensor}}}
