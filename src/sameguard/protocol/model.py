"""What is known of the model behind the guard before any request comes: the frame that every message is read in.

Server and client build one from the artefact's input contract and their own settings, and hand it to a dialect. Names that are not on
it are refused; so are parameters that would change how the model server decodes a body, whoever wants to allow them.
"""

import math
import re
from dataclasses import dataclass, field, replace
from functools import cached_property

from sameguard.contract import InputContract
from sameguard.errors import ConfigurationError

NAME = re.compile(r"[A-Za-z0-9._~ -]+")  # what a path segment can carry without a second spelling that a server might fold into it
TEXT_BYTES = 64  # of one number: 24 with every digit of a double, and blanks
SPARE_BYTES = 128 * 2**10  # of a request besides its numbers
DECODING_PARAMETERS = ("binary_", "shared_memory_", "content_type", "headers", "classification")  # by prefix


@dataclass(frozen=True)
class Limits:
    """body_bytes: of a request as sent, and once inflated; answer_bytes: of an answer. inflate_ratio: inflated bytes per byte sent, beyond the first 256 kB."""

    body_bytes: int = 8 * 2**20
    inflate_ratio: int = 100
    answer_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        if min(self.body_bytes, self.inflate_ratio, self.answer_bytes) < 1:
            raise ConfigurationError(
                f"body_bytes, inflate_ratio and answer_bytes must be at least 1, got {self.body_bytes}, {self.inflate_ratio} and {self.answer_bytes}."
            )


@dataclass(frozen=True)
class PlainJsonPaths:
    """Where a plain JSON server has its doors, and where in its bodies (RFC 6901 pointers) the input and the answer are.

    batched: input and answer carry a batch axis; without it one request is one query.
    """

    infer: str = "/predict"
    health: str = "/health"
    tensor: str = "/input"
    probs: str = "/probs"
    batched: bool = True

    def __post_init__(self) -> None:
        for name, path in (("infer", self.infer), ("health", self.health)):
            if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", path) or {".", ".."} & set(path.split("/")):
                raise ConfigurationError(f"plain-json path {name} must be a plain absolute path such as /predict, got {path!r}.")
        if self.infer == self.health:
            raise ConfigurationError(f"plain-json paths infer and health must differ, got {self.infer!r} for both.")


@dataclass(frozen=True)
class ModelContract:
    """One served model: names, input, output, and what clients may ask for beyond that.

    version: pinned; messages without a version go to it, other versions are refused. label: the same for TF Serving's version labels.
    output: the output that is scored, and output_kind what it holds: probs, logits or labels. outputs: further outputs that clients may
    ask for. parameters: request parameters that are passed on (they count as part of the query). binary_tensors: the server behind
    advertises the binary tensor extension.
    """

    name: str
    input: InputContract
    classes: int
    output: str = "output"
    output_kind: str = "probs"
    version: str | None = None
    label: str | None = None
    outputs: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    max_rows: int = 64
    binary_tensors: bool = False
    limits: Limits = field(default_factory=Limits)
    plain_json: PlainJsonPaths = field(default_factory=PlainJsonPaths)

    def __post_init__(self) -> None:
        for what, name in (("name", self.name), ("version", self.version), ("label", self.label)):
            if name is not None and (not NAME.fullmatch(name) or name in (".", "..")):
                raise ConfigurationError(f"model {what} must be letters, digits, blanks and ._~- only, got {name!r}: it is part of a path.")
        if self.version is not None and self.label is not None:
            raise ConfigurationError(f"model version and label exclude each other, got {self.version!r} and {self.label!r}: give one.")
        if self.output_kind not in ("probs", "logits", "labels"):
            raise ConfigurationError(f"model output_kind must be probs, logits or labels, got {self.output_kind!r}.")
        if self.classes < 2 or self.max_rows < 1:
            raise ConfigurationError(f"model classes must be at least 2 and max_rows at least 1, got {self.classes} and {self.max_rows}.")
        for name in self.parameters:
            if name.startswith(DECODING_PARAMETERS):
                raise ConfigurationError(
                    f"model parameter {name!r} cannot be allowed: it changes what the model server reads as the input."
                )

    @property
    def allowed_outputs(self) -> tuple[str, ...]:
        """The scored output first."""
        return (self.output, *(name for name in self.outputs if name != self.output))

    @cached_property
    def request_limits(self) -> Limits:
        """body_bytes is what max_rows queries can need as text, however they are indented, where that is less: more is not worth parsing."""
        needed = self.max_rows * self.row_values * TEXT_BYTES + SPARE_BYTES
        return replace(self.limits, body_bytes=min(self.limits.body_bytes, needed))

    @cached_property
    def answer_limits(self) -> Limits:
        """body_bytes is that of answers."""
        return replace(self.limits, body_bytes=self.limits.answer_bytes)

    @property
    def row_values(self) -> int:
        """Numbers in one query."""
        return math.prod(self.input.shape)
