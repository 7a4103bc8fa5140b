"""The guard's settings: one typed model for the YAML file, environment variables (SAMEGUARD_...) and flags; `settings_reading` reads them.

Secrets have no default value: without proof keys the guard draws one for its own lifetime, which is refused where others must verify it.
docs/settings.md is written from this model: tools/settings_reference.py.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from sameguard.server.setting_rules import BaseAddress, HeaderName, Host, KeysPath, PassedHeader, share_an_address

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
PREFIX = "SAMEGUARD_"
TOKEN_CHARACTERS = 16


class Section(BaseModel):
    """Part of the settings; an unknown name is a mistake, not a comment. The line below a setting is what docs/settings.md says of it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True)


class PlainJsonSettings(Section):
    """Doors of a plain JSON server, and JSON pointers (RFC 6901) to input and answer in its bodies."""

    infer: str = "/predict"
    """Path that takes queries, by POST."""
    health: str = "/health"
    """Path that answers 2xx while the server is well, by GET. One that answers 404, 405 or 501 has no such door, and counts as well."""
    tensor: str = "/input"
    """Where the input stands in a request."""
    probs: str = "/probs"
    """Where the class scores stand in an answer."""
    batched: bool = True
    """Input and answer are lists of rows. Without it one request is one query."""


class UpstreamSettings(Section):
    """The model server behind the guard."""

    url: BaseAddress
    """Base address, `http://host[:port][/prefix]` or `https://...`."""
    dialect: Literal["oip", "tf-serving", "plain-json"] = "oip"
    """What it speaks: Open Inference Protocol v2, TensorFlow Serving's REST, or plain JSON."""
    model: str = "model"
    """The model's name on that server."""
    version: str | None = None
    """Its version; unset takes the server's own choice, and clients may name none."""
    label: str | None = None
    """Its version label, TensorFlow Serving only."""
    output: str = "output"
    """The output that is scored."""
    output_kind: Literal["probs", "logits", "labels"] | None = None
    """What that output holds; unset takes what the artefact was fitted on."""
    outputs: tuple[str, ...] = ()
    """Further outputs that clients may ask for."""
    parameters: tuple[str, ...] = ()
    """Request parameters that are passed on; they count as part of the query."""
    binary: bool | None = None
    """It takes binary tensors; unset asks it."""
    plain_json: PlainJsonSettings = PlainJsonSettings()
    """See `upstream.plain_json`."""
    timeout_seconds: Positive = 30.0
    """Patience with one answer, its body included."""
    connect_seconds: Positive = 1.0
    """Patience with a new connection."""
    response_bytes: Count = 64 * 2**20
    """Most bytes of one answer."""
    connections: Count = 100
    """Most connections to it at once."""
    pass_headers: tuple[PassedHeader, ...] = ()
    """Clients' headers that travel on, besides those for tracing and the user agent. Verdicts and proofs hold for their values."""
    pass_authorization: bool = False
    """Clients' `Authorization` travels on. Verdicts and proofs hold for its value."""
    ready_failures: Count = 3
    """Failures in a row that make the guard not ready: no answer, 5xx, or an answer that cannot be read."""


class ListenSettings(Section):
    """The data plane: where clients ask, and how much they may send."""

    host: Host = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """Port; 0 takes a free one."""
    body_bytes: Count = 8 * 2**20
    """Most bytes of a request, as sent and once inflated; fewer where the model's largest request needs fewer."""
    body_bytes_in_flight: Count = 512 * 2**20
    """Most bytes of all requests in memory together; what comes on top gets 503."""
    inflate_ratio: Count = 100
    """Most bytes that one compressed byte may become, beyond the first 256 kB."""
    body_seconds: Positive = 10.0
    """Patience until a body is complete."""
    header_seconds: Positive = 10.0
    """Patience until headers are complete."""
    send_seconds: Positive = 30.0
    """Patience until a client has read its answer."""
    header_bytes: Count = 16 * 2**10
    """Most bytes of a request's headers together."""
    body_pieces: Count = 65_536
    """Most pieces (chunks) in which one body may come."""
    concurrency: Count = 256
    """Most requests at work at once; what comes on top gets 503."""
    connections: Count = 4096
    """Most open connections, fewer where the process may not open so many files; beyond it, who holds most loses his newest."""
    peer_connections: Count = 512
    """Most of them from one address, of IPv6 from one /64; trusted proxies may have more."""
    max_rows: Count = 64
    """Most queries of one request."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks whose `X-Forwarded-For` is believed."""
    grace_seconds: Positive = 30.0
    """How long a stop waits for what is in flight."""


class IdentitySettings(Section):
    """Who is asking."""

    header: HeaderName | None = None
    """Header whose value, already verified by a gateway or the model server, names the principal; unset takes the client's address."""


class QuotaSettings(Section):
    """Token buckets in rows."""

    rows_per_minute: Positive | None = None
    """Of one principal; unset is no limit."""
    burst_rows: Count | None = None
    """Of one principal at once; unset is one minute's worth."""
    total_rows_per_minute: Positive | None = None
    """Of all together; unset is no limit."""
    total_burst_rows: Count | None = None
    """Of all at once; unset is one minute's worth."""


class PolicySettings(Section):
    """What happens to suspicious queries."""

    kind: Literal["reject", "proof-of-work", "coarsen", "ladder"] = "proof-of-work"
    """Refuse, charge, answer less precisely, or all three by degree."""
    rate: Rate | None = None
    """Share of honest queries that `reject` and `coarsen` may hit; unset takes the artefact's own threshold."""
    cut_points: tuple[Rate, ...] | None = None
    """Shares of honest queries that reach each level of `proof-of-work`, falling; unset takes the built-in ones."""
    coarsening: str = "top1"
    """What `coarsen` leaves of an answer: `top1`, or `rounded(k)` with k decimals."""
    tell_coarsened: bool = False
    """A coarsened answer says so (`Guard-Action: coarsen`); a thief reads that, too."""
    coarsen_at: Rate | None = 0.05
    """Share of honest queries from which the ladder coarsens; `null` leaves the rung out."""
    challenge_at: tuple[Rate, ...] = (0.03, 0.02)
    """Shares from which the ladder charges, a level each."""
    refuse_at: Rate | None = 0.01
    """Share from which the ladder refuses; `null` leaves the rung out."""


class ProofSettings(Section):
    """Proofs of work, their keys, and where spent ones are remembered."""

    keys: SecretStr | None = None
    """Signing keys, `kid:hex` or `kid:hex,kid:hex`: the first signs, both verify. Unset draws one that dies with the process."""
    keys_file: KeysPath | None = None
    """The same in a file, one `kid:hex` a line."""
    store: SecretStr = SecretStr("memory")
    """Where spent proofs are remembered: `memory` (one process), or `redis://`, `rediss://`, `unix://` (many, needs keys)."""
    puzzle: Literal["argon2id", "scrypt", "pbkdf2"] = "argon2id"
    """What is computed; memory-hard ones cost thieves with graphics cards more."""
    worst_seconds: Positive = 5.0
    """Longest honest solution on one core: caps every price."""
    factor: Annotated[float, Field(gt=1)] = 4.0
    """How much dearer each level is than the one below."""
    ttl_seconds: Count = 120
    """How long a challenge may be solved and spent."""
    skew_seconds: Annotated[float, Field(ge=0)] = 5.0
    """How far the clocks of several guards may differ."""
    status: Literal[401, 402, 403, 428, 429] = 402
    """Status of a challenge."""

    @property
    def shared_store(self) -> str | None:
        """Address of the store that several guards share, None for memory. It may hold a password."""
        address = self.store.get_secret_value()
        return None if address == "memory" else address


class ScorerSettings(Section):
    """The engine that scores, and its queue."""

    engine: str = "auto"
    """`auto` (what the artefact was calibrated on), `onnxruntime`, `openvino` or `openvino-bf16`."""
    threads: Count | None = None
    """Threads of one scorer; unset leaves it to the engine."""
    replicas: Annotated[int, Field(ge=0)] = 0
    """0 scores in this process; more are Ray actors."""
    batch_rows: Count = 32
    """Most rows scored together."""
    waiting_rows: Count = 64
    """Most rows that wait; what comes on top gets 503."""
    deadline_seconds: Positive = 2.0
    """Longest wait for a turn."""
    timeout_seconds: Positive = 30.0
    """Patience with the scorer, its queue included."""
    fail_open: bool = False
    """Answer unscored where the scorer fails: explicit, counted, logged."""


class CacheSettings(Section):
    """Verdicts on queries that the same principal has asked before."""

    seconds: Annotated[float, Field(ge=0)] = 60.0
    """How long one is kept; 0 switches the cache off."""
    entries: Count = 10_000
    """Most verdicts kept."""


class AuditSettings(Section):
    """The decision log."""

    path: Path | None = None
    """Its file, one guard each; unset writes none."""
    rotate_bytes: Count = 64 * 2**20
    """Size at which a new file is begun."""
    keep: Count = 10
    """Full files that are kept."""
    waiting: Count = 10_000
    """Most records that wait for the disk."""
    block: bool = False
    """A full disk stops answers (compliance) instead of losing records."""
    denied_a_minute: Count = 20
    """Lines for requests of one principal that were not understood, failed, or had a proof that does not count; the rest is one line."""


class AdminSettings(Section):
    """The operators' port."""

    host: Host = "127.0.0.1"
    """Address to listen on; another than loopback needs `token`."""
    port: Annotated[int, Field(ge=0, le=65535)] | None = 8081
    """Port; `null` switches it off."""
    token: SecretStr | None = None
    """Bearer token for what changes state; beyond loopback for everything but the probes."""
    hosts: tuple[str, ...] = ()
    """Further names under which it is reached, for the check of `Host`."""
    thumbnails: bool = False
    """Keep and show pictures of refused queries."""
    recent: Count = 50
    """Refused queries that are shown."""


class CanarySettings(Section):
    """Benign queries whose answers are compared with those at calibration."""

    enabled: bool = True
    """Ask them."""
    seconds: Annotated[float, Field(ge=0)] = 3600.0
    """Between rounds; 0 asks at the start alone."""


class Settings(BaseSettings):
    """Everything about one guard."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )

    artifact: Path
    """Folder of a calibrated artefact."""
    artifact_digest: str | None = None
    """SHA-256 of the manifest that must be served: `sameguard serve --check-config` prints it."""
    mode: Literal["shadow", "enforce"] = "shadow"
    """`shadow` scores, logs and always answers; `enforce` acts."""
    rollout: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of principals on which `enforce` acts, always the same ones."""
    uniform_latency: bool = False
    """A query that is refused before the model server is asked takes as long as others: the server is asked all the same."""
    log: Literal["json", "console"] = "json"
    """Log lines for machines or for people."""
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
        complaints = [complaint for broken, complaint in self._contradictions() if broken]
        if complaints:
            raise ValueError("\n".join(complaints))
        return self

    def _contradictions(self) -> Iterator[tuple[bool, str]]:
        """What no section can know alone: whether it is so, and the sentence for it."""
        proofs, admin, address = self.proofs, self.admin, self.proofs.shared_store
        has_keys = proofs.keys is not None or proofs.keys_file is not None
        short = admin.token is not None and len(admin.token.get_secret_value()) < TOKEN_CHARACTERS
        yield (
            proofs.keys is not None and proofs.keys_file is not None,
            "proofs.keys and proofs.keys_file both give the keys: give one of them",
        )
        yield (
            address is not None and not address.startswith(("redis://", "rediss://", "unix://")),
            "proofs.store must be memory, or a redis://, rediss:// or unix:// address",
        )
        yield (
            address is not None and not has_keys,
            "proofs.store is shared by several guards, which need the same proofs.keys or proofs.keys_file: give one",
        )
        yield (
            admin.port == self.listen.port != 0 and share_an_address(admin.host, self.listen.host),
            f"listen.port and admin.port must differ on one address, got {admin.port} for both",
        )
        yield (
            admin.host not in ("127.0.0.1", "::1", "localhost") and admin.token is None,
            f"admin.host {admin.host} is not loopback and needs admin.token",
        )
        yield short, f"admin.token must have at least {TOKEN_CHARACTERS} characters: openssl rand -hex 32"
        yield (
            self.listen.body_bytes_in_flight < self.listen.body_bytes,
            "listen.body_bytes_in_flight must be at least listen.body_bytes: no request could be as large",
        )
        yield (
            self.audit.block and self.audit.path is None,
            "audit.block needs audit.path: without a log there is nothing to wait for",
        )


class Setting(NamedTuple):
    """One setting. names: from the top, upstream.url is ("upstream", "url")."""

    names: tuple[str, ...]
    field: FieldInfo

    @property
    def path(self) -> str:
        return ".".join(self.names)

    @property
    def variable(self) -> str:
        """Of the environment."""
        return PREFIX + "__".join(self.names).upper()


def every_setting(section: type[BaseModel] = Settings, above: tuple[str, ...] = ()) -> Iterator[Setting]:
    """All settings in the model's order, without the sections that hold them."""
    for name, field in section.model_fields.items():
        inner = section_in(field)
        if inner is None:
            yield Setting((*above, name), field)
        else:
            yield from every_setting(inner, (*above, name))


def section_in(field: FieldInfo) -> type[BaseModel] | None:
    """The section that this field holds, None where it is a setting."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
