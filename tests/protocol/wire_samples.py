"""Contracts, requests as clients write them, and a model server's reading of a request that shares no code with ours."""

import gzip
import itertools
import json
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from sameguard.contract import InputContract
from sameguard.protocol import Message, ModelContract

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = 3
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on busy cores slowness is no finding
NUMPY = {"FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"), "UINT8": np.dtype("u1"), "INT64": np.dtype("<i8")}


def model_of(contract: InputContract, **settings: Any) -> ModelContract:
    return ModelContract("digits", contract, CLASSES, **{"output": "probs", "max_rows": 4, **settings})


IMAGES = InputContract.images(1, 2, 3)
MODEL = model_of(IMAGES)


def _contracts() -> list[InputContract]:
    """FP32 and UINT8, channels first, last or flat, normalised or not, one or three channels; and vectors without bounds."""
    made = [InputContract.vectors(1), InputContract.vectors(5)]
    for channels, layout in itertools.product((1, 3), ("NCHW", "NHWC", "flat")):
        made += [InputContract.images(channels, 2, 3, layout=layout, dtype=dtype) for dtype in ("FP32", "UINT8")]
        made += [InputContract.images(channels, 3, 2, layout=layout, mean=MEAN[:channels], std=STD[:channels])]
    return made


def _filled(contract: InputContract) -> st.SearchStrategy[tuple[InputContract, bytes]]:
    size = int(np.prod(contract.shape)) * (1 if contract.is_image else 4)
    contents = st.integers(1, 4).flatmap(lambda rows: st.binary(min_size=rows * size, max_size=rows * size))
    return st.tuples(st.just(contract), contents)


QUESTIONS = st.sampled_from(_contracts()).flatmap(_filled)  # bytes rather than arrays: nothing of ours may run while hypothesis draws


def asked(question: tuple[InputContract, bytes]) -> tuple[InputContract, np.ndarray]:
    """The contract and one to four canonical queries: pixels from the bytes, or any finite float32 for vectors."""
    contract, content = question
    pixels = np.frombuffer(content, np.uint8).astype(np.float32) / np.float32(255)
    values = pixels if contract.is_image else np.nan_to_num(np.frombuffer(content, "<f4"))
    return contract, contract.canonicalise(values.reshape(-1, *contract.shape))


# ---------------------------------------------------------------------- a client's bytes


def json_body(raw: np.ndarray, contract: InputContract, *, nested: bool = False, **members: Any) -> bytes:
    """An Open Inference request with its data in JSON, written by the standard library."""
    data = raw.tolist() if nested else raw.ravel().tolist()
    tensor = {"name": contract.name, "shape": list(raw.shape), "datatype": contract.dtype, "data": data}
    return json.dumps({"inputs": [tensor], **members}).encode()


def binary_body(raw: np.ndarray, contract: InputContract, **members: Any) -> tuple[bytes, dict[str, str]]:
    """The same with a binary tensor, and the header that tells its JSON part's length."""
    content = raw.astype(NUMPY[contract.dtype]).tobytes()
    parameters = {"binary_data_size": len(content)}
    tensor = {"name": contract.name, "shape": list(raw.shape), "datatype": contract.dtype, "parameters": parameters}
    text = json.dumps({"inputs": [tensor], **members}).encode()
    return text + content, {"inference-header-content-length": str(len(text))}


def spellings(raw: np.ndarray, contract: InputContract) -> list[tuple[bytes, dict[str, str]]]:
    """One question in every spelling that the protocol has."""
    binary, header = binary_body(raw, contract)
    plain = [(json_body(raw, contract), {}), (json_body(raw, contract, nested=True, id="7"), {}), (binary, header)]
    return plain + [(gzip.compress(body), {**headers, "content-encoding": "gzip"}) for body, headers in plain]


# ---------------------------------------------------------------------- a model server's reading


def as_upstream_reads(message: Message, contract: InputContract) -> np.ndarray:
    """The array that a model server decodes from an Open Inference request."""
    length = message.headers.get("inference-header-content-length")
    text = message.body if length is None else message.body[: int(length)]
    document = json.loads(text)
    (tensor,) = document["inputs"]
    assert (tensor["name"], tensor["datatype"]) == (contract.name, contract.dtype)
    dtype = NUMPY[tensor["datatype"]]
    if length is None:
        return np.array(tensor["data"]).astype(dtype).reshape(tensor["shape"])
    assert len(message.body) - int(length) == tensor["parameters"]["binary_data_size"]
    return np.frombuffer(message.body[int(length) :], dtype).reshape(tensor["shape"])


def answer_body(probs: np.ndarray, *, binary: bool = False, **members: Any) -> tuple[bytes, dict[str, str]]:
    """A model server's answer with one FP32 output `probs`."""
    output: dict[str, Any] = {"name": "probs", "datatype": "FP32", "shape": list(probs.shape)}
    if not binary:
        output["data"] = probs.astype(np.float64).ravel().tolist()
        return json.dumps({"model_name": "digits", "outputs": [output], **members}).encode(), {}
    content = probs.astype("<f4").tobytes()
    output["parameters"] = {"binary_data_size": len(content)}
    text = json.dumps({"model_name": "digits", "outputs": [output], **members}).encode()
    return text + content, {"inference-header-content-length": str(len(text))}


def random_probs(rows: int, seed: int = 0) -> np.ndarray:
    weights = np.random.default_rng(seed).random((rows, CLASSES)).astype(np.float32)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
