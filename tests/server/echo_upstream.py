"""A model server with a lenient reader of its own, which tells in its answer what it decoded.

It shares no code with the guard: sockets, the standard library's json (the last key wins, NaN is a number) and numpy. The head of a request
is split as naively as many servers do it. Each row is answered with numbers made from the SHA-256 of its bytes, so that whoever holds the
answer knows which tensor it is an answer to.
"""

import asyncio
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NUMPY = {"FP32": "<f4", "UINT8": "u1"}


@dataclass(frozen=True, eq=False)
class Seen:
    """One inference request. wire: head and body as they came. decoded: the raw array that was read from it."""

    wire: bytes
    path: str
    headers: dict[str, str]
    decoded: np.ndarray


def echo_of(raw: np.ndarray, kind: str = "logits", classes: int = 10) -> np.ndarray:
    """The answer to a raw batch, (rows, classes) float32 or (rows,) labels: the first bytes of each row's digest, in steps of 1/64."""
    rows = [hashlib.sha256(np.ascontiguousarray(row).tobytes()).digest()[:classes] for row in raw]
    logits = np.array([list(row) for row in rows], np.float32) / np.float32(64)
    if kind == "labels":
        return logits.argmax(axis=1)
    if kind == "probs":
        logits = logits.astype(np.float64) + 1e-3
        return (logits / logits.sum(axis=1, keepdims=True)).astype(np.float32)
    return logits


@dataclass
class EchoUpstream:
    """dialect: oip, tf-serving or plain-json. binary: it speaks the binary extension. kind: what it answers. dtype: of its one input.

    asked: method and path of everything, metadata and health too.
    """

    dialect: str = "oip"
    binary: bool = True
    kind: str = "logits"
    dtype: str = "FP32"
    classes: int = 10
    seen: list[Seen] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """Its address, while it listens in a thread."""
        loop = asyncio.new_event_loop()
        server = loop.run_until_complete(asyncio.start_server(self._connected, "127.0.0.1", 0))
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            asyncio.run_coroutine_threadsafe(_stopped(server), loop).result(10)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)
            loop.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                line, *lines = head.decode("latin-1").split("\r\n")[:-2]
                headers = {name.strip().lower(): value.strip() for name, _, value in (text.partition(":") for text in lines)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                answer_headers, answer = self._answered(*line.split(" ")[:2], headers, head, body)
                text = "".join(f"{name}: {value}\r\n" for name, value in {**answer_headers, "Content-Length": str(len(answer))}.items())
                writer.write(f"HTTP/1.1 200 OK\r\n{text}\r\n".encode() + answer)
        writer.close()

    def _answered(self, method: str, path: str, headers: dict[str, str], head: bytes, body: bytes) -> tuple[dict[str, str], bytes]:
        self.asked.append(f"{method} {path}")
        if method != "POST":
            extensions = ["binary_tensor_data"] if self.binary else []
            described = {"name": "digits" if path.count("/") > 1 else "echo", "extensions": extensions}
            return {"Content-Type": "application/json"}, json.dumps(described).encode()
        raw, document = self._read(body, headers)
        self.seen.append(Seen(head + body, path, headers, raw))
        return self._written(echo_of(raw, self.kind, self.classes), document)

    # ------------------------------------------------------------------ its own reading and writing

    def _read(self, body: bytes, headers: dict[str, str]) -> tuple[np.ndarray, dict[str, Any]]:
        length = int(headers.get("inference-header-content-length", len(body)))
        document = json.loads(body[:length])
        dtype = NUMPY[self.dtype]
        if self.dialect == "tf-serving":
            return np.array(document.get("instances", document.get("inputs")), dtype), document
        if self.dialect == "plain-json":
            return np.array(document["input"], dtype), document
        tensor = document["inputs"][-1]
        if "data" in tensor:
            return np.array(tensor["data"], dtype).reshape(tensor["shape"]), document
        return np.frombuffer(body[length:], dtype).reshape(tensor["shape"]), document

    def _written(self, values: np.ndarray, document: dict[str, Any]) -> tuple[dict[str, str], bytes]:
        json_type = {"Content-Type": "application/json"}
        if self.dialect == "tf-serving":
            return json_type, json.dumps({"predictions" if "instances" in document else "outputs": values.tolist()}).encode()
        if self.dialect == "plain-json":
            return json_type, json.dumps({"probs": values.tolist(), "took": 3}).encode()
        datatype = "INT64" if self.kind == "labels" else "FP32"
        tensor: dict[str, Any] = {"name": "logits", "datatype": datatype, "shape": list(values.shape)}
        content = b""
        if any(output.get("parameters", {}).get("binary_data") for output in document.get("outputs", [])):
            content = np.ascontiguousarray(values).tobytes()
            tensor["parameters"] = {"binary_data_size": len(content)}
        else:
            tensor["data"] = values.ravel().tolist()
        text = json.dumps({"model_name": "digits", "outputs": [tensor]}).encode()
        if not content:
            return json_type, text
        return {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(text))}, text + content


async def _stopped(server: asyncio.Server) -> None:
    server.close()
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
