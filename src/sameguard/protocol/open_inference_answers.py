"""Answers of the Open Inference Protocol: read from a model server, and written for a client, tensor for tensor the same.

What a client does not get: outputs that it did not ask for or may not, and members that the protocol does not know.
"""

from collections.abc import Mapping
from typing import Any

from sameguard.protocol.dialect import as_response_error, scored_output
from sameguard.protocol.errors import InvalidResponseError, WireError, shown, shown_shape
from sameguard.protocol.headers import HEADER_LENGTH, json_part_length
from sameguard.protocol.inflate import inflate
from sameguard.protocol.json_reading import read_json, write_json
from sameguard.protocol.messages import InferRequest, InferResponse, Message, Parameter, Tensor
from sameguard.protocol.model import ModelContract
from sameguard.protocol.tensors import DTYPES, array_from_bytes, array_from_json, bytes_from_array, json_from_array, narrowed


def read_answer(body: bytes, headers: Mapping[str, str], model: ModelContract, rows: int) -> InferResponse:
    """Outputs on the model's list, the scored one among them. Raises InvalidResponseError."""
    try:
        body = inflate(body, headers.get("content-encoding", ""), model.answer_limits)
        json_length = json_part_length(headers, len(body))
        text = memoryview(body)[: len(body) if json_length is None else json_length]
        document = read_json(text)
        if not isinstance(document, dict) or not isinstance(document.get("outputs"), list):
            raise InvalidResponseError(f"answer must be a JSON object with a list of outputs, got {shown(document)}")
        tensors = _read_outputs(document["outputs"], memoryview(body)[len(text) :], model)
    except WireError as error:
        raise as_response_error(error) from error
    scored = [tensor for tensor in tensors if tensor.name == model.output]
    if len(scored) != 1 or len({tensor.name for tensor in tensors}) != len(tensors):
        raise InvalidResponseError(
            f"answer must hold output {model.output!r} and each output once, got {[tensor.name for tensor in tensors]}"
        )
    return InferResponse(
        tuple(tensors),
        scored_output(scored[0].array, model, rows),
        _text(document, "model_name"),
        _text(document, "model_version"),
        _text(document, "id"),
        _scalars(document.get("parameters")),
    )


def write_answer(response: InferResponse, request: InferRequest, model: ModelContract) -> Message:
    """The answer in the encoding that the client asked for. Raises InvalidResponseError where JSON cannot carry it (NaN)."""
    wanted = request.outputs or model.allowed_outputs
    outputs: list[dict[str, Any]] = []
    contents: list[bytes] = []
    for tensor in response.tensors:
        if tensor.name not in wanted:
            continue
        output: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.array.shape)}
        parameters = dict(tensor.parameters)
        if tensor.name in request.binary_outputs:
            contents.append(bytes_from_array(tensor.array, tensor.datatype))
            parameters["binary_data_size"] = len(contents[-1])
        else:
            output["data"] = json_from_array(tensor.array.reshape(-1), tensor.datatype)
        if parameters:
            output["parameters"] = parameters
        outputs.append(output)
    document: dict[str, Any] = {"model_name": response.model_name or model.name}
    for name, value in (("model_version", response.model_version), ("id", response.id if request.id is None else request.id)):
        if value is not None:
            document[name] = value
    if response.parameters:
        document["parameters"] = dict(response.parameters)
    text = write_json({**document, "outputs": outputs})
    if not contents:
        return Message({"content-type": "application/json"}, text)
    return Message({"content-type": "application/octet-stream", HEADER_LENGTH: str(len(text))}, b"".join([text, *contents]))


def _read_outputs(outputs: list[Any], tail: memoryview, model: ModelContract) -> list[Tensor]:
    tensors = []
    for output in outputs:
        if not isinstance(output, dict) or not isinstance(output.get("name"), str):
            raise InvalidResponseError(f"outputs must be objects with a name, got {shown(output)}")
        name, datatype, shape = output["name"], output.get("datatype"), output.get("shape")
        parameters = _scalars(output.get("parameters"))
        size = parameters.pop("binary_data_size", None)
        content = tail[: size if type(size) is int and size >= 0 else 0]
        tail = tail[len(content) :]
        if size is not None and (type(size) is not int or len(content) != size):
            raise InvalidResponseError(f"output {shown(name)} must be followed by its {shown(size)} bytes, got {len(content)}")
        if name not in model.allowed_outputs:
            continue  # its bytes are skipped; what it holds is nobody's business
        if not isinstance(datatype, str) or datatype not in DTYPES:
            raise InvalidResponseError(f"output {name!r} must have one of the datatypes {', '.join(DTYPES)}, got {shown(datatype)}")
        if not isinstance(shape, list) or len(shape) > 8 or any(type(side) is not int or not 0 <= side < 2**31 for side in shape):
            raise InvalidResponseError(f"output {name!r} must have a shape of at most 8 whole numbers, got {shown_shape(shape)}")
        if size is not None:
            array = array_from_bytes(content, tuple(shape), datatype)
        else:
            array = narrowed(array_from_json(output.get("data"), tuple(shape), datatype), datatype)
        tensors.append(Tensor(name, datatype, array, parameters))
    if len(tail):
        raise InvalidResponseError(f"answer must end with its last binary output, got {len(tail)} bytes more")
    return tensors


def _text(document: dict[str, Any], name: str) -> str | None:
    value = document.get(name)
    return value if isinstance(value, str) else None


def _scalars(parameters: object) -> dict[str, Parameter]:
    if not isinstance(parameters, dict):
        return {}
    return {name: value for name, value in parameters.items() if isinstance(value, str | bool | int | float)}
