"""TensorFlow Serving's REST predict, which is KServe's v1 protocol too.

Requests come row by row (`instances`) or column by column (`inputs`), the input named or, being the only one, bare; answers come back
the same way (`predictions`, `outputs`). Left out: `{"b64": ...}`, which is a string tensor there and no array of numbers; other
signatures than the default one; classify and regress.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from sameguard.errors import ConfigurationError
from sameguard.protocol.dialect import as_response_error, canonical_queries, checked_object, checked_rows, scored_output
from sameguard.protocol.errors import InvalidRequestError, InvalidResponseError, WireError, shown
from sameguard.protocol.headers import check_media_type
from sameguard.protocol.inflate import inflate
from sameguard.protocol.json_reading import read_json, write_json
from sameguard.protocol.messages import InferRequest, InferResponse, Message, Tensor
from sameguard.protocol.metadata import ModelMetadata, TensorSpec
from sameguard.protocol.model import ModelContract
from sameguard.protocol.routes import Route, RouteKind, RouteTable
from sameguard.protocol.tensors import array_from_json, array_of_any_shape, json_budget, json_from_array

REQUEST = frozenset({"instances", "inputs", "signature_name"})
SIGNATURE = "serving_default"
DATATYPES = {
    "DT_FLOAT": "FP32",
    "DT_DOUBLE": "FP64",
    "DT_HALF": "FP16",
    "DT_UINT8": "UINT8",
    "DT_INT8": "INT8",
    "DT_INT16": "INT16",
    "DT_INT32": "INT32",
    "DT_INT64": "INT64",
    "DT_BOOL": "BOOL",
    "DT_STRING": "BYTES",
}


class TfServing:
    """The dialect for one model. It is a Dialect."""

    def __init__(self, model: ModelContract) -> None:
        if model.parameters:
            raise ConfigurationError(f"tf-serving requests have no parameters, got {list(model.parameters)} to allow: leave them out.")
        self.model = model
        home = f"/v1/models/{quote(model.name)}"
        pinned = home
        if model.version is not None:
            pinned = f"{home}/versions/{quote(model.version)}"
        elif model.label is not None:
            pinned = f"{home}/labels/{quote(model.label)}"
        self.infer_path = f"{pinned}:predict"
        self.ready_path = pinned
        self.ready_is_optional = False
        self.metadata_path: str | None = f"{pinned}/metadata"
        self.extensions_path: str | None = None
        routes = {}
        for path in {home, pinned}:
            routes["POST", f"{path}:predict"] = Route(RouteKind.INFER, self.infer_path)
            routes["GET", path] = Route(RouteKind.HEALTH, pinned)
            routes["GET", f"{path}/metadata"] = Route(RouteKind.METADATA, f"{pinned}/metadata")
        self.routes = RouteTable(routes)

    # ------------------------------------------------------------------ requests

    def parse_infer(self, body: bytes, headers: Mapping[str, str]) -> InferRequest:
        """See Dialect."""
        check_media_type(headers, ("application/json",))
        body = inflate(body, headers.get("content-encoding", ""), self.model.request_limits)
        document = checked_object(read_json(body, json_budget(self.model)), "request", REQUEST)
        if document.get("signature_name", SIGNATURE) != SIGNATURE:
            raise InvalidRequestError(f"signature_name must be {SIGNATURE!r} or absent, got {shown(document['signature_name'])}.")
        if ("instances" in document) == ("inputs" in document):
            raise InvalidRequestError(f"request must have either instances or inputs, got {'both' if 'inputs' in document else 'neither'}.")
        columnar = "inputs" in document
        batch = self._column(document["inputs"]) if columnar else self._rows(document["instances"])
        if not isinstance(batch, list):
            raise InvalidRequestError(f"input must be a list of rows, got {shown(batch)}.")
        rows = checked_rows(len(batch), self.model)
        raw = array_from_json(batch, (rows, *self.model.input.raw_shape), self.model.input.dtype)
        return InferRequest(canonical_queries(raw, self.model), outputs=self.model.allowed_outputs, columnar=columnar)

    def build_infer(self, request: InferRequest) -> Message:
        """See Dialect. Written the way the client did, so that the answer comes back that way; the input always bare."""
        array = json_from_array(self.model.input.encode(request.queries), self.model.input.dtype)
        return Message({"content-type": "application/json"}, write_json({"inputs" if request.columnar else "instances": array}))

    def _column(self, inputs: object) -> object:
        if not isinstance(inputs, dict):
            return inputs
        return checked_object(inputs, "inputs", frozenset({self.model.input.name})).get(self.model.input.name)

    def _rows(self, instances: object) -> object:
        if not isinstance(instances, list) or not instances or not isinstance(instances[0], dict):
            return instances
        name = self.model.input.name
        return [checked_object(row, "instance", frozenset({name})).get(name) for row in instances]

    # ------------------------------------------------------------------ answers, metadata

    def parse_infer_response(self, body: bytes, headers: Mapping[str, str], request: InferRequest) -> InferResponse:
        """See Dialect."""
        member, rows = "outputs" if request.columnar else "predictions", len(request.queries)
        try:
            document = read_json(inflate(body, headers.get("content-encoding", ""), self.model.answer_limits))
            if not isinstance(document, dict) or member not in document:
                raise InvalidResponseError(f"answer must be a JSON object with {member}, got {shown(document)}")
            columns, named = (_columns if request.columnar else _columns_of_rows)(document[member], self.model.output)
            tensors = tuple(_tensor(name, columns[name]) for name in columns if name in self.model.allowed_outputs)
        except WireError as error:
            raise as_response_error(error) from error
        scored = next((tensor for tensor in tensors if tensor.name == self.model.output), None)
        if scored is None or any(len(tensor.array) != rows for tensor in tensors):
            raise InvalidResponseError(f"answer must hold {rows} rows of output {self.model.output!r}, got {sorted(columns)}")
        return InferResponse(tensors, scored_output(scored.array, self.model, rows), named=named)

    def build_infer_response(self, response: InferResponse, request: InferRequest) -> Message:
        """See Dialect."""
        wanted = request.outputs or self.model.allowed_outputs
        columns = {tensor.name: json_from_array(tensor.array, tensor.datatype) for tensor in response.tensors if tensor.name in wanted}
        answer: Any = columns
        if len(columns) == 1 and not response.named:
            (answer,) = columns.values()
        elif not request.columnar:
            names = list(columns)
            answer = [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return Message({"content-type": "application/json"}, write_json({"outputs" if request.columnar else "predictions": answer}))

    def parse_metadata(self, body: bytes) -> ModelMetadata:
        """See Dialect. KServe's v1 servers give a name and a state only."""
        try:
            document = read_json(body)
            spec = document.get("model_spec") or document
            signatures = document.get("metadata", {}).get("signature_def", {}).get("signature_def", {})
            signature = signatures.get(SIGNATURE, {})
            inputs, outputs = (tuple(map(_spec, (signature.get(part) or {}).items())) for part in ("inputs", "outputs"))
            return ModelMetadata(str(spec["name"]), tuple(str(spec[key]) for key in ("version",) if key in spec), inputs, outputs)
        except (WireError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise InvalidResponseError(f"model metadata must give a name and its signature, got {type(error).__name__}: {error}") from error

    def parse_extensions(self, body: bytes) -> frozenset[str]:
        """See Dialect: there are none."""
        return frozenset()


def _columns(outputs: Any, only: str) -> tuple[dict[str, Any], bool]:
    return (outputs, True) if isinstance(outputs, dict) else ({only: outputs}, False)


def _columns_of_rows(predictions: Any, only: str) -> tuple[dict[str, Any], bool]:
    if not isinstance(predictions, list) or not predictions or not isinstance(predictions[0], dict):
        return {only: predictions}, False
    names = predictions[0].keys()
    for at, row in enumerate(predictions):
        if not isinstance(row, dict) or row.keys() != names:
            raise InvalidResponseError(f"predictions must name the same outputs in every row, got others in row {at + 1}")
    return {name: [row[name] for row in predictions] for name in names}, True


def _tensor(name: str, values: Any) -> Tensor:
    if not isinstance(values, list):
        raise InvalidResponseError(f"output {shown(name)} must be a list of rows, got {shown(values)}")
    array, datatype = array_of_any_shape(values, f"output {shown(name)}")
    return Tensor(name, datatype, array)


def _spec(item: tuple[str, dict[str, Any]]) -> TensorSpec:
    name, stored = item
    shape = stored.get("tensor_shape", {})
    sides = None if shape.get("unknown_rank") else tuple(int(side["size"]) for side in shape.get("dim", ()))
    return TensorSpec(name, DATATYPES.get(stored["dtype"], stored["dtype"]), sides)
