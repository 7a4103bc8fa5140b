"""The guard's settings: one typed model for the YAML file, environment variables (SAMEGUARD_...) and flags.

Nothing else in the project reads the environment or a configuration file. Flags win over the environment, the environment over the file.
Secrets have no default value: without proof keys the guard draws one for its own lifetime, which is refused where others must verify it.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from sameguard.errors import ConfigurationError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
PREFIX = "SAMEGUARD_"
TOKEN_CHARACTERS = 16
OTHER_VARIABLES = {"DATA"}  # SAMEGUARD_DATA, the data root of other verbs


class Section(BaseModel):
    """Part of the settings; an unknown name is a mistake, not a comment."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PlainJsonSettings(Section):
    """Doors of a plain JSON server, and JSON pointers to input and answer in its bodies."""

    infer: str = "/predict"
    health: str = "/health"
    tensor: str = "/input"
    probs: str = "/probs"
    batched: bool = True


class UpstreamSettings(Section):
    """The model server. output_kind: what `output` holds; None takes what the artefact was fitted on. binary: None asks the server."""

    url: str
    dialect: Literal["oip", "tf-serving", "plain-json"] = "oip"
    model: str = "model"
    version: str | None = None
    label: str | None = None
    output: str = "output"
    output_kind: Literal["probs", "logits", "labels"] | None = None
    outputs: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    binary: bool | None = None
    plain_json: PlainJsonSettings = PlainJsonSettings()
    timeout_seconds: Positive = 30.0
    connect_seconds: Positive = 1.0
    response_bytes: Count = 64 * 2**20
    connections: Count = 100
    pass_headers: tuple[str, ...] = ()
    pass_authorization: bool = False
    ready_failures: Count = 3

    @field_validator("url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        from urllib.parse import urlsplit

        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
            raise ValueError("must be http://host[:port][/prefix] or https://..., without user, query or fragment")
        return url.rstrip("/")


class ListenSettings(Section):
    """The data plane. trusted_proxies: peers whose X-Forwarded-For is believed. body_bytes: of a request, as sent and inflated."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    body_bytes: Count = 8 * 2**20
    inflate_ratio: Count = 100
    body_seconds: Positive = 10.0
    header_seconds: Positive = 10.0
    send_seconds: Positive = 30.0
    header_bytes: Count = 16 * 2**10
    body_pieces: Count = 65_536
    concurrency: Count = 256
    max_rows: Count = 64
    trusted_proxies: tuple[str, ...] = ()
    grace_seconds: Positive = 30.0


class IdentitySettings(Section):
    """Who is asking. header: its value, already verified by a gateway or the upstream, names the principal; None takes the peer's address."""

    header: str | None = None


class QuotaSettings(Section):
    """Token buckets in rows. None: no limit. burst_*: what may be asked at once, default one minute's worth."""

    rows_per_minute: Positive | None = None
    burst_rows: Count | None = None
    total_rows_per_minute: Positive | None = None
    total_burst_rows: Count | None = None


class PolicySettings(Section):
    """What happens to suspicious queries. rate: of `reject`. cut_points: of `proof-of-work`. *_at: rungs of `ladder`, `coarsen`'s own is rate."""

    kind: Literal["reject", "proof-of-work", "coarsen", "ladder"] = "proof-of-work"
    rate: Rate | None = None
    cut_points: tuple[Rate, ...] | None = None
    coarsening: str = "top1"
    coarsen_at: Rate | None = 0.05
    challenge_at: tuple[Rate, ...] = (0.03, 0.02)
    refuse_at: Rate | None = 0.01


class ProofSettings(Section):
    """keys: "kid:hex,kid:hex", the first signs; keys_file: one "kid:hex" a line. store: memory, or redis://... for several instances.

    status: of a challenge. worst_seconds: longest honest solve on one core.
    """

    keys: SecretStr | None = None
    keys_file: Path | None = None
    store: str = "memory"
    puzzle: Literal["argon2id", "scrypt", "pbkdf2"] = "argon2id"
    worst_seconds: Positive = 5.0
    factor: Annotated[float, Field(gt=1)] = 4.0
    ttl_seconds: Count = 120
    skew_seconds: Annotated[float, Field(ge=0)] = 5.0
    status: Literal[401, 402, 403, 428, 429] = 402


class ScorerSettings(Section):
    """replicas: 0 scores in this process; more are Ray actors. fail_open: answer unscored where the scorer fails: explicit, counted, logged."""

    engine: str = "auto"
    threads: Count | None = None
    replicas: Annotated[int, Field(ge=0)] = 0
    batch_rows: Count = 32
    waiting_rows: Count = 64
    deadline_seconds: Positive = 2.0
    timeout_seconds: Positive = 30.0
    fail_open: bool = False


class CacheSettings(Section):
    """Verdicts on queries that the same principal has asked before. seconds 0 switches it off."""

    seconds: Annotated[float, Field(ge=0)] = 60.0
    entries: Count = 10_000


class AuditSettings(Section):
    """path None: no log. block: a full disk stops answers (compliance) instead of losing records."""

    path: Path | None = None
    rotate_bytes: Count = 64 * 2**20
    keep: Count = 10
    waiting: Count = 10_000
    block: bool = False


class AdminSettings(Section):
    """The operators' port. token: for what changes state; another host than loopback needs one for everything. thumbnails: of refused queries."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] | None = 8081
    token: SecretStr | None = None
    hosts: tuple[str, ...] = ()
    thumbnails: bool = False
    recent: Count = 50


class CanarySettings(Section):
    """Benign queries whose answers are compared with those at calibration. seconds: between rounds, 0 asks at the start alone."""

    enabled: bool = True
    seconds: Annotated[float, Field(ge=0)] = 3600.0


class Settings(BaseSettings):
    """Everything about one guard. mode: shadow computes, logs and always allows; enforce acts. rollout: share of principals it acts upon.

    artifact_digest: SHA-256 of the manifest that must be served. uniform_latency: a query that stage A refuses takes as long as others.
    workers: processes behind one port; more than one needs a shared replay store and is left to your process manager.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, nested_model_default_partial_update=True
    )

    artifact: Path
    artifact_digest: str | None = None
    mode: Literal["shadow", "enforce"] = "shadow"
    rollout: Annotated[float, Field(ge=0, le=1)] = 1.0
    uniform_latency: bool = False
    log: Literal["json", "console"] = "json"
    upstream: UpstreamSettings
    listen: ListenSettings = ListenSettings()
    identity: IdentitySettings = IdentitySettings()
    quota: QuotaSettings = QuotaSettings()
    policy: PolicySettings = PolicySettings()
    proofs: ProofSettings = ProofSettings()
    scorer: ScorerSettings = ScorerSettings()
    cache: CacheSettings = CacheSettings()
    audit: AuditSettings = AuditSettings()
    admin: AdminSettings = AdminSettings()
    canary: CanarySettings = CanarySettings()

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        if self.proofs.keys is not None and self.proofs.keys_file is not None:
            raise ValueError("proofs.keys and proofs.keys_file both give the keys: give one of them")
        if self.proofs.store != "memory" and not self.proofs.store.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("proofs.store must be memory, or a redis://, rediss:// or unix:// address")
        if self.proofs.store != "memory" and self.proofs.keys is None and self.proofs.keys_file is None:
            raise ValueError("proofs.store is shared by several guards, which need the same proofs.keys or proofs.keys_file: give one")
        if self.admin.host not in ("127.0.0.1", "::1", "localhost") and self.admin.token is None:
            raise ValueError(f"admin.host {self.admin.host} is not loopback and needs admin.token")
        if self.admin.token is not None and len(self.admin.token.get_secret_value()) < TOKEN_CHARACTERS:
            raise ValueError(f"admin.token must have at least {TOKEN_CHARACTERS} characters: openssl rand -hex 32")
        if self.audit.block and self.audit.path is None:
            raise ValueError("audit.block needs audit.path: without a log there is nothing to wait for")
        return self


def read_settings(
    path: Path | None = None, flags: Mapping[str, Any] | None = None, environment: Mapping[str, str] = os.environ
) -> Settings:
    """Settings from a YAML file, the environment and flags (nested dicts), in rising order of precedence.

    Raises ConfigurationError that lists every mistake: the setting, where its value came from, the rule, and what was got.
    """
    content = {} if path is None else _read_yaml(path)
    given = dict(flags or {})
    _check_environment(environment)

    class Layered(Settings):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource, file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:  # fmt: skip
            return init_settings, env_settings, InitSettingsSource(settings_cls, content)

    try:
        return Layered(**given)
    except ValidationError as error:
        lines = [_mistake(found, path, content, given) for found in error.errors(include_url=False, include_context=False)]
        raise ConfigurationError("settings are not valid:\n" + "\n".join(lines)) from error
    except SettingsError as error:  # an environment variable of a section that is no JSON
        raise ConfigurationError(f"settings are not valid:\n  {error}") from error


def _mistake(found: Any, path: Path | None, content: dict[str, Any], flags: dict[str, Any]) -> str:
    names = [str(part) for part in found["loc"]]
    where = "missing"
    variable = PREFIX + "__".join(names).upper()
    if _has(flags, names):
        where = "flag"
    elif any(
        name == variable or variable.startswith(f"{name}__") or name.startswith(f"{variable}__") for name in map(str.upper, os.environ)
    ):
        where = f"environment, {variable}"
    elif _has(content, names):
        where = str(path)
    secret = found["type"] == "extra_forbidden" or any(
        name in ("keys", "token", "url", "store") for name in names
    )  # a typo may hold one, too
    got = "" if found["type"] == "missing" or secret or isinstance(found["input"], dict) else f", got {found['input']!r}"
    name = ".".join(names) or "settings"
    return (
        f"  {name} ({where}): {found['msg'].removeprefix('Value error, ')}{got}"
        if names
        else f"  {found['msg'].removeprefix('Value error, ')}"
    )


def _has(content: Any, names: list[str]) -> bool:
    for name in names:
        if not isinstance(content, dict) or name not in content:
            return isinstance(content, list)
        content = content[name]
    return True


def _check_environment(environment: Mapping[str, str]) -> None:
    """A variable of ours that names no setting is a mistake that must not pass silently."""
    known = {name.upper() for name in Settings.model_fields} | OTHER_VARIABLES
    for name in environment:
        upper = name.upper()
        if upper.startswith(PREFIX) and upper.removeprefix(PREFIX).split("__")[0] not in known:
            raise ConfigurationError(f"environment variable {name} names no setting: {PREFIX}UPSTREAM__URL is upstream.url.")


class _StrictLoader(yaml.SafeLoader):
    """YAML without duplicate keys, of which other readers keep one or the other."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except OSError as error:
        raise ConfigurationError(f"settings file {path} must be readable, got {type(error).__name__}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"settings file {path} must be YAML, got: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigurationError(f"settings file {path} must hold a mapping of settings, got {type(content).__name__}.")
    return content
