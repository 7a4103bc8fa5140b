"""The data plane's doors as an OpenAPI 3.1 document: for client generators, gateways, and tests that fuzz a guard by its own description.

Bodies are described in `openapi_bodies`. Whatever no door is described for is answered 404.
"""

from importlib.metadata import version
from typing import Any

from sameguard.protocol import PROBLEMS, Dialect, OpenInference, RouteKind
from sameguard.protocol.challenge import PROOF_BYTES
from sameguard.protocol.headers import HEADER_LENGTH
from sameguard.protocol.problems import TYPE_PREFIX
from sameguard.server.openapi_bodies import answer_schema, request_schema

PROBLEM_MEDIA = "application/problem+json"
REASONS = {
    400: "Not understood, or against the model's input contract",
    402: "To be paid for with a proof of work, or the proof does not count; see `type`",
    403: "This query is not answered",
    408: "The body did not arrive in time; the connection is closed",
    413: "Too many bytes, or a batch that costs more than one request may: send fewer rows at once",
    415: "A media type, character set or encoding that is not spoken",
    429: "Too many rows in a short time",
    431: "Too many bytes of headers",
    502: "The model server gave no usable answer",
    503: "Not available at the moment",
    504: "The model server did not answer in time",
}
PASSED_THROUGH = (400, 431, 502, 503, 504)  # what can happen to metadata and health
OWN_ERROR = {"description": "The model server's own error, passed on: it comes without Guard-Action, under any status"}


def openapi_document(dialect: Dialect, *, challenge_status: int = 402) -> dict[str, Any]:
    """Every path that is answered. challenge_status: of challenges, as `proofs.status` says."""
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
    requests: dict[str, Any] = {"application/json": {"schema": request_schema(dialect)}}
    answers: dict[str, Any] = {"application/json": {"schema": answer_schema(dialect)}}
    parameters = [_proof()]
    if isinstance(dialect, OpenInference):
        tensors = {"schema": {"description": "The JSON part, then raw little-endian tensors; or one raw tensor alone."}}
        requests["application/octet-stream"] = answers["application/octet-stream"] = tensors
        parameters.append(_json_length())
    statuses = {challenge_status if status == 402 else status for status in REASONS}
    return {
        "summary": "Answered, refused, or to be paid for",
        "description": "Content-Type may be left out; Content-Encoding may be gzip or deflate, once. Query strings are refused.",
        "parameters": parameters,
        "requestBody": {"required": True, "content": requests},
        "responses": {
            "200": {"description": "The model server's answer", "headers": _headers(), "content": answers},
            **{str(status): _refusal(status, challenge_status) for status in sorted(statuses)},
            "default": OWN_ERROR,
        },
    }


def _passed_through(kind: RouteKind) -> dict[str, Any]:
    what = "the model server's metadata" if kind is RouteKind.METADATA else "the model server's health: the status counts"
    return {
        "summary": f"{what}, passed through unscored",
        "responses": {
            "200": {"description": what, "headers": _headers()},
            **{str(status): _refusal(status, 0) for status in PASSED_THROUGH},
            "default": OWN_ERROR,
        },
    }


def _refusal(status: int, challenge_status: int) -> dict[str, Any]:
    headers = _headers("Cache-Control", "Guard-Action")
    reasons = [REASONS[402]] if status == challenge_status else []
    if status in REASONS and status != 402:
        reasons.append(REASONS[status])
    if status == challenge_status:
        headers |= _headers("WWW-Authenticate")
    if status in (429, 503):
        headers |= _headers("Retry-After")
    return {
        "description": "; or: ".join(reasons),
        "headers": headers,
        "content": {PROBLEM_MEDIA: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"schema": {"type": "string"}} for name in ("Guard-Request-Id", *names)}


def _proof() -> dict[str, Any]:
    return {
        "name": "Guard-Proof", "in": "header", "required": False, "schema": {"type": "string", "maxLength": PROOF_BYTES},
        "description": "The solved challenge of an earlier answer to the same inputs, base64 of JSON.",
    }  # fmt: skip


def _json_length() -> dict[str, Any]:
    return {
        "name": HEADER_LENGTH.title(), "in": "header", "required": False, "schema": {"type": "integer", "minimum": 0},
        "description": "Bytes of the JSON part, inflated, where tensors follow it; 0 for one raw tensor and no JSON.",
    }  # fmt: skip


def _problem() -> dict[str, Any]:
    text = {"type": "string"}
    return {
        "type": "object",
        "description": "RFC 9457, and `error` for inference clients.",
        "required": ["type", "title", "status", "detail", "error"],
        "properties": {
            "type": {"enum": [TYPE_PREFIX + kind for kind in PROBLEMS]}, "title": text, "status": {"type": "integer"}, "detail": text, "error": text,
            "challenge": {"type": "object", "description": "An ALTCHA v2 challenge.", "required": ["parameters", "signature"]},
            "header": {"const": "Guard-Proof"}, "expires_in": {"type": "integer", "minimum": 0, "description": "Seconds."},
            "retry_proof": {"type": "string", "description": "Passes once more, where a proof was spent and the model server failed."},
        },
    }  # fmt: skip
