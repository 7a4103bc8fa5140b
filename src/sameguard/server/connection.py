"""One client's connection: uvicorn's HTTP protocol with the limits that it has not.

Slow headers, bodies in too many pieces, requests that pile up behind the one at work, answers that nobody reads: each would hold a connection,
or memory, for as long as a client likes. How many there may be is `server.connection_limits`'s, what happens to a request that came whole
`server.app`'s.
"""

import asyncio
import re
from typing import ClassVar

import h11
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol

from sameguard.server.connection_limits import Connections
from sameguard.server.settings import ListenSettings

PARSER_BYTES = 64 * 2**10  # unparsed: headers (`listen.header_bytes` is smaller, and answered politely), requests behind the one at work
LENGTH = re.compile(rb"\r\ncontent-length:([^\r]*)", re.IGNORECASE)


def bounded_protocol(limits: ListenSettings, among: Connections | None = None) -> type[asyncio.Protocol]:
    """For `uvicorn.Config(http=...)`. among: where its connections are counted, by default among themselves."""

    class Bounded(BoundedProtocol):
        pass

    Bounded.limits = limits
    Bounded.among = among or Connections(limits.connections, limits.peer_connections)
    return Bounded


class BoundedProtocol(H11Protocol):
    """limits: header_seconds until headers are complete, body_pieces of one body, send_seconds until an answer is read."""

    limits: ClassVar[ListenSettings]
    among: ClassVar[Connections]
    _headers_due: asyncio.TimerHandle | None = None
    _reading_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.conn = _CountingConnection(self.limits.body_pieces)
        self.flow = _BoundedFlow(transport, self.conn)
        self._watch_headers()
        self.among.opened(transport, self._address)

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except h11.LocalProtocolError:  # nonsense after an early answer: there is no second one to give
            self.transport.abort()
            return
        self._watch_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._headers_due, self._reading_due):
            if timer is not None:
                timer.cancel()
        self.among.closed(self.transport, self._address)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reading()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.flow.resume_reading()  # what piled up is parsed now
        if self.transport.get_write_buffer_size():
            self._watch_reading()

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""

    def _watch_headers(self) -> None:
        """uvicorn waits for ever: a client that sends a byte a minute would hold a connection for nothing."""
        if self.cycle is not None and not self.cycle.response_complete:
            if self._headers_due is not None:
                self._headers_due.cancel()
                self._headers_due = None
        elif self._headers_due is None:
            self._headers_due = self.loop.call_later(self.limits.header_seconds, self._close_unless_busy)

    def _close_unless_busy(self) -> None:
        self._headers_due = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _watch_reading(self) -> None:
        """A closed connection stays until the last byte is read: a client that never reads would keep it, and the answer's memory."""
        if self._reading_due is None:
            self._reading_due = self.loop.call_later(self.limits.send_seconds, self._abort_unless_read)

    def _abort_unless_read(self) -> None:
        self._reading_due = None
        if self.transport.get_write_buffer_size():
            self.transport.abort()


class _CountingConnection(h11.Connection):
    """Parses a body of at most so many pieces: chunks of a byte each cost a thousand times what the body costs.

    A request with two opinions of its end ends the connection, and so does one that is written as only lenient readers understand it: whoever
    stands before us may hold the other opinion.
    """

    def __init__(self, most_pieces: int) -> None:
        super().__init__(h11.SERVER, PARSER_BYTES)
        self.most_pieces = most_pieces
        self._pieces = 0

    def next_event(self) -> object:
        unread = self.trailing_data[0] if self.their_state is h11.IDLE else b""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._pieces = 0
            _check_head(unread[: len(unread) - len(self.trailing_data[0])])
            if {b"content-length", b"transfer-encoding"} <= {name for name, _ in event.headers}:
                raise h11.RemoteProtocolError("request must have Content-Length or Transfer-Encoding, got both.")
            if event.http_version == b"1.0" and any(name == b"transfer-encoding" for name, _ in event.headers):
                raise h11.RemoteProtocolError("request of HTTP/1.0 must have no Transfer-Encoding, got one.")
        elif isinstance(event, h11.Data):
            self._pieces += 1
            if self._pieces > self.most_pieces:
                raise h11.RemoteProtocolError(f"body must come in at most {self.most_pieces} pieces, got more.")
        return event


def _check_head(head: bytes) -> None:
    """Raises RemoteProtocolError for lines that h11 mends before anybody sees them. Lines behind a last chunk are not looked at."""
    if head.count(b"\n") != head.count(b"\r\n"):
        raise h11.RemoteProtocolError("lines of a request must end with CR and LF, got LF alone.")
    if b"\r\n " in head or b"\r\n\t" in head:
        raise h11.RemoteProtocolError("a header must be one line, got one that goes on in the next.")
    lengths = LENGTH.findall(head)
    if len(lengths) > 1 or any(b"," in length for length in lengths):
        raise h11.RemoteProtocolError("request must have one Content-Length, got more.")


class _BoundedFlow(FlowControl):
    """Reads on only while little lies unparsed: whoever waits for a client to leave resumes reading, and would fill the memory with requests."""

    def __init__(self, transport: asyncio.Transport, connection: h11.Connection) -> None:
        super().__init__(transport)
        self.connection = connection

    def resume_reading(self) -> None:
        if len(self.connection.trailing_data[0]) <= PARSER_BYTES:
            super().resume_reading()
