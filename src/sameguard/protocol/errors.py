"""What is refused on the wire, and what may be said about it.

    WireError (SameguardError, ValueError)
    ├── InvalidRequestError     400   not understood, or against the input contract
    ├── BodyTooLargeError       413   too many bytes, as sent or once inflated
    ├── UnsupportedMediaError   415   an explicit media type, character set or encoding that is not spoken
    └── InvalidResponseError    502   what the model server answered cannot be used

`public_reason` may be sent to the client: it speaks of the client's own request only. `detail` is for the log.
"""

from sameguard.errors import SameguardError


class WireError(SameguardError, ValueError):
    """A message that is not handled any further. status: HTTP status. problem: a key of `problems.PROBLEMS`."""

    status = 400
    problem = "input-invalid"

    def __init__(self, public_reason: str, detail: str = "") -> None:
        super().__init__(f"{public_reason} ({detail})" if detail else public_reason)
        self.public_reason = public_reason
        self.detail = detail


class InvalidRequestError(WireError):
    """The message is not understood, or breaks the input contract."""


class BodyTooLargeError(WireError):
    """The body has too many bytes."""

    status = 413
    problem = "too-large"


class UnsupportedMediaError(WireError):
    """The message names a media type, character set or encoding that is not spoken here."""

    status = 415


class InvalidResponseError(WireError):
    """The model server's answer cannot be used: the client learns no more than that."""

    status = 502
    problem = "upstream-error"

    def __init__(self, detail: str) -> None:
        super().__init__("the model server's answer cannot be used: ask its operator", detail)


def shown(value: object) -> str:
    """A client's value as it may stand in a message: printable ASCII, at most 60 characters."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def shown_shape(value: object) -> str:
    """A declared shape, as `shown` where it is none."""
    whole = isinstance(value, list) and len(value) <= 8 and all(type(side) is int for side in value)
    return ascii(value) if whole else shown(value)
