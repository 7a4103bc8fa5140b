"""Numbers on the wire: JSON lists, nested or flat, and little-endian bytes, to and from arrays.

Nothing is inferred and nothing converted: lists must have exactly the declared shape and hold exactly the JSON type that the datatype
asks for, true is not 1 and "1" is not 1. Sizes are compared with the declared shape before an array is made.
"""

import itertools
import math
import struct
from typing import Any

import numpy as np

from sameguard.protocol.errors import InvalidRequestError, InvalidResponseError, shown
from sameguard.protocol.json_reading import JsonBudget
from sameguard.protocol.model import ModelContract

DTYPES = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
JSON_TYPES = {"b": {bool}, "u": {int}, "i": {int}, "f": {int, float}, "O": {str}}
SPARE = 1024  # values, lists and objects of a request besides the numbers of its input: shape, parameters, outputs


def json_budget(model: ModelContract) -> JsonBudget:
    """What a request in JSON can hold at most: the numbers of max_rows queries, nested or flat, and a little around them."""
    shape = model.input.raw_shape
    lists_per_row = sum(math.prod(shape[:depth]) for depth in range(len(shape)))
    return JsonBudget(model.max_rows * model.row_values + SPARE, model.max_rows * lists_per_row + SPARE, model.max_rows + SPARE)


# ---------------------------------------------------------------------- JSON


def array_from_json(data: Any, shape: tuple[int, ...], datatype: str) -> np.ndarray:
    """The array of this shape, row-major, from a list that is nested likewise, or flat. FP32 comes as float64, to be narrowed once.

    Raises InvalidRequestError where lengths, nesting or JSON types differ, or a whole number does not fit the datatype.
    """
    dtype = DTYPES[datatype]
    values = _flattened(data, shape)
    others = set(map(type, values)) - JSON_TYPES[dtype.kind]
    if others:
        raise InvalidRequestError(f"data of datatype {datatype} must be all {_named(dtype)}, got {_kinds(others)} among them.")
    if dtype.kind in "ui" and values:
        limits = np.iinfo(dtype)
        if min(values) < limits.min or max(values) > limits.max:
            raise InvalidRequestError(
                f"data of datatype {datatype} must lie in [{limits.min}, {limits.max}], got {min(values)} to {max(values)}."
            )
    if dtype.kind == "O":
        array = np.empty(len(values), object)
        array[:] = [value.encode() for value in values]
        return array.reshape(shape)
    return np.array(values, np.float64 if dtype.kind == "f" else dtype).reshape(shape)


def array_of_any_shape(data: Any, what: str) -> tuple[np.ndarray, str]:
    """The array and datatype of a JSON value in which neither is declared: INT64, FP64, BOOL or BYTES by what it holds.

    Raises InvalidRequestError where it is ragged, or mixes types other than whole numbers with numbers.
    """
    shape: tuple[int, ...] = ()
    inner = data
    while isinstance(inner, list) and len(shape) < 8:
        shape, inner = (*shape, len(inner)), inner[0] if inner else 0
    values = _flattened(data, shape) if shape else [data]
    types = set(map(type, values))
    for datatype, allowed in (("INT64", {int}), ("FP64", {int, float}), ("BOOL", {bool}), ("BYTES", {str})):
        if types <= allowed:
            return array_from_json(values, shape, datatype) if shape else array_from_json(values, (1,), datatype).reshape(()), datatype
    raise InvalidRequestError(f"{what} must be numbers, strings or truth values of one kind, got {_kinds(types)}.")


def json_from_array(array: np.ndarray, datatype: str) -> Any:
    """What `write_json` can write: numbers exactly, text for BYTES. Raises InvalidResponseError for NaN, infinity or bytes that are no text.

    float32 goes out with the digits of the double it equals: a reader that rounds a decimal to double first gets the same number.
    """
    if datatype == "BYTES":
        try:
            texts = [bytes(value).decode() for value in array.ravel()]
        except UnicodeDecodeError as error:
            raise InvalidResponseError("output of datatype BYTES must be UTF-8 text to be written as JSON: ask for it in binary") from error
        return np.array(texts, object).reshape(array.shape).tolist()
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise InvalidResponseError("output must be finite to be written as JSON, got NaN or infinity")
        array = np.ascontiguousarray(array, np.float64)
    return np.ascontiguousarray(array) if array.ndim else array.item()


def narrowed(array: np.ndarray, datatype: str) -> np.ndarray:
    """The array in its datatype's own dtype; a number beyond its range becomes infinite."""
    with np.errstate(over="ignore"):
        return array.astype(DTYPES[datatype], copy=False)


def _flattened(data: Any, shape: tuple[int, ...]) -> list[Any]:
    """The values of a list nested like `shape`, or flat. All work per level and in C: bodies have millions of numbers."""
    count = math.prod(shape)
    if not isinstance(data, list):
        raise InvalidRequestError(f"data must be a list, got {shown(data)}.")
    if len(shape) > 1 and data and not isinstance(data[0], list):
        if len(data) != count:
            raise InvalidRequestError(f"flat data must hold as many values as the shape {shape}, {count}, got {len(data)}.")
        return data
    level = [data]
    for depth, side in enumerate(shape):
        if set(map(type, level)) != {list} or set(map(len, level)) != {side}:
            lists = [len(value) for value in level if type(value) is list]
            got = f"one of {next(length for length in lists if length != side)}" if set(lists) - {side} else "a value that is no list"
            raise InvalidRequestError(f"nested data must have the shape {shape}: lists of {side} at depth {depth + 1}, got {got}.")
        level = list(itertools.chain.from_iterable(level))
        if not level:
            break
    return level


def _kinds(types: set[type]) -> str:
    """JSON's names of Python types."""
    names = {
        bool: "true or false",
        int: "whole numbers",
        float: "numbers",
        str: "strings",
        list: "lists",
        dict: "objects",
        type(None): "null",
    }
    return " and ".join(sorted(names[kind] for kind in types))


def _named(dtype: np.dtype) -> str:
    return {"b": "true or false", "u": "whole numbers", "i": "whole numbers", "f": "numbers", "O": "strings"}[dtype.kind]


# ---------------------------------------------------------------------- bytes


def array_from_bytes(content: bytes | memoryview, shape: tuple[int, ...], datatype: str) -> np.ndarray:
    """The array in these bytes, row-major and little-endian. Raises InvalidRequestError where their number is not the shape's."""
    dtype = DTYPES[datatype]
    if datatype == "BYTES":
        return _strings(bytes(content), shape)
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise InvalidRequestError(
            f"binary data of shape {shape} and datatype {datatype} must have {math.prod(shape) * dtype.itemsize} bytes, got {len(content)}."
        )
    if datatype == "BOOL" and max(bytes(content), default=0) > 1:
        raise InvalidRequestError(f"binary data of datatype BOOL must be bytes 0 and 1, got {max(bytes(content))}.")
    return np.frombuffer(content, dtype).reshape(shape)


def bytes_from_array(array: np.ndarray, datatype: str) -> bytes:
    """Row-major, little-endian; each BYTES element behind its length in 4 bytes."""
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(value)) + bytes(value) for value in array.ravel())
    return np.ascontiguousarray(array, DTYPES[datatype]).tobytes()


def _strings(content: bytes, shape: tuple[int, ...]) -> np.ndarray:
    values, at = [], 0
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "little")
        if at + 4 + length > len(content):
            raise InvalidRequestError(
                f"binary data of datatype BYTES must frame each string by its length, got a string of {length} bytes where "
                f"{max(0, len(content) - at - 4)} are left."
            )
        values.append(content[at + 4 : at + 4 + length])
        at += 4 + length
    if len(values) != math.prod(shape):
        raise InvalidRequestError(f"binary data of shape {shape} must hold {math.prod(shape)} strings, got {len(values)}.")
    array = np.empty(len(values), object)
    array[:] = values
    return array.reshape(shape)
