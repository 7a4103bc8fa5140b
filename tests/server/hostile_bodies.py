"""Bodies of inference requests that two readers could take for two things, made for any input contract: the more of them, the better."""

import gzip
import json
import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from sameguard.contract import InputContract

MARK = "client-wrote-this"
LENGTH = "Inference-Header-Content-Length"
NUMPY = {"FP32": "<f4", "UINT8": "u1"}
LOOK_ALIKES = {"a": "\u0430", "e": "\u0435", "p": "\u0440", "s": "\uff53"}  # Cyrillic, and a wide letter


class Variant(NamedTuple):
    """wanted: passes, refused, or either, where it is the reader's to say as long as it says it once."""

    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    wanted: str = "refused"


def raw_batch(contract: InputContract, rows: int = 1, seed: int = 0) -> np.ndarray:
    """What an honest client sends: random pixels in the contract's dtype, layout and units."""
    pixels = np.random.default_rng(seed).integers(0, 256, (rows, *contract.shape)).astype(np.float32) / np.float32(255)
    return contract.encode(pixels)


def tensor_of(raw: np.ndarray, contract: InputContract, **changes: Any) -> dict[str, Any]:
    return {"name": contract.name, "shape": list(raw.shape), "datatype": contract.dtype, "data": raw.ravel().tolist(), **changes}


def oip_variants(contract: InputContract) -> dict[str, Variant]:
    """By name: JSON text, numbers, shapes, structure, parameters, outputs, binary layouts, media types and compression."""
    raw = raw_batch(contract)
    found: dict[str, Variant] = {}
    for part in (_repeated, _renamed, _numbers, _shapes, _structure, _members, _wholes, _binary, _media, _compressed):
        for name, variant in part(raw, contract):
            assert name not in found, name
            found[name] = variant
    return found


def _text(raw: np.ndarray, contract: InputContract, **changes: Any) -> str:
    return json.dumps({"inputs": [tensor_of(raw, contract, **changes)]})


def _repeated(raw: np.ndarray, contract: InputContract) -> Iterator[tuple[str, Variant]]:
    """Each member twice: another value before it or behind it, spelled plainly or with an escape."""
    good = _text(raw, contract)
    other = {
        "inputs": [], "name": "other", "shape": [1, 1], "datatype": "BYTES", "data": [0] * raw.size
    }  # fmt: skip
    for key, value in other.items():
        for spelling in (key, f"\\u{ord(key[0]):04x}{key[1:]}"):
            pair = f'"{spelling}": {json.dumps(value)}'
            yield f"{spelling} twice, first", Variant(good.replace(f'"{key}":', f'{pair}, "{key}":', 1).encode())
            end = "}" if key == "inputs" else "}]}"
            yield f"{spelling} twice, last", Variant((good.removesuffix(end) + f", {pair}" + end).encode())
    same = json.dumps(raw.ravel().tolist())
    yield "data twice, the same", Variant(good.replace('"data":', f'"data": {same}, "data":', 1).encode())
    inside = good.replace('"data":', '"parameters": {"a": 1, "a": 2}, "data":', 1)
    yield "a parameter twice", Variant(inside.encode())


def _renamed(raw: np.ndarray, contract: InputContract) -> Iterator[tuple[str, Variant]]:
    good = _text(raw, contract)
    for key in ("inputs", "name", "shape", "datatype", "data"):
        letter = next(letter for letter in key if letter in LOOK_ALIKES)
        for other in (
            key.upper(), key.title(), f"{key} ", f" {key}", f"{key}\\u0000", f"{key}\\u200b", key.replace(letter, LOOK_ALIKES[letter], 1),
            ""
        ):  # fmt: skip
            yield f"{key} as {other!r}", Variant(good.replace(f'"{key}"', f'"{other}"', 1).encode())
            beside = good.replace(f'"{key}":', f'"{other}": {json.dumps(MARK)}, "{key}":', 1)
            yield f"{other!r} beside {key}", Variant(beside.encode())
    escaped = good.replace('"data"', '"\\u0064\\u0061\\u0074\\u0061"', 1)
    yield "data in escapes, once", Variant(escaped.encode(), wanted="passes")


def _numbers(raw: np.ndarray, contract: InputContract) -> Iterator[tuple[str, Variant]]:
    """The first value in every spelling."""
    marked = json.dumps({"inputs": [tensor_of(raw, contract, data=["@", *raw.ravel().tolist()[1:]])]})
    whole = contract.dtype == "UINT8"
    never = (
        "NaN", "Infinity", "-Infinity", "nan", "1e999", "-1e999", "1e39", "9" * 400, "+1", "01", ".5", "5.", "0x1", "1_0", "\u0663", "1,5",
        '"0.5"', '"NaN"', "true", "null", "[0]", "[]", "{}", '{"b64": "AAAA"}', "0, 0", "", "1e", "--1", "1 0", "1000", "-1000",
    )  # fmt: skip
    for spelling in never:
        yield f"number {spelling[:20]!r}", Variant(marked.replace('"@"', spelling).encode())
    either = (
        "-0.0", "-0", "0e0", "0.0", "1e-45", "1e-400", "5e-324", "-1e-46", "0.5e0", "1E0", "1e+0", "0.49999999999999999999999999999999999",
        "0." + "1" * 5000, "1e-00000000000000000001", "0.00196", "-0.0019", "1.0019", "0.3333333432674408", "0.10000000149011612",
    )  # fmt: skip
    for spelling in either:
        yield (
            f"number {spelling[:20]!r}",
            Variant(marked.replace('"@"', spelling).encode(), wanted="refused" if whole and spelling != "-0" else "either"),
        )
    if whole:
        for spelling in ("256", "-1", "255.0", "2.55e2", str(2**64)):
            yield f"pixel {spelling}", Variant(marked.replace('"@"', spelling).encode())


def _shapes(raw: np.ndarray, contract: InputContract) -> Iterator[tuple[str, Variant]]:
    sides = list(contract.raw_shape)
    size = math.prod(sides)
    shapes: tuple[Any, ...] = (
        [2**63, *sides], [2**64 + 1, *sides], [-(2**63), *sides], [2**62, 4 * sides[0], *sides[1:]], [2**32, 2**32, 2**32, 2**32],
        [-1, *sides], [0, *sides], [1.0, *sides], [1.5, *sides], [True, *sides], ["1", *sides], [[1], *sides], [None, *sides], [1e300,
        *sides],
        [2, *sides], [65, *sides], [64, *sides], [1, *sides, 1], [1, 1, *sides], sides, [1], [], [1, size, 1], [size], [1, size], [1, 2, size // 2],
        [1, *reversed(sides)], None, 1, "1", {}, {"0": 1}, True, [1, *reversed(sides), 7],
    )  # fmt: skip
    for text, shape in {json.dumps(shape): shape for shape in shapes if shape != list(raw.shape)}.items():
        yield f"shape {text}", Variant(_text(raw, contract, shape=shape).encode())
    nothing = tensor_of(raw, contract, shape=[0, *sides], data=[])
    yield "no rows", Variant(json.dumps({"inputs": [nothing]}).encode())
    yield "shape in exponents", Variant(_text(raw, contract).replace('"shape": [1,', '"shape": [1e0,', 1).encode())


def _structure(raw: np.ndarray, contract: InputContract) -> Iterator[tuple[str, Variant]]:
    flat = raw.ravel().tolist()
    half = len(flat) // 2
    refused = {
        "too few": flat[:-1], "too many": [*flat, 0], "none": [], "null": None, "text": "0" * raw.size, "an object": {"0": flat},
        "ragged": [flat[:half + 1], flat[half + 1:]],
        "a list in a list too much": [raw.tolist()],
        "nested once too little": raw.reshape(raw.shape[1:]).tolist() if raw.ndim > 2 else [flat, flat],
        "a list among numbers": [flat[:1], *flat[1:]], "one list among lists": [*raw.tolist(), flat[0]], "two rows": [*raw.tolist(),
        *raw.tolist()],
        "an empty list among numbers": [[], *flat[1:]], "an object behind": [*flat[:-1], {"a": 1}],
    }  # fmt: skip
    for name, data in refused.items():
        yield f"data: {name}", Variant(_text(raw, contract, data=data).encode())
    yield "data: nested", Variant(_text(raw, contract, data=raw.tolist()).encode(), wanted="passes")
    transposed = np.swapaxes(raw, 1, -1)
    yield "data: nested the other way round", Variant(_text(raw, contract, data=transposed.tolist()).encode(), wanted="either")
    for name, opening, closing in (("lists", "[", "]"), ("objects", '{"a":', "}")):
        for depth in (1025, 20_000, 200_000):
            yield f"{depth} {name} deep", Variant((f'{{"inputs":{opening * depth}1{closing * depth}}}').encode())
    good = tensor_of(raw, contract)
    inputs = {
        "twice": [good, good], "with another behind": [good, {**good, "name": "mask"}], "with another before": [{**good, "name": "mask"},
        good], "none": [],
        "null": None, "an object": good, "in a list": [[good]], "a number": [1], "text": MARK, "named otherwise": [{**good,
        "name": "other"}],
        "without a name": [{key: value for key, value in good.items() if key != "name"}], "with a number as name": [{**good, "name": 1}],
    }  # fmt: skip
    for name, value in inputs.items():
        yield f"inputs: {name}", Variant(json.dumps({"inputs": value}).encode())
    for datatype in ("FP64", "FP16", "BF16", "BYTES", "BOOL", "INT8", "fp32", "uint8", "UINT8 ", "FP32\0", "", None, 1, ["FP32"]):
        yield f"datatype {datatype!r}", Variant(_text(raw, contract, datatype=datatype).encode())


def _members(raw: np.ndarray, contract: InputContract) -> Iterator[tuple[str, Variant]]:
    """Unknown members, parameters and outputs: whatever might change what a server reads or answers."""
    good = {"inputs": [tensor_of(raw, contract)]}
    size = raw.size * np.dtype(NUMPY[contract.dtype]).itemsize
    for name in ("extra", "model_version", "raw_input_contents", "instances", "data", "parameters ", "__proto__", "priority"):
        yield f"request member {name!r}", Variant(json.dumps({**good, name: MARK}).encode())
        yield f"input member {name!r}", Variant(_text(raw, contract, **{name: MARK} if name != "data" else {"contents": MARK}).encode())
    parameters: dict[str, Any] = {
        "binary_data_size": size, "shared_memory_region": "a", "shared_memory_byte_size": size, "shared_memory_offset": 0,
        "content_type": "base64",
        "headers": {"a": "b"}, "decoded": True, "sequence_id": 1, "sequence_start": True, "priority": 1, "timeout": 5, MARK: 1, "": 1,
    }  # fmt: skip
    for name, value in parameters.items():
        yield f"input parameter {name!r}", Variant(_text(raw, contract, parameters={name: value}).encode())
        yield f"request parameter {name!r}", Variant(json.dumps({**good, "parameters": {name: value}}).encode())
        yield (
            f"output parameter {name!r}",
            Variant(json.dumps({**good, "outputs": [{"name": "logits", "parameters": {name: value}}]}).encode()),
        )
    for value in ([], "a", 1, True):
        yield f"parameters {value!r}", Variant(json.dumps({**good, "parameters": value}).encode())
        yield f"input parameters {value!r}", Variant(_text(raw, contract, parameters=value).encode())
    both = json.dumps({"inputs": [{**tensor_of(raw, contract), "parameters": {"binary_data_size": size}}]}).encode()
    yield "data beside binary data", Variant(both + raw.tobytes(), ((LENGTH, str(len(both))),))
    yield (
        "data beside binary data of 0 bytes",
        Variant(both.replace(b": %d}" % size, b": 0}"), ((LENGTH, str(len(both) - len(str(size)) + 1)),)),
    )
    for outputs in (
        [{"name": "features"}], [{"name": "logits"}, {"name": "features"}], [{"name": "logits"}] * 2, [{}], [1], "logits",
        {"name": "logits"}, [["logits"]],
        [{"name": "logits", "parameters": {"classification": 3}}], [{"name": "logits", "parameters": {"binary_data": 1}}],
        [{"name": "LOGITS"}],
    ):  # fmt: skip
        yield f"outputs {json.dumps(outputs)}", Variant(json.dumps({**good, "outputs": outputs}).encode())
    for outputs in ([], [{"name": "logits"}], [{"name": "logits", "parameters": {"binary_data": True}}], None):
        yield f"outputs {json.dumps(outputs)}, as they may be", Variant(json.dumps({**good, "outputs": outputs}).encode(), wanted="passes")
    for name in (1, "x" * 257, ["a"], {}):
        yield f"id {str(name)[:9]!r}", Variant(json.dumps({**good, "id": name}).encode())
    yield "an id", Variant(json.dumps({**good, "id": MARK}).encode(), wanted="passes")
    yield "another model's name", Variant(json.dumps({**good, "model_name": "other"}).encode())


def _wholes(raw: np.ndarray, contract: InputContract) -> Iterator[tuple[str, Variant]]:
    good = _text(raw, contract)
    refused: dict[str, bytes] = {
        "nothing": b"", "a blank": b" ", "a list": b"[]", "null": b"null", "a number": b"1", "two documents": (good + good).encode(),
        "two lines": f"{good}\n{good}".encode(),
        "a byte order mark": b"\xef\xbb\xbf" + good.encode(), "a comment": (good + "// a").encode(),
        "a comment before": ("/**/" + good).encode(),
        "a comma too much": good.replace("]}]}", "],}]}").encode(), "a NUL behind": good.encode() + b"\0",
        "a NUL inside": good.encode().replace(b"{", b"{\0", 1),
        "cut off": good.encode()[:-1], "single quotes": good.replace('"', "'").encode(),
        "bytes that are no UTF-8": good.encode().replace(b'"data"', b'"d\xffta"'),
        "overlong UTF-8": good.encode().replace(b'"data"', b'"d\xc1\xa1ta"'), "a lone surrogate": good.replace('"FP32"',
        '"\\ud800"').replace('"UINT8"', '"\\ud800"').encode(),
        "newline in a name": good.encode().replace(b'"data"', b'"da\nta"'), "form": b"inputs=1&data=2", "XML": b"<inputs/>",
        "JSON lines": b'{"inputs":[]}\n{"inputs":[]}',
    }  # fmt: skip
    for name, body in refused.items():
        yield name, Variant(body)
    for encoding in ("utf-16", "utf-16-le", "utf-32", "utf-7"):
        yield f"in {encoding}", Variant(good.encode(encoding), wanted="refused" if encoding != "utf-7" else "either")
    yield "blanks around", Variant(b" \r\n\t" + good.encode() + b"\n ", wanted="passes")
    yield "blanks inside", Variant(json.dumps(json.loads(good), indent=3).encode(), wanted="passes")


def _binary(raw: np.ndarray, contract: InputContract) -> Iterator[tuple[str, Variant]]:
    values = np.ascontiguousarray(raw, NUMPY[contract.dtype]).tobytes()

    def head(**changes: Any) -> bytes:
        tensor = tensor_of(raw, contract, parameters={"binary_data_size": len(values)}, **changes)
        del tensor["data"]
        return json.dumps({"inputs": [tensor]}).encode()

    good = head()
    right = ((LENGTH, str(len(good))),)
    yield "binary", Variant(good + values, right, "passes")
    yield "binary, one raw tensor", Variant(values, ((LENGTH, "0"),), "passes")
    yield "binary, one raw tensor too long", Variant(values + values, ((LENGTH, "0"),))
    yield "binary, JSON as a raw tensor", Variant(good + values, ((LENGTH, "0"),))
    for name, body in {
        "bytes behind": good + values + b"\0", "bytes missing": good + values[:-1], "nothing behind": good,
        "a blank between": good + b" " + values,
        "the tensor twice": good + values * 2, "the tensor before": values + good,
    }.items():  # fmt: skip
        yield f"binary, {name}", Variant(body, right)
    n = len(good)
    for length in (
        n - 1,
        n + 1,
        n + len(values),
        -n,
        2**31,
        2**32 + n,
        2**64 + n,
        f"+{n}",
        f"0{n}",
        f"{n}.0",
        hex(n),
        f"{n},{n}",
        f"{n} {n}",
        "",
        "x",
        "\u0661",
        f"{n};",
        f"{n}_0",
    ):
        try:
            str(length).encode("latin-1")
        except UnicodeEncodeError:
            length = length.encode().decode("latin-1")
        yield f"binary, length {length!r}", Variant(good + values, ((LENGTH, str(length)),))
    yield "binary, no length", Variant(good + values)
    yield "binary, length twice", Variant(good + values, right * 2)
    yield "binary, length twice and different", Variant(good + values, (*right, (LENGTH, "0")))
    for size in (
        len(values) - 1,
        len(values) + 1,
        0,
        -1,
        2**63,
        2**64 + len(values),
        float(len(values)),
        str(len(values)),
        True,
        None,
        [len(values)],
    ):
        text = good.replace(b'"binary_data_size": %d' % len(values), b'"binary_data_size": ' + json.dumps(size).encode())
        yield f"binary, size {size!r}", Variant(text + values, ((LENGTH, str(len(text))),))
    for shape in ([2, *contract.raw_shape], [0, *contract.raw_shape], [2**62, *contract.raw_shape], [1, raw.size]):
        if tuple(shape[1:]) != contract.raw_shape or shape[0] != 1:
            text = head(shape=shape)
            yield f"binary, shape {shape}", Variant(text + values, ((LENGTH, str(len(text))),))
    if contract.dtype == "FP32":
        for name, number in (("NaN", math.nan), ("infinity", math.inf), ("a large number", 3e38), ("-1000", -1000.0)):
            yield f"binary, {name}", Variant(good + struct.pack("<f", number) + values[4:], right)
        for name, number in (("a denormal", 1e-45), ("-0.0", -0.0)):
            yield f"binary, {name}", Variant(good + struct.pack("<f", number) + values[4:], right, "either")
        yield "binary, a signalling NaN", Variant(good + b"\x01\x00\x80\x7f" + values[4:], right)
        yield "binary, big endian", Variant(good + raw.astype(">f4").tobytes(), right, "either")


def _media(raw: np.ndarray, contract: InputContract) -> Iterator[tuple[str, Variant]]:
    good = _text(raw, contract).encode()
    for media in (
        "application/json",
        "application/json; charset=utf-8",
        'application/json; charset="UTF-8"',
        "Application/JSON",
        "application/json;boundary=x",
    ):
        yield f"media {media}", Variant(good, (("Content-Type", media),), "passes")
    for media in (
        "application/octet-stream", "text/json", "text/html", "application/json; charset=utf-16", "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json, text/html", "application/vnd.api+json", "", "*/*", "application/cloudevents+json", "application/msgpack",
    ):  # fmt: skip
        yield f"media {media!r}", Variant(good, (("Content-Type", media),))
    yield "media twice", Variant(good, (("Content-Type", "application/json"), ("Content-Type", "application/json")))


def _compressed(raw: np.ndarray, contract: InputContract) -> Iterator[tuple[str, Variant]]:
    good = _text(raw, contract).encode()
    zipped, deflated = gzip.compress(good), zlib.compress(good)
    raw_deflate = zlib.compressobj(wbits=-15)
    bare = raw_deflate.compress(good) + raw_deflate.flush()
    gzip_of, deflate_of = (("Content-Encoding", "gzip"),), (("Content-Encoding", "deflate"),)
    for name, body, headers in (
        ("gzip", zipped, gzip_of),
        ("deflate", deflated, deflate_of),
        ("identity", good, (("Content-Encoding", "identity"),)),
        ("GZIP", zipped, (("Content-Encoding", "GZIP"),)),
    ):
        yield f"compressed: {name}", Variant(body, headers, "passes")
    refused = {
        "gzip twice": (gzip.compress(zipped), (("Content-Encoding", "gzip, gzip"),)), "gzip twice, told once": (gzip.compress(zipped),
        gzip_of),
        "two headers": (gzip.compress(deflated), (("Content-Encoding", "deflate"), ("Content-Encoding", "gzip"))), "not at all": (good,
        gzip_of),
        "deflate without zlib's frame": (bare, deflate_of), "gzip as deflate": (zipped, deflate_of), "deflate as gzip": (deflated,
        gzip_of), "x-gzip": (zipped, (("Content-Encoding", "x-gzip"),)),
        "br": (good, (("Content-Encoding", "br"),)), "zstd": (good, (("Content-Encoding", "zstd"),)), "identity and gzip": (zipped,
        (("Content-Encoding", "identity, gzip"),)),
        "a second member": (zipped + gzip.compress(good), gzip_of), "a second member that hides": (zipped + gzip.compress(b""), gzip_of),
        "bytes behind": (zipped + b"\0" * 9, gzip_of),
        "cut off": (zipped[:-1], gzip_of), "cut off before its checksum": (zipped[:-8], gzip_of),
        "a wrong checksum": (zipped[:-8] + b"\0" * 8, gzip_of), "nothing": (b"", gzip_of),
        "told nowhere": (zipped, ()), "a bomb": (gzip.compress(b" " * 30_000_000), gzip_of),
        "a bomb behind": (gzip.compress(good + b" " * 30_000_000), gzip_of),
        "a bomb within": (gzip.compress(gzip.compress(b" " * 30_000_000)), gzip_of), "in transfer alone": (zipped, (("TE", "gzip"),)),
    }  # fmt: skip
    for name, (body, headers) in refused.items():
        yield f"compressed: {name}", Variant(body, headers)
