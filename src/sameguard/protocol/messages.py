"""The same for every dialect: what a request asks, what an answer holds, and the bytes that carry them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sameguard.protocol.digest import canonical_digest
from sameguard.protocol.errors import InvalidResponseError
from sameguard.protocol.model import ModelContract
from sameguard.shapes import Probs, Queries

Parameter = str | bool | int | float


@dataclass(frozen=True)
class Message:
    """headers: lower-case names; only those that describe the body. body: bytes as they go out."""

    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, eq=False)
class InferRequest:
    """queries: canonical; what is scored, and what is sent on. outputs: names that the client gets, all allowed ones if it listed none.

    id: the client's, returned to it and not sent on: some servers sort a batch's answers by it. binary_outputs: those wanted as bytes.
    columnar: written column by column (TF Serving's `inputs`), and answered that way.
    """

    queries: Queries
    id: str | None = None
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    binary_outputs: frozenset[str] = frozenset()
    columnar: bool = False

    def digest(self, model: ModelContract) -> bytes:
        """SHA-256 of what is asked, whatever the spelling: binds proofs, keys the score cache, names the query in the audit log."""
        return canonical_digest(
            model.name, model.version or model.label, model.input.name, model.input.dtype, self.queries, self.parameters, self.outputs
        )


@dataclass(frozen=True, eq=False)
class Tensor:
    """One output. array: its values; bytes objects for BYTES."""

    name: str
    datatype: str
    array: np.ndarray
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class InferResponse:
    """An answer that has been read and checked. probs: the scored output as probabilities, one-hot where it gives labels.

    named: single outputs are written with their name too (TF Serving leaves it out). document: the whole body, where the dialect has
    nothing but JSON.
    """

    tensors: tuple[Tensor, ...]
    probs: Probs
    model_name: str | None = None
    model_version: str | None = None
    id: str | None = None
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    named: bool = False
    document: Any = None

    def tensor(self, name: str) -> Tensor:
        """Raises InvalidResponseError where the answer has no such output."""
        for tensor in self.tensors:
            if tensor.name == name:
                return tensor
        raise InvalidResponseError(f"answer must hold output {name!r}, got {[tensor.name for tensor in self.tensors]}")

    def replaced(self, name: str, values: np.ndarray) -> "InferResponse":
        """The answer with only output `name`, holding `values` instead: for coarsened answers, beside which nothing finer may go out.

        The datatype stays, unless it has whole numbers only and the values are not whole.
        """
        tensor = self.tensor(name)
        if values.size != tensor.array.size:
            raise ValueError(f"values must be as many as the output of shape {tensor.array.shape} holds, got shape {values.shape}.")
        fits = tensor.array.dtype.kind == "f" or np.array_equal(values, np.rint(values))
        values = values.reshape(tensor.array.shape).astype(tensor.array.dtype if fits else np.float32)
        coarse = dataclasses.replace(tensor, array=values, datatype=tensor.datatype if fits else "FP32", parameters={})
        return dataclasses.replace(self, tensors=(coarse,), parameters={}, document=None)
