"""Wire dialects: bytes to canonical arrays and back, strict, and the same for the server and for its clients.

A message is parsed once; whatever is not understood is refused; what goes on is written anew from the canonical array.
"""

from collections.abc import Callable

from sameguard.protocol.dialect import Dialect, ask
from sameguard.protocol.digest import canonical_digest
from sameguard.protocol.errors import BodyTooLargeError, InvalidRequestError, InvalidResponseError, UnsupportedMediaError, WireError
from sameguard.protocol.headers import read_headers, travelling_headers
from sameguard.protocol.inflate import inflate
from sameguard.protocol.messages import InferRequest, InferResponse, Message, Tensor
from sameguard.protocol.metadata import ModelMetadata, TensorSpec, check_metadata
from sameguard.protocol.model import Limits, ModelContract, PlainJsonPaths
from sameguard.protocol.open_inference import BINARY_EXTENSION, OpenInference
from sameguard.protocol.plain_json import PlainJson
from sameguard.protocol.problems import PROBLEMS, Problem, read_problem
from sameguard.protocol.routes import DENIED, Route, RouteKind, RouteTable
from sameguard.protocol.tf_serving import TfServing

DIALECTS: dict[str, Callable[[ModelContract], Dialect]] = {"oip": OpenInference, "tf-serving": TfServing, "plain-json": PlainJson}

__all__ = [
    "BINARY_EXTENSION",
    "DENIED",
    "DIALECTS",
    "PROBLEMS",
    "BodyTooLargeError",
    "Dialect",
    "InferRequest",
    "InferResponse",
    "InvalidRequestError",
    "InvalidResponseError",
    "Limits",
    "Message",
    "ModelContract",
    "ModelMetadata",
    "OpenInference",
    "PlainJson",
    "PlainJsonPaths",
    "Problem",
    "Route",
    "RouteKind",
    "RouteTable",
    "Tensor",
    "TensorSpec",
    "TfServing",
    "UnsupportedMediaError",
    "WireError",
    "ask",
    "canonical_digest",
    "check_metadata",
    "inflate",
    "read_headers",
    "read_problem",
    "travelling_headers",
]
