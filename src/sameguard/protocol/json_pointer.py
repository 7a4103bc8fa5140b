"""JSON pointers (RFC 6901), as far as a body can be rebuilt from them: members by name, and the only element of a list by 0."""

import re
from typing import Any

from sameguard.errors import ConfigurationError
from sameguard.protocol.errors import InvalidRequestError


class JsonPointer:
    """The place of one value in a document. "" is the document itself, "/a/0/b" is document["a"][0]["b"], ~1 stands for / and ~0 for ~.

    The token 0 always means a list, so that a document can be built from the pointer alone.
    """

    def __init__(self, text: str) -> None:
        if (text and not text.startswith("/")) or re.search(r"~(?![01])", text):
            raise ConfigurationError(f"JSON pointer must be empty or start with /, and escape ~ as ~0, got {text!r} (RFC 6901).")
        self.text = text
        self.tokens = [token.replace("~1", "/").replace("~0", "~") for token in text.split("/")[1:]]
        for token in self.tokens:
            if re.fullmatch(r"[1-9][0-9]*|-", token):
                raise ConfigurationError(f"JSON pointer may enter a list at 0 only, got {text!r}: other elements could not be rebuilt.")

    def get(self, document: Any) -> Any:
        """The value there. Raises InvalidRequestError where the document has no such place."""
        for token in self.tokens:
            if token == "0" and isinstance(document, list) and document:
                document = document[0]
            elif token != "0" and isinstance(document, dict) and token in document:
                document = document[token]
            else:
                raise InvalidRequestError(f"body must have a value at {self.text}, got none.")
        return document

    def alone(self, document: Any, beside: frozenset[str] = frozenset()) -> bool:
        """Whether the document holds that value and nothing else, except the members `beside` at its top."""
        for depth, token in enumerate(self.tokens):
            if token == "0":
                if not isinstance(document, list) or len(document) != 1:
                    return False
                document = document[0]
            else:
                if not isinstance(document, dict) or token not in document:
                    return False
                if not document.keys() - {token} <= (beside if depth == 0 else frozenset()):
                    return False
                document = document[token]
        return True

    def build(self, value: Any) -> Any:
        """The smallest document with this value at its place."""
        for token in reversed(self.tokens):
            value = [value] if token == "0" else {token: value}
        return value
