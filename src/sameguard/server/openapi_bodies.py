"""JSON Schemas of one model's request and answer in each dialect: as narrow as the guard itself, so that what they refuse it refuses."""

import math
from collections.abc import Iterable
from typing import Any

from sameguard.contract import GRID_LEVELS
from sameguard.protocol import Dialect, ModelContract, OpenInference, PlainJson, TfServing
from sameguard.protocol.json_pointer import JsonPointer
from sameguard.protocol.open_inference import LONGEST_ID
from sameguard.protocol.tf_serving import SIGNATURE

Schema = dict[str, Any]
SCALAR: Schema = {"type": ["string", "number", "boolean"]}
SWITCH: Schema = {"type": "boolean"}


def request_schema(dialect: Dialect) -> Schema:
    """Of an inference request in JSON."""
    model = dialect.model
    if isinstance(dialect, OpenInference):
        return _open_inference_request(model)
    if isinstance(dialect, TfServing):
        return _tf_serving_request(model)
    return _plain_json_request(dialect)


def answer_schema(dialect: Dialect) -> Schema:
    """Of the answer with status 200 in JSON."""
    model = dialect.model
    if isinstance(dialect, OpenInference):
        return _open_inference_answer(model)
    if isinstance(dialect, TfServing):
        return {"type": "object", "anyOf": [{"required": ["predictions"]}, {"required": ["outputs"]}]}
    return _at(JsonPointer(model.plain_json.probs), {"type": "array"}, closed=False) if isinstance(dialect, PlainJson) else {}


# ---------------------------------------------------------------------- Open Inference Protocol


def _open_inference_request(model: ModelContract) -> Schema:
    sides = model.input.raw_shape
    flat = {"type": "array", "items": _number(model), "minItems": model.row_values, "maxItems": model.row_values * model.max_rows}
    rows = {"type": "integer", "minimum": 1, "maximum": model.max_rows}
    tensor = _object(
        {
            "name": {"const": model.input.name},
            "datatype": {"const": model.input.dtype},
            "shape": {"type": "array", "prefixItems": [rows, *({"const": side} for side in sides)], "minItems": 1 + len(sides), "maxItems": 1 + len(sides)},
            "data": {"anyOf": [flat, _batch(model)], "description": "Row-major, flat or nested like the shape."},
            "parameters": _or_null(_object({"binary_data_size": {"type": "integer"}})),
        },
        ("name", "shape", "datatype"),
    )  # fmt: skip
    output = _object({"name": {"enum": list(model.allowed_outputs)}, "parameters": _or_null(_object({"binary_data": SWITCH}))}, ("name",))
    parameters = {"binary_data_output": SWITCH, **dict.fromkeys(model.parameters, SCALAR)}
    return _object(
        {
            "id": {"type": ["string", "null"], "maxLength": LONGEST_ID},
            "model_name": {"enum": [model.name, None]},
            "inputs": {"type": "array", "items": tensor, "minItems": 1, "maxItems": 1},
            "outputs": _or_null({"type": "array", "items": output, "maxItems": len(model.allowed_outputs)}),
            "parameters": _or_null(_object(parameters)),
        },
        ("inputs",),
    )


def _open_inference_answer(model: ModelContract) -> Schema:
    output = {
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": {"enum": list(model.allowed_outputs)}, "datatype": {"type": "string"}, "shape": {"type": "array", "items": {"type": "integer"}},
            "data": {"type": "array"},
        },
    }  # fmt: skip
    text = {"type": "string"}
    return {
        "type": "object",
        "required": ["model_name", "outputs"],
        "properties": {"model_name": text, "model_version": text, "id": text, "outputs": {"type": "array", "items": output}},
    }


# ---------------------------------------------------------------------- the other dialects


def _tf_serving_request(model: ModelContract) -> Schema:
    row, name, signature = _nested(model, model.input.raw_shape), model.input.name, {"const": SIGNATURE}
    named_rows = {"type": "array", "items": _object({name: row}, (name,)), "minItems": 1, "maxItems": model.max_rows}
    by_row = _object({"instances": {"anyOf": [_batch(model), named_rows]}, "signature_name": signature}, ("instances",))
    by_column = _object(
        {"inputs": {"anyOf": [_batch(model), _object({name: _batch(model)}, (name,))]}, "signature_name": signature}, ("inputs",)
    )
    return {"anyOf": [by_row, by_column]}


def _plain_json_request(dialect: Dialect) -> Schema:
    model = dialect.model
    sides = model.input.raw_shape
    flat = {"type": "array", "items": _number(model), "minItems": math.prod(sides), "maxItems": math.prod(sides)}
    tensor = _batch(model) if model.plain_json.batched else {"anyOf": [flat, _nested(model, sides)]}
    schema = _at(JsonPointer(model.plain_json.tensor), tensor, closed=True)
    if model.parameters:
        schema["properties"] |= dict.fromkeys(model.parameters, SCALAR)
    return schema


def _at(pointer: JsonPointer, value: Schema, *, closed: bool) -> Schema:
    """The document with `value` at the pointer; closed: and with nothing else."""
    for token in reversed(pointer.tokens):
        if token == "0":
            value = {"type": "array", "items": value, "minItems": 1, **({"maxItems": 1} if closed else {})}
        else:
            value = {
                "type": "object",
                "required": [token],
                "properties": {token: value},
                **({"additionalProperties": False} if closed else {}),
            }
    return value


# ---------------------------------------------------------------------- parts


def _batch(model: ModelContract) -> Schema:
    return {"type": "array", "items": _nested(model, model.input.raw_shape), "minItems": 1, "maxItems": model.max_rows}


def _nested(model: ModelContract, sides: Iterable[int]) -> Schema:
    schema = _number(model)
    for side in reversed(tuple(sides)):
        schema = {"type": "array", "items": schema, "minItems": side, "maxItems": side}
    return schema


def _number(model: ModelContract) -> Schema:
    """One value as clients send it, within the contract's bounds where these are finite and the same for all channels."""
    contract = model.input
    if contract.dtype == "UINT8":
        return {"type": "integer", "minimum": 0, "maximum": 255}
    slack = 0.5 / GRID_LEVELS if contract.grid == "8bit" else 0.0  # clipped, not refused
    ends = sorted((bound - contract.offset[0]) / contract.scale[0] for bound in (contract.bounds[0] - slack, contract.bounds[1] + slack))
    if len(contract.scale) > 1 or len(contract.offset) > 1 or not all(map(math.isfinite, ends)):
        return {"type": "number"}
    return {"type": "number", "minimum": ends[0], "maximum": ends[1]}


def _object(properties: Schema, required: tuple[str, ...] = ()) -> Schema:
    return {"type": "object", "properties": properties, "additionalProperties": False, **({"required": list(required)} if required else {})}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}
