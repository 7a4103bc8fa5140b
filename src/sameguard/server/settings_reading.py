"""Reads the guard's settings: YAML file, environment, flags, in rising order of precedence; every mistake at once, with the place it is in.

Nothing else in the project reads the environment or a configuration file.
"""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsError

from sameguard.errors import ConfigurationError
from sameguard.server.settings import PREFIX, Settings, every_setting, section_in

OTHER_VARIABLES = {"DATA"}  # SAMEGUARD_DATA, the data root of other verbs
SECRETS = {"url", "proofs", "admin"}  # settings and sections of which no value is shown: what is in the wrong place there may be a key
QUOTED = re.compile(r"""(?<!\S)(['"])(?!<|\\?.\1).*""", re.DOTALL)  # from quoted text on, unless it is one character or a <token>


def read_settings(
    path: Path | None = None, flags: Mapping[str, Any] | None = None, environment: Mapping[str, str] = os.environ
) -> Settings:
    """Settings from a YAML file, the environment and flags (nested dicts), in rising order of precedence.

    Raises ConfigurationError that lists every mistake: the setting, where its value came from, the rule, and what was got.
    """
    content = {} if path is None else _read_yaml(path)
    given = dict(flags or {})
    lines = _unknown_variables(environment)

    class Layered(Settings):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource, file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:  # fmt: skip
            return init_settings, env_settings, InitSettingsSource(settings_cls, content)

    settings = None
    try:
        settings = Layered(**given)
    except ValidationError as error:
        for found in error.errors(include_url=False, include_context=False):
            lines += _mistake(found, path, content, given)
    except SettingsError as error:  # an environment variable of a section that is no JSON
        lines.append(f"  {error}")
    if settings is None or lines:
        raise ConfigurationError("settings are not valid:\n" + "\n".join(lines)) from None
    return settings


def _mistake(found: Any, path: Path | None, content: dict[str, Any], flags: dict[str, Any]) -> list[str]:
    """One line, or several where whole sections contradict each other."""
    names = [str(part) for part in found["loc"]]
    rule = found["msg"].removeprefix("Value error, ")
    if not names:
        return [f"  {line}" for line in rule.splitlines()]
    unknown = found["type"] == "extra_forbidden"
    hidden = found["type"] in ("extra_forbidden", "missing", "model_type") or not SECRETS.isdisjoint(names)  # a typo may hold a secret, too
    got = "" if hidden or isinstance(found["input"], dict) else f", got {found['input']!r}"
    remedy = f": {_nearest(names)}" if unknown else ""
    return [f"  {'.'.join(names)} ({_place(names, path, content, flags)}): {'is no setting' if unknown else rule}{got}{remedy}"]


def _place(names: list[str], path: Path | None, content: dict[str, Any], flags: dict[str, Any]) -> str:
    variable = PREFIX + "__".join(names).upper()
    if _has(flags, names):
        return "flag"
    if any(name == variable or variable.startswith(f"{name}__") or name.startswith(f"{variable}__") for name in map(str.upper, os.environ)):
        return f"environment, {variable}"
    return str(path) if _has(content, names) else "missing"


def _nearest(names: list[str]) -> str:
    """What an unknown name may have been meant to be: one like it, one of this name elsewhere, or any that its section has."""
    *above, name = [part.lower() for part in names]
    section: type[BaseModel] = Settings
    for part in above:
        inner = section_in(section.model_fields[part]) if part in section.model_fields else None
        if inner is None:
            break
        section = inner
    like = difflib.get_close_matches(name, section.model_fields, 3)
    like += [setting.path for setting in every_setting() if setting.names[-1] == name]
    if like:
        return f"did you mean {' or '.join(like)}?"
    return f"{'.'.join(above) or 'the top'} has {', '.join(section.model_fields)}"


def _has(content: Any, names: list[str]) -> bool:
    for name in names:
        if not isinstance(content, dict) or name not in content:
            return isinstance(content, list)
        content = content[name]
    return True


def _unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """A variable of ours that names no setting is a mistake that must not pass silently."""
    known = {name.upper() for name in Settings.model_fields} | OTHER_VARIABLES
    lines = []
    for name in environment:
        upper = name.upper()
        parts = upper.removeprefix(PREFIX).split("__")
        if upper.startswith(PREFIX) and parts[0] not in known:
            lines.append(f"  environment variable {name} names no setting: {_nearest(parts[:1])} {PREFIX}UPSTREAM__URL is upstream.url")
    return lines


class _StrictLoader(yaml.SafeLoader):
    """YAML without duplicate keys, of which other readers keep one or the other."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, "this name stands twice in its section", key_node.start_mark)
            seen.append(key)
        return super().construct_mapping(node, deep=deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except OSError as error:
        raise ConfigurationError(f"settings file {path} must be readable, got {type(error).__name__}: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or a date that no calendar has
        raise ConfigurationError(f"settings file {path} must be YAML, got {_told(error)}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigurationError(f"settings file {path} must hold a mapping of settings, got {type(content).__name__}.")
    return content


def _told(error: Exception) -> str:
    """The problem and its place, never the text of the file: the line may hold a key or a token."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"a {type(error).__name__}."
    return f"a mistake in line {mark.line + 1}, column {mark.column + 1}: {QUOTED.sub('...', str(error.problem))}"
