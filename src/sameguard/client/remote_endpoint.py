"""A model behind a URL, guarded or not, as an Endpoint: whatever runs against a function runs against it.

A guarded answer is paid for; a batch that is too costly, too large or refused is asked again in halves, since one request has one answer
and an Endpoint has one for each row. What is refused at last comes back as any Endpoint's refusal does. Asked by one thread at a time. Queries
are sent one request after the other, in order: a ledger relies on that.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import NamedTuple

import numpy as np

from sameguard.client.background import BackgroundLoop
from sameguard.client.config import ClientConfig
from sameguard.client.errors import ChallengeTooCostlyError, EndpointUnavailableError, UnexpectedAnswerError
from sameguard.client.session import TRY_AGAIN, GuardSession, Reply, Traffic
from sameguard.client.solving import Spending, challenge_in
from sameguard.contract import InputContract
from sameguard.endpoint import Answers
from sameguard.errors import ConfigurationError, InvalidVictimError
from sameguard.protocol import (
    BINARY_EXTENSION,
    DIALECTS,
    InferRequest,
    InvalidResponseError,
    ModelContract,
    ModelMetadata,
    PlainJsonPaths,
    WireError,
    ask,
    check_metadata,
    read_headers,
)
from sameguard.shapes import Queries

NO_METADATA = (401, 403, 404, 405, 501)  # of servers and gateways that do not show them
NO_DOOR = (404, 405, 501)
METADATA_BYTES = 2**20
PLAIN = {"accept-encoding": "identity", "user-agent": "sameguard"}


@dataclass
class Rows:
    """Queries by what became of them. unpaid: refused rows that this client would have had to pay for. splits: of batches."""

    sent: int = 0
    answered: int = 0
    refused: int = 0
    unpaid: int = 0
    splits: int = 0


class ServerDescription(NamedTuple):
    """What a server says of itself. metadata: None where it does not tell. binary_tensors: it takes queries as bytes."""

    metadata: ModelMetadata | None
    binary_tensors: bool


class RemoteEndpoint:
    """The model at `url`, asked in a dialect (oip, tf-serving, plain-json). It is an Endpoint; close it, or use it as a context manager.

    headers: sent with every request, such as an API key. batch_rows: of one request, at most and by default the model's max_rows.
    split_refused: ask a batch that is refused, or not paid for, again in halves, so that one suspicious row does not cost the others their
    answers; the guard counts every one of them again. Without it the whole batch is refused.
    rows, traffic: what was asked and what it cost. sleep, clock: of the session, replaced in tests.

    Raises ConfigurationError for an address, dialect or batch_rows that cannot be.
    """

    def __init__(
        self,
        url: str,
        model: ModelContract,
        dialect: str = "oip",
        *,
        headers: Mapping[str, str] | None = None,
        config: ClientConfig | None = None,
        batch_rows: int | None = None,
        split_refused: bool = True,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if dialect not in DIALECTS:
            raise ConfigurationError(f"dialect must be one of {', '.join(DIALECTS)}, got {dialect!r}.")
        single = dialect == "plain-json" and not model.plain_json.batched
        most = 1 if single else model.max_rows
        if batch_rows is not None and not 1 <= batch_rows <= most:
            raise ConfigurationError(f"batch_rows must be in [1, {most}], what the model takes at once, got {batch_rows}.")
        config = config or ClientConfig()
        self.model = model
        self.contract: InputContract = model.input
        self.classes = model.classes
        self.batch_rows = batch_rows or most
        self.split_refused = split_refused
        self.rows = Rows()
        self._dialect_name = dialect
        self._dialect = DIALECTS[dialect](replace(model, limits=replace(model.limits, answer_bytes=config.response_bytes)))
        self._session = GuardSession(url, headers={**PLAIN, **(headers or {})}, config=config, sleep=sleep, clock=clock)
        self._background = BackgroundLoop(self._session.__aexit__)
        self._background.run(self._session.__aenter__())

    @classmethod
    def discover(
        cls,
        url: str,
        model_name: str,
        contract: InputContract,
        classes: int | None = None,
        dialect: str = "oip",
        *,
        output: str | None = None,
        output_kind: str = "probs",
        version: str | None = None,
        label: str | None = None,
        max_rows: int = 64,
        plain_json: PlainJsonPaths | None = None,
        headers: Mapping[str, str] | None = None,
        config: ClientConfig | None = None,
        batch_rows: int | None = None,
        split_refused: bool = True,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> "RemoteEndpoint":
        """An endpoint whose names, classes and encoding the server itself tells, where it does.

        output: None takes the only output. classes: None takes that output's width. Raises ConfigurationError where the server has another
        model than `contract` says, or does not tell what is left out here.
        """
        model = ModelContract(
            model_name, contract, classes or 2, output or "output", output_kind, version, label, max_rows=max_rows,
            plain_json=plain_json or PlainJsonPaths(),
        )  # fmt: skip
        with cls(url, model, dialect, headers=headers, config=config, sleep=sleep, clock=clock) as asked:
            metadata, binary_tensors = asked.describe()
        if metadata is not None:
            model = _completed(model, metadata, output, classes)
            check_metadata(metadata, model)
        elif classes is None:
            raise ConfigurationError(
                f"{url} must tell the classes of model {model_name!r}, got no metadata of it in dialect {dialect}: check the model's name and "
                f"the dialect ({_others(dialect)}?), or give classes."
            )
        model = replace(model, binary_tensors=binary_tensors)
        return cls(
            url,
            model,
            dialect,
            headers=headers,
            config=config,
            batch_rows=batch_rows,
            split_refused=split_refused,
            sleep=sleep,
            clock=clock,
        )

    @property
    def url(self) -> str:
        return self._session.url

    @property
    def traffic(self) -> Traffic:
        """What the session has sent and spent so far."""
        return self._session.traffic

    def __enter__(self) -> "RemoteEndpoint":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; an endpoint that nobody refers to any more is closed, too."""
        self._background.close()

    # ------------------------------------------------------------------ asking

    def query(self, queries: np.ndarray) -> Answers:
        """Answers to canonical queries; refused rows hold NaN.

        Raises InvalidQueryError, EndpointUnavailableError where the server does not answer however often it is asked, UnexpectedAnswerError
        where it answers what asking again would not change, InvalidVictimError where the answer is not what the model contract says,
        InvalidChallengeError for a challenge that no honest guard would set, CallTooCostlyError where all challenges together take more than
        the config spends on one call.
        """
        queries = self.contract.canonicalise(queries)
        return self._background.run(self._in_batches(queries))

    async def _in_batches(self, queries: Queries) -> Answers:
        parts, start, spending = [], 0, Spending()
        while start < len(queries):
            batch = queries[start : start + self.batch_rows]
            start += len(batch)
            parts.append(await self._batch(batch, spending))
        return _joined(parts)

    async def _batch(self, queries: Queries, spending: Spending) -> Answers:
        request = ask(queries, self.model)
        message = self._dialect.build_infer(request)
        self.rows.sent += len(queries)
        try:
            reply = await self._session.post(self._dialect.infer_path, message.headers, message.body, spending=spending)
        except ChallengeTooCostlyError:
            return await self._in_halves(queries, spending) if len(queries) > 1 else self._refused(queries, unpaid=True)
        if reply.status == 200:
            return self._answers(reply, request)
        kind = reply.problem.kind
        if reply.status == 413 and len(queries) > 1:
            if kind != "batch-too-costly":
                self.batch_rows = min(self.batch_rows, len(queries) // 2)  # too many bytes: so will be the next one
            return await self._in_halves(queries, spending)
        if kind == "batch-too-costly":
            return self._refused(queries)
        unpaid = kind != "query-rejected" and challenge_in(reply.problem) is not None
        if kind != "query-rejected" and not unpaid:
            raise self._unusable(reply)
        if self.split_refused and len(queries) > 1:
            return await self._in_halves(queries, spending)
        return self._refused(queries, unpaid=unpaid)

    async def _in_halves(self, queries: Queries, spending: Spending) -> Answers:
        self.rows.splits += 1
        middle = len(queries) // 2
        return _joined([await self._batch(queries[:middle], spending), await self._batch(queries[middle:], spending)])

    def _answers(self, reply: Reply, request: InferRequest) -> Answers:
        try:
            response = self._dialect.parse_infer_response(reply.body, read_headers(reply.raw_headers), request)
        except WireError as error:
            why = error.detail if isinstance(error, InvalidResponseError) else str(error)
            raise InvalidVictimError(f"answer of {self.url} cannot be used: {why}") from error
        self.rows.answered += len(request.queries)
        return Answers(response.probs, np.ones(len(request.queries), bool))

    def _refused(self, queries: Queries, *, unpaid: bool = False) -> Answers:
        self.rows.refused += len(queries)
        self.rows.unpaid += len(queries) if unpaid else 0
        return Answers(np.full((len(queries), self.classes), np.nan, np.float32), np.zeros(len(queries), bool))

    def _unusable(self, reply: Reply) -> Exception:
        if reply.status in TRY_AGAIN:
            attempts = self._session.config.attempts
            return EndpointUnavailableError(
                f"{self.url} must answer, got {reply.said()} at the last of {attempts} attempts: try again later. What a ledger holds is kept, "
                "and the same run goes on from there."
            )
        hint = ""
        if 300 <= reply.status < 400:
            hint = ": redirects are not followed, give the address that it leads to"
        elif reply.status in NO_DOOR:
            hint = f": check the model's name, {self.model.name!r}, and the dialect, {self._dialect_name} ({_others(self._dialect_name)}?)"
        return UnexpectedAnswerError(f"{self.url}{self._dialect.infer_path} must answer with probabilities, got {reply.said()}{hint}")

    # ------------------------------------------------------------------ what the server says of itself

    def describe(self) -> ServerDescription:
        """The model's metadata and whether binary tensors are spoken, where dialect and server tell.

        Raises EndpointUnavailableError, UnexpectedAnswerError, InvalidVictimError where the metadata cannot be read.
        """
        return self._background.run(self._describe())

    async def _describe(self) -> ServerDescription:
        dialect = self._dialect
        extensions = await self._told(dialect.extensions_path, dialect.parse_extensions)
        metadata = await self._told(dialect.metadata_path, dialect.parse_metadata)
        return ServerDescription(metadata, BINARY_EXTENSION in (extensions or ()))

    async def _told(self, path: str | None, read: Callable) -> ModelMetadata | frozenset[str] | None:
        if path is None:
            return None
        reply = await self._session.get(path, response_bytes=METADATA_BYTES)
        if reply.status in NO_METADATA:
            return None
        if reply.status != 200:
            raise self._unusable(reply)
        try:
            return read(reply.body)
        except InvalidResponseError as error:
            raise InvalidVictimError(
                f"metadata at {self.url}{path} cannot be read: {error.detail}. Check the dialect, {self._dialect_name} "
                f"({_others(self._dialect_name)}?)."
            ) from error


def _others(dialect: str) -> str:
    return " or ".join(name for name in DIALECTS if name != dialect)


def _joined(parts: list[Answers]) -> Answers:
    return Answers(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _completed(model: ModelContract, metadata: ModelMetadata, output: str | None, classes: int | None) -> ModelContract:
    """The model with the output's name and width as the server tells them, where they were left open."""
    if output is None and len(metadata.outputs) == 1:
        model = replace(model, output=metadata.outputs[0].name)
    named = [spec for spec in metadata.outputs if spec.name == model.output]
    if classes is not None or (metadata.outputs and not named):  # check_metadata says which outputs there are
        return model
    shape = named[0].shape if named else None
    if not shape or len(shape) != 2 or shape[-1] < 2:
        raise ConfigurationError(f"model {model.name} does not tell the number of classes of output {model.output!r}: give classes.")
    return replace(model, classes=shape[-1])
