"""Writes the tables of docs/settings.md from the guard's settings model, below the line that says so.

    python tools/settings_reference.py

What stands above that line is written by hand. A test fails where the document and the model differ.
"""

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import annotated_types
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sameguard.server.settings import Setting, Settings, every_setting, section_in

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
LINE = "<!-- Written by tools/settings_reference.py from src/sameguard/server/settings.py: change that. -->\n"
HEAD = "| setting | environment variable | type | default | meaning |\n|---|---|---|---|---|\n"
KINDS = {str: "text", Path: "path", bool: "`true`, `false`", int: "integer", float: "number", SecretStr: "text, secret"}


def rewritten(document: str) -> str:
    """The document with tables of the settings as they are now."""
    return document[: document.index(LINE) + len(LINE)] + "".join(_tables(Settings, ""))


def _tables(section: type[BaseModel], above: str) -> Iterator[str]:
    own = [setting for setting in every_setting(section) if len(setting.names) == 1]
    names = tuple(above.split(".")) if above else ()
    title = f"`{above}`" if above else "At the top"
    rows = "".join(_row(Setting((*names, *setting.names), setting.field)) for setting in own)
    yield f"\n## {title}\n\n{' '.join(str(section.__doc__).split())}\n\n{HEAD}{rows}"
    for name, field in section.model_fields.items():
        inner = section_in(field)
        if inner is not None:
            yield from _tables(inner, f"{above}.{name}" if above else name)


def _row(setting: Setting) -> str:
    cells = [
        f"`{setting.path}`",
        f"`{setting.variable}`",
        _kind(setting.field),
        _default(setting.field.default),
        str(setting.field.description),
    ]
    return f"| {' | '.join(cells)} |\n"


def _kind(field: FieldInfo) -> str:
    return _named(field.annotation) + _bounds(field.metadata)


def _named(kind: Any) -> str:
    """A type in words; what may be left unset is told by the default."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_named(part) for part in parts if part is not type(None))
    if origin is typing.Annotated:
        return _named(parts[0]) + _bounds([bound for field in parts[1:] for bound in getattr(field, "metadata", [])])
    if origin is typing.Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin is tuple:
        return f"list of {_named(parts[0])}"
    return KINDS[kind]


def _bounds(metadata: list[Any]) -> str:
    signs = (
        (annotated_types.Ge, "ge", "≥"),
        (annotated_types.Gt, "gt", ">"),
        (annotated_types.Le, "le", "≤"),
        (annotated_types.Lt, "lt", "<"),
    )
    found = [f"{sign} {getattr(bound, name)}" for bound in metadata for kind, name, sign in signs if isinstance(bound, kind)]
    return "".join(f", {bound}" for bound in found)


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "unset"
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, tuple):
        value = list(value)
    large = isinstance(value, int) and value >= 2**10 and value % 2**10 == 0
    size = f" ({value // 2**20} MiB)" if large and value % 2**20 == 0 else f" ({value // 2**10} KiB)" if large else ""
    return f"`{value}`{size}"


if __name__ == "__main__":
    DOCUMENT.write_text(rewritten(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
