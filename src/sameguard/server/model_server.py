"""What the guard finds out about the model server: is it ready, is it the artefact's model, which tensors, does it answer as at calibration?"""

import numpy as np
import structlog

from sameguard.errors import SameguardError
from sameguard.protocol import BINARY_EXTENSION, Dialect, InvalidResponseError, WireError, ask, check_metadata
from sameguard.server.snapshot import Snapshot
from sameguard.server.spoken_dialects import NO_DOOR, dialect_hint
from sameguard.server.upstream import Upstream, UpstreamFailedError

log = structlog.get_logger("sameguard")


class CanariesUnansweredError(SameguardError, RuntimeError):
    """The model server refused the canary queries, or its answers cannot be read; unreadable says which."""

    def __init__(self, message: str, *, unreadable: bool) -> None:
        super().__init__(message)
        self.unreadable = unreadable


class ModelServer:
    """Looks at the model server through an open `Upstream`."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.settings = upstream.settings

    async def check_ready(self, dialect: Dialect) -> None:
        """Raises UpstreamFailedError. A server without a door for it is ready where the dialect leaves that open."""
        status = (await self.upstream.get(dialect.ready_path)).status
        if 200 <= status < 300:
            return
        hint = await dialect_hint(self._status_of, self.settings) if status in NO_DOOR else ""
        if status not in NO_DOOR or not dialect.ready_is_optional:
            remedy = hint or ("check upstream.dialect and upstream.model" if status in NO_DOOR else "it is asked again until it is")
            message = f"model server {self.settings.url} must be ready, got status {status} from {dialect.ready_path}: {remedy}."
            raise UpstreamFailedError(message, "upstream-not-ready")
        if hint:
            log.warning("model server", path=dialect.ready_path, status=status, hint=hint)

    async def _status_of(self, path: str) -> int | None:
        try:
            return (await self.upstream.get(path)).status
        except UpstreamFailedError:
            return None

    async def check_model(self, dialect: Dialect) -> None:
        """Raises UpstreamFailedError where its metadata cannot be had, ConfigurationError where they are another model's."""
        if dialect.metadata_path is None:
            return
        found = await self.upstream.get(dialect.metadata_path)
        if found.status != 200:
            return
        try:
            check_metadata(dialect.parse_metadata(found.body), dialect.model)
        except InvalidResponseError as error:
            raise UpstreamFailedError(str(error), "upstream-metadata") from error

    async def speaks_binary(self, dialect: Dialect) -> bool:
        """Whether it says that it takes binary tensors. Raises UpstreamFailedError."""
        if dialect.extensions_path is None:
            return False
        found = await self.upstream.get(dialect.extensions_path)
        try:
            return found.status == 200 and BINARY_EXTENSION in dialect.parse_extensions(found.body)
        except WireError:
            return False

    async def canary_shift(self, snapshot: Snapshot) -> float:
        """Mean total variation between its answers to benign queries now and at calibration.

        Raises UpstreamFailedError, CanariesUnansweredError.
        """
        queries, dialect, parts = snapshot.calibration.canary_queries, snapshot.dialect, []
        single = self.settings.dialect == "plain-json" and not self.settings.plain_json.batched
        rows = 1 if single else snapshot.model.max_rows
        for start in range(0, len(queries), rows):
            request = ask(queries[start : start + rows], snapshot.model)
            answer = await self.upstream.infer(dialect.infer_path, dialect.build_infer(request), {})
            if answer.status != 200:
                raise CanariesUnansweredError(f"model server answered canary queries with status {answer.status}", unreadable=False)
            try:
                parts.append(dialect.parse_infer_response(answer.body, answer.headers, request).probs)
            except WireError as error:
                raise CanariesUnansweredError(
                    f"model server's answer to canary queries cannot be read: {error}", unreadable=True
                ) from error
        return float(0.5 * np.abs(np.concatenate(parts) - snapshot.calibration.canary_probs).sum(axis=1).mean())
