"""JSON read so that no other reader can see something else in it.

orjson already refuses NaN, Infinity, 1e999, nesting past 1024, byte order marks and bad UTF-8, but of a repeated key it keeps the last
value where other parsers keep the first. So the keys in the text are counted, and must all be in the result. In requests only objects that
a dialect can understand are counted there (none in lists of numbers or of lists), so what hides elsewhere is refused as well.
"""

import re
from typing import Any, NamedTuple

import orjson

from sameguard.protocol.errors import InvalidRequestError

STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)  # possessive: ways back would cost 60 bytes of memory for each of text


class JsonBudget(NamedTuple):
    """What a document may hold, checked on the text before anything is allocated: 3 bytes of text can cost 64 of memory."""

    values: int
    lists: int
    objects: int


def read_json(text: bytes | memoryview, budget: JsonBudget | None = None) -> Any:
    """The document. Raises InvalidRequestError where it is not strict JSON, repeats a key, or holds more than the budget.

    Without a budget, for what a model server sent, objects may stand anywhere.
    """
    text = bytes(text)
    if budget is not None:
        for what, mark, most in (("values", b",", budget.values), ("lists", b"[", budget.lists), ("objects", b"{", budget.objects)):
            if (found := text.count(mark)) > most:
                raise InvalidRequestError(f"JSON must hold at most {most} {what} for this model, got {found}: send fewer rows at once.")
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(
            "body must be strict JSON in UTF-8: finite numbers, no comments, at most 1024 levels deep.", str(error)
        ) from error
    if STRINGS.sub(b"", text).count(b":") != _keys(document, everywhere=budget is None):
        raise InvalidRequestError("JSON objects must give each key once, got one repeated, or an object where numbers belong.")
    return document


def write_json(document: Any) -> bytes:
    """Compact JSON; numpy arrays are written as nested lists."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _keys(document: Any, *, everywhere: bool) -> int:
    found, waiting = 0, [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            found += len(value)
            waiting.extend(value.values())
        elif isinstance(value, list) and value and (everywhere or isinstance(value[0], dict)):
            waiting.extend(value)
    return found
