"""Victims over HTTP on the command line: the options that say how to ask them, and what is made of those."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from sameguard.client import AnswerBook, ClientConfig, RemoteEndpoint, RemoteVictim, SolveLimits
from sameguard.contract import InputContract
from sameguard.errors import ConfigurationError
from sameguard.protocol import DIALECTS, ModelContract, PlainJsonPaths

HTTP = "Victims over HTTP"
ModelOption = Annotated[str, typer.Option("--model", help="The model's name on its server.", rich_help_panel=HTTP)]
DialectOption = Annotated[str, typer.Option("--dialect", help="oip, tf-serving or plain-json.", rich_help_panel=HTTP)]
OutputNameOption = Annotated[
    str | None,
    typer.Option("--output-name", help="The output to read, where the server has several or does not tell.", rich_help_panel=HTTP),
]
HeaderOption = Annotated[
    list[str] | None,
    typer.Option(
        "--header", metavar="NAME:VALUE", help="Sent with every request; NAME:@FILE reads the value from a file.", rich_help_panel=HTTP
    ),
]
PathOption = Annotated[
    list[str] | None,
    typer.Option(
        "--path", metavar="NAME=PATH", help="For plain-json: infer=/predict, tensor=/input, probs=/probs, batched=no.", rich_help_panel=HTTP
    ),
]
RequestsOption = Annotated[float | None, typer.Option("--requests-per-second", help="Ask no faster than this.", rich_help_panel=HTTP)]
RowsOption = Annotated[int, typer.Option("--batch-rows", metavar="N", min=1, help="Queries in one request.", rich_help_panel=HTTP)]
LedgerOption = Annotated[
    Path | None,
    typer.Option("--ledger", help="Keep every answer in this file: the same command asks no query twice.", rich_help_panel=HTTP),
]
BATCH_ROWS = 64
CALL_SECONDS = SolveLimits.call_seconds
HEADER_NAME = re.compile(r"[A-Za-z0-9-]+")


@dataclass(frozen=True)
class RemoteOptions:
    """What the options say. ledger: of a victim, whose answers are kept by query. solve_seconds: for one challenge, 0 never pays.

    call_seconds: for all challenges of one batch that is asked.
    """

    model: str = "model"
    dialect: str = "oip"
    output_name: str | None = None
    headers: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    requests_per_second: float | None = None
    batch_rows: int = BATCH_ROWS
    ledger: Path | None = None
    solve_seconds: float = 0.0
    call_seconds: float = CALL_SECONDS

    def config(self) -> ClientConfig:
        paying = SolveLimits(self.solve_seconds, call_seconds=self.call_seconds) if self.solve_seconds else SolveLimits()
        return ClientConfig(solve=self.solve_seconds > 0, solving=paying, requests_per_second=self.requests_per_second)


def is_url(spec: str) -> bool:
    return spec.startswith(("http://", "https://"))


def check_local(spec: str, options: RemoteOptions) -> None:
    """Raises ConfigurationError where options for victims over HTTP come with another one."""
    plain = RemoteOptions(solve_seconds=options.solve_seconds, call_seconds=options.call_seconds)
    given = [field.name for field in dataclasses.fields(options) if getattr(options, field.name) != getattr(plain, field.name)]
    if given:
        names = ", ".join({"headers": "--header", "paths": "--path"}.get(name, "--" + name.replace("_", "-")) for name in given)
        raise ConfigurationError(f"{names} is for victims over HTTP, got --victim {spec}: leave it out, or give http://host:port.")


def open_victim(
    url: str, contract: InputContract, options: RemoteOptions, *, output: str | None, classes: int | None, adopt: bool = False
) -> RemoteVictim:
    """The victim at a URL. adopt: its server may name the input and its datatype; otherwise they must be the contract's (an artefact's)."""
    if options.dialect not in DIALECTS:
        raise ConfigurationError(f"--dialect must be one of {', '.join(DIALECTS)}, got {options.dialect!r}.")
    headers, paths = parse_headers(options.headers), _paths(options.paths)
    if adopt:
        contract = _adopted(url, contract, options, headers, paths)
    endpoint = RemoteEndpoint.discover(
        url, options.model, contract, classes, options.dialect,
        output=options.output_name, output_kind=output or "probs", max_rows=max(options.batch_rows, BATCH_ROWS), plain_json=paths,
        headers=headers, config=options.config(), batch_rows=None if not paths.batched else options.batch_rows,
    )  # fmt: skip
    return RemoteVictim(endpoint, None if options.ledger is None else AnswerBook(endpoint, options.ledger))


def parse_headers(given: Iterable[str]) -> dict[str, str]:
    """Headers from NAME:VALUE and NAME:@FILE. Raises ConfigurationError, OSError."""
    headers = {}
    for text in given:
        name, colon, value = text.partition(":")
        value = value.strip()
        if value.startswith("@"):
            value = Path(value[1:]).read_text(encoding="utf-8").strip()
        if not colon or not HEADER_NAME.fullmatch(name.strip()) or not value.isprintable() or not value.isascii():
            raise ConfigurationError(f"--header must be NAME:VALUE or NAME:@FILE, in one line of ASCII, got one named {name.strip()!r}.")
        headers[name.strip()] = value
    return headers


def _adopted(url: str, contract: InputContract, options: RemoteOptions, headers: Mapping[str, str], paths: PlainJsonPaths) -> InputContract:
    """The contract with the input's name as the server has it."""
    model = ModelContract(options.model, contract, 2, plain_json=paths)
    with RemoteEndpoint(url, model, options.dialect, headers=headers, config=options.config()) as asked:
        metadata = asked.describe().metadata
    if metadata is None or len(metadata.inputs) != 1:
        return contract
    return dataclasses.replace(contract, name=metadata.inputs[0].name)


def _paths(given: tuple[str, ...]) -> PlainJsonPaths:
    paths = {}
    names = [field.name for field in dataclasses.fields(PlainJsonPaths)]
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in names:
            raise ConfigurationError(f"--path must be NAME=PATH with a name of {', '.join(names)}, got {text!r}.")
        if name == "batched" and value not in ("yes", "no"):
            raise ConfigurationError(f"--path batched must be yes or no, got {value!r}.")
        paths[name] = value == "yes" if name == "batched" else value
    return PlainJsonPaths(**paths)
