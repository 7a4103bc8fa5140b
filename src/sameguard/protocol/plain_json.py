"""Any server that takes JSON with the input at one place and answers JSON with the probabilities at another: LitServe, BentoML, Ray Serve.

Both places are JSON pointers. A request holds its input, the allowed parameters as members at its top, and nothing else. An answer passes
whole, since nothing tells which of its members are outputs; once coarsened, only what stands at the pointer is left.
"""

from collections.abc import Mapping

import numpy as np

from sameguard.errors import ConfigurationError
from sameguard.protocol.dialect import as_response_error, canonical_queries, checked_parameter, checked_rows, scored_output
from sameguard.protocol.errors import InvalidRequestError, WireError, shown
from sameguard.protocol.headers import check_media_type
from sameguard.protocol.inflate import inflate
from sameguard.protocol.json_pointer import JsonPointer
from sameguard.protocol.json_reading import read_json, write_json
from sameguard.protocol.messages import InferRequest, InferResponse, Message, Tensor
from sameguard.protocol.metadata import ModelMetadata
from sameguard.protocol.model import ModelContract
from sameguard.protocol.routes import Route, RouteKind, RouteTable
from sameguard.protocol.tensors import array_from_json, array_of_any_shape, json_budget, json_from_array


class PlainJson:
    """The dialect for one model. It is a Dialect."""

    def __init__(self, model: ModelContract) -> None:
        paths = model.plain_json
        self.model = model
        self.tensor = JsonPointer(paths.tensor)
        self.probs = JsonPointer(paths.probs)
        self.parameters = frozenset(model.parameters)
        if self.parameters and (not self.tensor.tokens or self.tensor.tokens[0] in {"0", *self.parameters}):
            raise ConfigurationError(f"plain-json parameters need a body that is an object, got tensor pointer {paths.tensor!r}.")
        if model.outputs:
            raise ConfigurationError(f"plain-json answers pass whole, got outputs {list(model.outputs)} to allow: leave them out.")
        self.batched = paths.batched
        self.infer_path = paths.infer
        self.ready_path = paths.health
        self.ready_is_optional = True  # there is no convention for health: many servers have none
        self.metadata_path: str | None = None
        self.extensions_path: str | None = None
        self.routes = RouteTable(
            {("POST", paths.infer): Route(RouteKind.INFER, paths.infer), ("GET", paths.health): Route(RouteKind.HEALTH, paths.health)}
        )

    def parse_infer(self, body: bytes, headers: Mapping[str, str]) -> InferRequest:
        """See Dialect."""
        check_media_type(headers, ("application/json",))
        body = inflate(body, headers.get("content-encoding", ""), self.model.request_limits)
        document = read_json(body, json_budget(self.model))
        tensor = self.tensor.get(document)
        if not self.tensor.alone(document, self.parameters):
            raise InvalidRequestError(f"request must hold its input at {self.tensor.text!r} and nothing that is not understood here.")
        names = self.parameters & document.keys() if isinstance(document, dict) else frozenset()
        if not isinstance(tensor, list):
            raise InvalidRequestError(f"input must be a list of numbers, got {shown(tensor)}.")
        rows = checked_rows(len(tensor), self.model) if self.batched else 1
        shape = self.model.input.raw_shape
        raw = array_from_json(tensor, (rows, *shape) if self.batched else shape, self.model.input.dtype)
        return InferRequest(
            canonical_queries(raw.reshape(rows, *shape), self.model),
            parameters={name: checked_parameter(name, document[name], self.model) for name in sorted(names)},
            outputs=(self.model.output,),
        )

    def build_infer(self, request: InferRequest) -> Message:
        """See Dialect. Without a batch axis a request carries one query: callers send rows one by one."""
        if not self.batched and len(request.queries) != 1:
            raise InvalidRequestError(f"batch must hold 1 row where the model server takes single queries, got {len(request.queries)}.")
        raw = self.model.input.encode(request.queries)
        document = self.tensor.build(json_from_array(raw if self.batched else raw[0], self.model.input.dtype))
        if request.parameters:
            document = {**document, **request.parameters}
        return Message({"content-type": "application/json"}, write_json(document))

    def parse_infer_response(self, body: bytes, headers: Mapping[str, str], request: InferRequest) -> InferResponse:
        """See Dialect."""
        rows = len(request.queries)
        try:
            document = read_json(inflate(body, headers.get("content-encoding", ""), self.model.answer_limits))
            array, datatype = array_of_any_shape(self.probs.get(document), f"value at {self.probs.text!r}")
        except WireError as error:
            raise as_response_error(error) from error
        tensor = Tensor(self.model.output, datatype, array if self.batched else array[np.newaxis])
        return InferResponse((tensor,), scored_output(tensor.array, self.model, rows), document=document)

    def build_infer_response(self, response: InferResponse, request: InferRequest) -> Message:
        """See Dialect."""
        document = response.document
        if document is None:
            tensor = response.tensor(self.model.output)
            document = self.probs.build(json_from_array(tensor.array if self.batched else tensor.array[0], tensor.datatype))
        return Message({"content-type": "application/json"}, write_json(document))

    def parse_metadata(self, body: bytes) -> ModelMetadata:
        """See Dialect: there is none."""
        raise ConfigurationError("plain-json servers have no metadata to check: give name, shape and classes in the settings.")

    def parse_extensions(self, body: bytes) -> frozenset[str]:
        """See Dialect: there are none."""
        return frozenset()
