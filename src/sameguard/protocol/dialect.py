"""What server and client need of a wire dialect: the same for all, so that neither asks which one it is."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np

from sameguard.errors import InvalidQueryError, InvalidVictimError
from sameguard.protocol.errors import InvalidRequestError, InvalidResponseError, WireError, shown
from sameguard.protocol.messages import InferRequest, InferResponse, Message, Parameter
from sameguard.protocol.metadata import ModelMetadata
from sameguard.protocol.model import ModelContract
from sameguard.protocol.routes import RouteTable
from sameguard.shapes import Probs, Queries
from sameguard.victim import checked_probs


@runtime_checkable
class Dialect(Protocol):
    """One dialect, speaking about one model. Headers are given as `read_headers` makes them; bodies as they came, still compressed.

    routes: the doors, for the server. infer_path, ready_path: where the model server's are. ready_is_optional: a server may lack that door
    and be well. metadata_path, extensions_path: None where the dialect has none.
    """

    model: ModelContract
    routes: RouteTable
    infer_path: str
    ready_path: str
    ready_is_optional: bool
    metadata_path: str | None
    extensions_path: str | None

    def parse_infer(self, body: bytes, headers: Mapping[str, str]) -> InferRequest:
        """What a client asks. Raises InvalidRequestError, BodyTooLargeError, UnsupportedMediaError."""
        ...

    def build_infer(self, request: InferRequest) -> Message:
        """The request for the model server, from the canonical queries: nothing of the client's bytes is in it."""
        ...

    def parse_infer_response(self, body: bytes, headers: Mapping[str, str], request: InferRequest) -> InferResponse:
        """A model server's answer with status 200. Raises InvalidResponseError."""
        ...

    def build_infer_response(self, response: InferResponse, request: InferRequest) -> Message:
        """The answer for the client, in the encoding that it asked for. Raises InvalidResponseError where that cannot carry it."""
        ...

    def parse_metadata(self, body: bytes) -> ModelMetadata:
        """Raises InvalidResponseError; ConfigurationError where the dialect has no metadata."""
        ...

    def parse_extensions(self, body: bytes) -> frozenset[str]:
        """Names of the protocol extensions that the server speaks. Raises InvalidResponseError."""
        ...


def ask(queries: Queries, model: ModelContract, *, id: str | None = None) -> InferRequest:
    """A client's request for the scored output alone; binary where the server speaks it. queries: canonical."""
    wanted = frozenset({model.output}) if model.binary_tensors else frozenset()
    return InferRequest(queries, id=id, outputs=(model.output,), binary_outputs=wanted)


# ---------------------------------------------------------------------- shared by the dialects


def canonical_queries(raw: np.ndarray, model: ModelContract) -> Queries:
    """The contract applied, once. Raises InvalidRequestError."""
    try:
        return model.input.decode(raw)
    except InvalidQueryError as error:
        raise InvalidRequestError(str(error)) from error


def scored_output(array: np.ndarray, model: ModelContract, rows: int) -> Probs:
    """The answer to each row as probabilities. Raises InvalidResponseError where it is not what `model` says."""
    try:
        return checked_probs(array, rows, model.classes, model.output_kind, f"output {model.output!r}")
    except InvalidVictimError as error:
        raise InvalidResponseError(str(error)) from error


def checked_rows(rows: object, model: ModelContract) -> int:
    """The batch axis of a request. Raises InvalidRequestError."""
    if type(rows) is not int or not 1 <= rows <= model.max_rows:
        remedy = "send fewer rows at once" if type(rows) is int and rows > model.max_rows else "send at least one"
        raise InvalidRequestError(f"batch must hold 1 to {model.max_rows} rows, got {shown(rows)}: {remedy}.")
    return rows


def checked_parameter(name: str, value: object, model: ModelContract) -> Parameter:
    """An allowed request parameter. Raises InvalidRequestError for others, and for values that are not text, number or truth value."""
    if name not in model.parameters:
        raise InvalidRequestError(f"request parameter {shown(name)} is not understood here: leave it out.")
    if not isinstance(value, str | bool | int | float):
        raise InvalidRequestError(f"request parameter {name} must be a string, a number, true or false, got {shown(value)}.")
    return value


def checked_object(value: object, what: str, known: frozenset[str]) -> dict:
    """A JSON object with no other members than these. Raises InvalidRequestError."""
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{what} must be a JSON object, got {shown(value)}.")
    unknown = sorted(value.keys() - known)
    if unknown:
        raise InvalidRequestError(f"{what} must have no members besides {', '.join(sorted(known))}, got {shown(unknown[0])}.")
    return value


def as_response_error(error: WireError) -> InvalidResponseError:
    """The same finding, in what a model server sent."""
    return error if isinstance(error, InvalidResponseError) else InvalidResponseError(str(error))
