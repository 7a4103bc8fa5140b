"""The Open Inference Protocol v2 over REST, with the binary tensor extension: KServe, Triton, MLServer, OpenVINO Model Server.

A body is JSON, or JSON of `Inference-Header-Content-Length` bytes followed by raw tensors; length 0 is one raw tensor and no JSON at all.
Answers are in `open_inference_answers`. Left out: shared memory and every parameter that would put the input elsewhere than in the body.
"""

import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from sameguard.protocol.dialect import canonical_queries, checked_object, checked_parameter, checked_rows
from sameguard.protocol.errors import InvalidRequestError, InvalidResponseError, WireError, shown, shown_shape
from sameguard.protocol.headers import HEADER_LENGTH, check_media_type, json_part_length
from sameguard.protocol.inflate import inflate
from sameguard.protocol.json_reading import read_json, write_json
from sameguard.protocol.messages import InferRequest, InferResponse, Message
from sameguard.protocol.metadata import ModelMetadata, TensorSpec
from sameguard.protocol.model import ModelContract
from sameguard.protocol.open_inference_answers import read_answer, write_answer
from sameguard.protocol.routes import Route, RouteKind, RouteTable
from sameguard.protocol.tensors import DTYPES, array_from_bytes, array_from_json, bytes_from_array, json_budget, json_from_array
from sameguard.shapes import Queries

REQUEST = frozenset({"id", "model_name", "parameters", "inputs", "outputs"})  # model_name: KServe's client repeats it in the body
INPUT = frozenset({"name", "shape", "datatype", "parameters", "data"})
OUTPUT = frozenset({"name", "parameters"})
LONGEST_ID = 256
BINARY_EXTENSION = "binary_tensor_data"


class OpenInference:
    """The dialect for one model. It is a Dialect."""

    def __init__(self, model: ModelContract) -> None:
        self.model = model
        home = f"/v2/models/{quote(model.name)}"
        pinned = home if model.version is None else f"{home}/versions/{quote(model.version)}"
        self.infer_path = f"{pinned}/infer"
        self.ready_path = f"{pinned}/ready"
        self.ready_is_optional = False
        self.metadata_path: str | None = pinned
        self.extensions_path: str | None = "/v2"
        routes = {
            ("GET", "/v2"): Route(RouteKind.METADATA, "/v2"),
            ("GET", "/v2/health/live"): Route(RouteKind.HEALTH, "/v2/health/live"),
            ("GET", "/v2/health/ready"): Route(RouteKind.HEALTH, "/v2/health/ready"),
        }
        for path in {home, pinned}:
            routes["GET", path] = Route(RouteKind.METADATA, pinned)
            routes["GET", f"{path}/ready"] = Route(RouteKind.HEALTH, self.ready_path)
            routes["POST", f"{path}/infer"] = Route(RouteKind.INFER, self.infer_path)
        self.routes = RouteTable(routes)

    # ------------------------------------------------------------------ requests

    def parse_infer(self, body: bytes, headers: Mapping[str, str]) -> InferRequest:
        """See Dialect. Nested or flat JSON data, binary tensors, and the raw request of one tensor."""
        binary = HEADER_LENGTH in headers
        check_media_type(headers, ("application/octet-stream", "application/json") if binary else ("application/json",))
        body = inflate(body, headers.get("content-encoding", ""), self.model.request_limits)
        json_length = json_part_length(headers, len(body))  # counts inflated bytes
        if json_length == 0:
            return self._raw_request(body)
        tail = memoryview(body)[len(body) if json_length is None else json_length :]
        document = checked_object(read_json(memoryview(body)[: len(body) - len(tail)], json_budget(self.model)), "request", REQUEST)
        if document.get("model_name") not in (None, self.model.name):
            raise InvalidRequestError(
                f"request model_name must be {self.model.name!r}, as in the path, got {shown(document['model_name'])}."
            )
        parameters = _parameters(document, "request")
        binary_default = _truth("binary_data_output", parameters.pop("binary_data_output", False))
        outputs, binary_outputs = self._requested_outputs(document.get("outputs"), binary_default)
        return InferRequest(
            self._input(document.get("inputs"), tail),
            id=_id(document.get("id")),
            parameters={name: checked_parameter(name, value, self.model) for name, value in parameters.items()},
            outputs=outputs,
            binary_outputs=binary_outputs,
        )

    def build_infer(self, request: InferRequest) -> Message:
        """See Dialect. Outputs are always listed, the scored one among them; the encoding is what the model server speaks."""
        binary = self.model.binary_tensors
        raw = self.model.input.encode(request.queries)
        tensor: dict[str, Any] = {"name": self.model.input.name, "shape": list(raw.shape), "datatype": self.model.input.dtype}
        content = b""
        if binary:
            content = bytes_from_array(raw, self.model.input.dtype)
            tensor["parameters"] = {"binary_data_size": len(content)}
        else:
            tensor["data"] = json_from_array(raw.reshape(-1), self.model.input.dtype)
        names = dict.fromkeys((*(request.outputs or self.model.allowed_outputs), self.model.output))
        document: dict[str, Any] = {
            "inputs": [tensor],
            "outputs": [{"name": name, "parameters": {"binary_data": True}} if binary else {"name": name} for name in names],
        }
        if request.parameters:
            document["parameters"] = dict(request.parameters)
        text = write_json(document)
        if not binary:
            return Message({"content-type": "application/json"}, text)
        return Message({"content-type": "application/octet-stream", HEADER_LENGTH: str(len(text))}, text + content)

    def _raw_request(self, body: bytes) -> InferRequest:
        contract = self.model.input
        itemsize = DTYPES[contract.dtype].itemsize
        if len(body) != self.model.row_values * itemsize:
            raise InvalidRequestError(f"a raw request must be one query of {self.model.row_values * itemsize} bytes, got {len(body)}.")
        raw = array_from_bytes(body, (1, *contract.raw_shape), contract.dtype)
        outputs = self.model.allowed_outputs
        return InferRequest(canonical_queries(raw, self.model), outputs=outputs, binary_outputs=frozenset(outputs))

    def _input(self, inputs: object, tail: memoryview) -> Queries:
        contract = self.model.input
        if not isinstance(inputs, list) or len(inputs) != 1:
            raise InvalidRequestError(f"request inputs must be a list of the one input {contract.name!r}, got {_counted(inputs)}.")
        tensor = checked_object(inputs[0], "input", INPUT)
        if tensor.get("name") != contract.name:
            raise InvalidRequestError(f"input name must be {contract.name!r}, got {shown(tensor.get('name'))}.")
        if tensor.get("datatype") != contract.dtype:
            raise InvalidRequestError(f"input datatype must be {contract.dtype}, got {shown(tensor.get('datatype'))}.")
        shape = self._shape(tensor.get("shape"))
        parameters = _parameters(tensor, "input")
        size = parameters.pop("binary_data_size", None)
        if parameters:
            raise InvalidRequestError(f"input parameter {shown(next(iter(parameters)))} is not understood here: send the data in the body.")
        if ("data" in tensor) == (size is not None):
            raise InvalidRequestError(f"input must have either data or binary_data_size, got {'both' if 'data' in tensor else 'neither'}.")
        if size is None:
            if len(tail):
                raise InvalidRequestError(f"body must end with its JSON part where the input has data, got {len(tail)} bytes more.")
            return canonical_queries(array_from_json(tensor["data"], shape, contract.dtype), self.model)
        if type(size) is not int or size != len(tail) or size != math.prod(shape) * DTYPES[contract.dtype].itemsize:
            raise InvalidRequestError(
                f"binary_data_size must be the {math.prod(shape) * DTYPES[contract.dtype].itemsize} bytes of shape {list(shape)}, "
                f"which follow the JSON part, got {shown(size)} and {len(tail)} bytes there."
            )
        return canonical_queries(array_from_bytes(tail, shape, contract.dtype), self.model)

    def _shape(self, shape: object) -> tuple[int, ...]:
        wanted = self.model.input.raw_shape
        if not isinstance(shape, list) or any(type(side) is not int for side in shape) or tuple(shape[1:]) != wanted:
            raise InvalidRequestError(f"input shape must be [rows, {', '.join(map(str, wanted))}], got {shown_shape(shape)}.")
        return (checked_rows(shape[0], self.model), *wanted)

    def _requested_outputs(self, outputs: object, binary_default: bool) -> tuple[tuple[str, ...], frozenset[str]]:
        allowed = self.model.allowed_outputs
        if outputs is None or outputs == []:
            return allowed, frozenset(allowed if binary_default else ())
        if not isinstance(outputs, list):
            raise InvalidRequestError(f"request outputs must be a list, got {shown(outputs)}.")
        names, binary = [], set()
        for requested in outputs:
            name = checked_object(requested, "requested output", OUTPUT).get("name")
            if name not in allowed or name in names:
                raise InvalidRequestError(f"requested output must be one of {', '.join(allowed)}, each once, got {shown(name)}.")
            parameters = _parameters(requested, "requested output")
            wants_binary = _truth("binary_data", parameters.pop("binary_data", binary_default))
            if parameters:
                raise InvalidRequestError(f"output parameter {shown(next(iter(parameters)))} is not understood here: leave it out.")
            names.append(name)
            if wants_binary:
                binary.add(name)
        return tuple(names), frozenset(binary)

    # ------------------------------------------------------------------ answers, metadata

    def parse_infer_response(self, body: bytes, headers: Mapping[str, str], request: InferRequest) -> InferResponse:
        """See Dialect."""
        return read_answer(body, headers, self.model, len(request.queries))

    def build_infer_response(self, response: InferResponse, request: InferRequest) -> Message:
        """See Dialect. The id is the client's; the model server's where the client gave none."""
        return write_answer(response, request, self.model)

    def parse_metadata(self, body: bytes) -> ModelMetadata:
        """See Dialect."""
        try:
            document = read_json(body)
            return ModelMetadata(
                str(document["name"]),
                tuple(map(str, document.get("versions") or ())),
                tuple(map(_spec, document.get("inputs") or ())),
                tuple(map(_spec, document.get("outputs") or ())),
            )
        except (WireError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise InvalidResponseError(f"model metadata must give name, inputs and outputs, got {type(error).__name__}: {error}") from error

    def parse_extensions(self, body: bytes) -> frozenset[str]:
        """See Dialect: `binary_tensor_data` is among them where the server takes binary tensors."""
        try:
            return frozenset(map(str, read_json(body).get("extensions") or ()))
        except (WireError, AttributeError, TypeError) as error:
            raise InvalidResponseError(
                f"server metadata must be an object with a list of extensions, got {type(error).__name__}"
            ) from error


def _parameters(holder: dict[str, Any], what: str) -> dict[str, Any]:
    """A copy, its values as yet unchecked."""
    parameters = holder.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidRequestError(f"{what} parameters must be a JSON object, got {shown(parameters)}.")
    return dict(parameters)


def _truth(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequestError(f"parameter {name} must be true or false, got {shown(value)}.")
    return value


def _id(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > LONGEST_ID:
        raise InvalidRequestError(f"request id must be a string of at most {LONGEST_ID} characters, got {shown(value)}.")
    return value


def _counted(inputs: object) -> str:
    return f"{len(inputs)} of them" if isinstance(inputs, list) else shown(inputs)


def _spec(stored: dict[str, Any]) -> TensorSpec:
    shape = stored.get("shape")
    return TensorSpec(str(stored["name"]), str(stored["datatype"]), None if shape is None else tuple(int(side) for side in shape))
