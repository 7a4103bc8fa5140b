"""The model server of `sameguard serve --demo`: a digits classifier behind the Open Inference Protocol, in this process, without torch."""

import contextlib
from collections.abc import AsyncIterator
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import uvicorn

from sameguard.contract import InputContract
from sameguard.protocol import InferResponse, ModelContract, OpenInference, Problem, RouteKind, Tensor, WireError, read_headers
from sameguard.server.edge import Receive, Send, read_body, send_reply
from sameguard.server.replies import Reply, problem_reply
from sameguard.server.settings import ListenSettings

MODEL, OUTPUT, CLASSES = "digits", "logits", 10


def demo_folder() -> contextlib.AbstractContextManager[Path]:
    """The folder of the bundled artefact, victim and queries."""
    return as_file(files("sameguard.server") / "demo")


def demo_contract() -> ModelContract:
    """The bundled model as its server describes it."""
    contract = InputContract.images(1, 8, 8, name="digit")
    return ModelContract(MODEL, contract, CLASSES, output=OUTPUT, output_kind="logits", binary_tensors=True)


class DemoServer:
    """ASGI application. answered: inference requests so far."""

    def __init__(self, graph: Path) -> None:
        import onnxruntime

        self.dialect = OpenInference(demo_contract())
        self.answered = 0
        self._session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            reply = await self._replied(scope, receive)
        except WireError as error:
            reply = problem_reply(Problem.of(error))
        await send_reply(send, reply, "demo")

    async def _replied(self, scope: dict[str, Any], receive: Receive) -> Reply:
        path = scope["raw_path"].decode()
        route = self.dialect.routes.classify(scope["method"], scope["raw_path"])
        if route.kind is RouteKind.HEALTH:
            return Reply(200, {}, b"")
        if path == "/v2":
            return _json({"name": "demo", "version": "1", "extensions": ["binary_tensor_data"]})
        if route.kind is RouteKind.METADATA:
            tensor = {"name": "digit", "datatype": "FP32", "shape": [-1, 1, 8, 8]}
            outputs = [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, CLASSES]}]
            return _json({"name": MODEL, "platform": "onnxruntime", "inputs": [tensor], "outputs": outputs})
        if route.kind is RouteKind.DENIED:
            return problem_reply(Problem("not-found", "there is no such door here"))
        headers = read_headers(scope["headers"])
        request = self.dialect.parse_infer(await read_body(receive, headers, ListenSettings()), headers)
        logits = self._session.run([OUTPUT], {"digit": request.queries})[0]
        self.answered += 1
        response = InferResponse((Tensor(OUTPUT, "FP32", logits),), np.empty((0, CLASSES), np.float32), model_name=MODEL)
        message = self.dialect.build_infer_response(response, request)
        return Reply(200, message.headers, message.body)


@contextlib.asynccontextmanager
async def running_demo_server(graph: Path) -> AsyncIterator[str]:
    """Serves it on a free loopback port; its address."""
    import asyncio

    config = uvicorn.Config(DemoServer(graph), port=0, ws="none", lifespan="off", log_config=None, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


def _json(document: dict[str, Any]) -> Reply:
    return Reply(200, {"content-type": "application/json"}, orjson.dumps(document))
