"""A real HTTP server on loopback, with the faults that servers have: no ranges, hanging up, stalling, lying about where they go on."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Serves `files` by path; the other attributes are its faults, and may be changed between requests."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges = True  # False: ignores the Range header, sends everything with 200
        self.hang_up_after: int | None = None  # bytes of the body
        self.stall_after: int | None = None  # bytes of the body, then silence until close()
        self.send_length = True
        self.length: int | None = None  # a Content-Length that is not the body's
        self.first_byte: int | None = None  # a Content-Range that is not what was asked for
        self.requests: list[tuple[str, str | None]] = []  # path, Range header
        self.sent = 0
        self._released = threading.Event()
        self._http = _QuietServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_state": self}))
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        self._released.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def wait_for_close(self) -> None:
        self._released.wait()


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, request, client_address) -> None:
        pass  # a client that hung up is what some tests are about


class _Handler(BaseHTTPRequestHandler):
    server_state: Server

    def log_message(self, *arguments) -> None:
        pass

    def do_GET(self) -> None:
        state, asked = self.server_state, self.headers.get("Range")
        state.requests.append((self.path, asked))
        body = state.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and state.ranges else 0
        if start and start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            first = start if state.first_byte is None else state.first_byte
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        if state.send_length:
            self.send_header("Content-Length", str(len(body) - start if state.length is None else state.length))
        self.end_headers()
        self._send_body(body[start:])

    def _send_body(self, body: bytes) -> None:
        state = self.server_state
        limit = state.hang_up_after if state.hang_up_after is not None else state.stall_after
        part = body[:limit]
        self.wfile.write(part)
        self.wfile.flush()
        state.sent += len(part)
        if state.stall_after is not None:
            state.wait_for_close()
