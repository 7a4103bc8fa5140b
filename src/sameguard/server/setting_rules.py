"""Rules for settings that no type can state: addresses, ports, header names, and a file that is no key. Each raises ValueError for pydantic."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

from sameguard.protocol.headers import ONCE, TOKEN

LABEL = re.compile(r"\w([\w-]{0,61}\w)?")  # of a host name; the underscore is in many a compose file
LONGEST_NAME = 253
WILDCARDS = frozenset({"0.0.0.0", "::"})
KEPT_BACK = ONCE | {"connection", "expect", "keep-alive", "proxy-connection", "te", "trailer", "upgrade"}  # they are about one connection
KEY = re.compile(r"[^/\\]*:[^/\\]*|[0-9a-fA-F]{32,}")  # kid:hex, or the hex alone, where a path is wanted


def base_address(url: str) -> str:
    """The address without its last slash. The error never shows it: it may hold a password."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and is_host(parts.hostname or "") and parts.port != 0
    except ValueError:  # a port beyond 65535, or half a pair of brackets
        known = False
    if not known or parts.query or parts.fragment or parts.username:
        raise ValueError("must be http://host[:port][/prefix] or https://..., without user, query or fragment")
    return url.rstrip("/")


def host(text: str) -> str:
    if not is_host(text):
        raise ValueError("must be an address or a host name")
    return text


def header_name(name: str) -> str:
    if TOKEN.fullmatch(name.lower()) is None:
        raise ValueError("must be a header's name, letters, digits and hyphens")
    return name


def passed_header(name: str) -> str:
    if name.lower() in KEPT_BACK or name.lower().startswith("guard-"):
        raise ValueError("must be a header that may travel on: this one is about the connection or the body, or is the guard's own")
    return header_name(name)


def keys_path(path: Path) -> Path:
    """The error never shows it: it may be a key."""
    if KEY.fullmatch(str(path)) is not None:
        raise ValueError(
            "must be a file's path, and reads as a key: keys themselves go into proofs.keys; put a folder before a file's name"
        )
    return path


def is_host(text: str) -> bool:
    """An address or a host name. What ends in a number is read as an IPv4 address everywhere, so it must be one."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        labels = text.removesuffix(".").split(".")
        return len(text) <= LONGEST_NAME and all(LABEL.fullmatch(label) for label in labels) and not labels[-1].isdigit()
    return True


def share_an_address(first: str, second: str) -> bool:
    """Whether two sockets on these hosts could not have the same port."""
    if "localhost" in (first, second):
        first, second = ("127.0.0.1" if name == "localhost" else name for name in (first, second))
    return first == second or bool({first, second} & WILDCARDS)


BaseAddress = Annotated[str, AfterValidator(base_address)]
Host = Annotated[str, AfterValidator(host)]
HeaderName = Annotated[str, AfterValidator(header_name)]
PassedHeader = Annotated[str, AfterValidator(passed_header)]
KeysPath = Annotated[Path, AfterValidator(keys_path)]
