"""`sameguard attack`: any attack against any victim, the way a thief would. Parsing and printing only."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from sameguard.cli.attack_result import provenance, result_of, result_table, save_npz
from sameguard.cli.kept_answers import answers_kept, default_ledger, interrupted_is_130
from sameguard.cli.remote import (
    BATCH_ROWS,
    CALL_SECONDS,
    HTTP,
    DialectOption,
    HeaderOption,
    ModelOption,
    OutputNameOption,
    PathOption,
    RemoteOptions,
    RequestsOption,
    RowsOption,
    open_victim,
)
from sameguard.cli.sources import (
    ClassesOption,
    DtypeOption,
    LayoutOption,
    MeanOption,
    OutputOption,
    RootOption,
    SizeOption,
    StdOption,
    VictimOption,
    load_split,
    load_victim,
    same_output,
)
from sameguard.cli.thief import check_needs, chosen_offer, chosen_substitute, own_detector, print_offers, stolen, trainings
from sameguard.client import RemoteEndpoint, RemoteVictim
from sameguard.endpoint import Answers, MeteredEndpoint
from sameguard.errors import ConfigurationError
from sameguard.guard import Guard
from sameguard.policies import Reject
from sameguard.runtime import Scorer
from sameguard.victim import BlackBox


def attack_command(
    name: Annotated[
        str, typer.Argument(metavar="ATTACK", help="knockoff, jbda, dfme ... (--list tells all), or package.module:Class of your own.")
    ],
    victim: VictimOption,
    budget: Annotated[int, typer.Option(metavar="N", min=1, help="Queries that the thief may send.")],
    test: Annotated[
        str, typer.Option("--test", metavar="NAME|PATH", help="Labelled data of the victim's kind: what the stolen model is judged on.")
    ],
    proxy: Annotated[str | None, typer.Option("--proxy", metavar="NAME|PATH", help="The thief's images of another kind.")] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", metavar="NAME|PATH", help="The thief's few natural images (JBDA).")] = None,
    seed_count: Annotated[int, typer.Option(metavar="N", min=1, help="How many of them JBDA starts from.")] = 200,
    labels: Annotated[str, typer.Option(help="soft: learn from probabilities; hard: from the class alone.")] = "soft",
    epochs: Annotated[int, typer.Option(metavar="N", min=1, help="Epochs of the substitute's training.")] = 60,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="An option of the attack, such as step=0.05 (--list tells all); repeatable."),
    ] = None,
    substitute: Annotated[
        str | None,
        typer.Option(
            "--substitute",
            metavar="NAME|SPEC",
            help="The network that the thief trains: Conv3, SmallConv, FastCifar, ResNet18, MLP, or package.module:factory; without it "
            "the architecture of a torch victim, else one that suits the input.",
        ),
    ] = None,
    guard: Annotated[Path | None, typer.Option(metavar="ARTIFACT", help="Attack the victim behind this guard.")] = None,
    copy: Annotated[
        Path | None,
        typer.Option(
            "--copy", metavar="ARTIFACT", help="The thief's own copy of the detector, for thieves who know it; default --guard's."
        ),
    ] = None,
    data_root: RootOption = Path("data"),
    size: SizeOption = None,
    output: OutputOption = None,
    classes: ClassesOption = None,
    layout: LayoutOption = None,
    dtype: DtypeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of everything random.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda, for attacks that train a generator.")] = "cpu",
    ledger: Annotated[
        Path | None,
        typer.Option(
            help="Keep every answer in this file for good. Without it they are kept beside --save-queries, or here, until the attack is done: "
            "after a crash the same command goes on from there."
        ),
    ] = None,
    save_queries: Annotated[Path | None, typer.Option("--save-queries", help="Write queries and answers to this .npz.")] = None,
    listed: Annotated[
        bool,
        typer.Option("--list", is_eager=True, callback=print_offers, help="List all attacks, what they need and which options they take."),
    ] = False,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge",
            metavar="SPEC",
            help="The same victim without its guard, to judge the copy by; else the test inputs that are answered unpaid.",
            rich_help_panel=HTTP,
        ),
    ] = None,
    solve_seconds: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="Seconds to spend on a proof of work; 0 never pays.", rich_help_panel=HTTP)
    ] = 60.0,
    call_seconds: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0.001, help="Seconds to spend on all proofs of one batch of the thief's.", rich_help_panel=HTTP
        ),
    ] = CALL_SECONDS,
    model: ModelOption = "model",
    dialect: DialectOption = "oip",
    output_name: OutputNameOption = None,
    header: HeaderOption = None,
    path: PathOption = None,
    requests_per_second: RequestsOption = None,
    batch_rows: RowsOption = BATCH_ROWS,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Steal a model as a thief would, and print what it cost and how good the copy is.

    Example: sameguard attack knockoff --victim model.onnx --proxy femnist-digits --budget 1000 --test mnist
    """
    given = dict(locals())  # of the command line, while nothing else has a name
    offer = chosen_offer(name)
    options, copy = offer.read(setting or []), copy or guard
    check_needs(offer, options, {"--proxy": proxy, "--seeds": seeds, "--copy": copy})  # refused before data are read
    judged = load_split(test, data_root, "test", size)
    remote = RemoteOptions(
        model, dialect, output_name, tuple(header or ()), tuple(path or ()), requests_per_second, batch_rows,
        solve_seconds=solve_seconds, call_seconds=call_seconds,
    )  # fmt: skip
    told = {"layout": layout, "dtype": dtype, "mean": mean, "std": std}
    scorer = None if guard is None else Scorer(guard)
    if scorer is not None:
        output = same_output(scorer.manifest, output)
    contract = None if scorer is None or any(told.values()) else scorer.contract
    black_box = load_victim(victim, judged.raw.shape[1:], output=output, classes=classes, **told, contract=contract, remote=remote)
    judged_by = black_box if judge is None else _judge(judge, black_box, judged.raw.shape[1:])
    attacked = guard is None and isinstance(black_box, RemoteVictim)  # at its address, which may be a guard's
    network = chosen_substitute(substitute, black_box)
    belongings = {
        "substitute": network.make, "proxy": None if proxy is None else load_split(proxy, data_root, size=size),
        "seeds": None if seeds is None else load_split(seeds, data_root, size=size), "seed_count": seed_count, "labels": labels,
        "device": device, **trainings(epochs), **own_detector(offer.needs, copy, black_box),
    }  # fmt: skip
    endpoint: Any = _guarded(black_box, scorer) if scorer is not None else black_box.endpoint if attacked else black_box
    kept = default_ledger(given, save_queries) if ledger is None else ledger
    with interrupted_is_130(), answers_kept(endpoint, kept, lasting=ledger is not None) as asked:
        began = time.monotonic()
        with _said(f"{name}: {budget:,} queries to {victim}", black_box.endpoint if attacked else None) as progress:
            found = stolen(offer, belongings, options, progress, MeteredEndpoint(asked, budget=budget), seed)
        seconds, cost = time.monotonic() - began, _cost(endpoint) if attacked else None
        queries = black_box.contract.canonicalise(judged.inputs)
        truth = _answered_unpaid(endpoint.url, black_box, remote, queries) if attacked and judge is None else judged_by.query(queries)
        result = {
            "attack": name, "budget": budget, **result_of(found, queries, truth, judged.labels), "cost": cost, "seed": seed,
            "victim": black_box.name, "substitute": network.what, "labels": labels, "epochs": epochs, "options": options,
            "data": {"test": test, "proxy": proxy, "seeds": seeds}, **provenance(seconds),
        }  # fmt: skip
        if save_queries is not None:
            save_npz(save_queries, found, result)
    if as_json:
        typer.echo(json.dumps(result, indent=1))
    else:
        Console().print(result_table(result))


def _judge(spec: str, victim: BlackBox, shape: tuple[int, ...]) -> BlackBox:
    """What --judge names. Raises ConfigurationError where it has other classes than the victim."""
    judge = load_victim(spec, shape, output=None, classes=None if spec.endswith(".onnx") else victim.classes)
    if judge.classes != victim.classes:
        raise ConfigurationError(f"--judge must have the victim's {victim.classes} classes, got {judge.classes}.")
    return judge


def _answered_unpaid(url: str, victim: RemoteVictim, remote: RemoteOptions, queries: np.ndarray) -> Answers:
    """What whoever pays nothing gets, asked one by one: beside a refused row the others of a batch would be refused too."""
    unpaid = replace(remote, solve_seconds=0.0, batch_rows=1)
    with open_victim(url, victim.contract, unpaid, output=victim.output, classes=victim.classes).endpoint as endpoint:
        return endpoint.query(queries)


def _so_far(endpoint: RemoteEndpoint) -> str:
    """For whoever waits: paying for one batch may take minutes."""
    rows, traffic = endpoint.rows, endpoint.traffic
    return (
        f"so far: {traffic.requests:,} requests, {traffic.challenges:,} proofs of work in {traffic.cpu_seconds:,.0f} CPU seconds, "
        f"{rows.answered:,} rows answered, {rows.refused:,} refused"
    )


def _cost(endpoint: RemoteEndpoint) -> dict[str, int | float]:
    """What the attack cost this client over HTTP."""
    return {**asdict(endpoint.traffic), "unpaid_rows": endpoint.rows.unpaid, "split_batches": endpoint.rows.splits}


def _guarded(victim: BlackBox, scorer: Scorer) -> Guard:
    return Guard(victim, scorer, Reject(scorer.threshold()))


@contextmanager
def _said(what: str, endpoint: RemoteEndpoint | None) -> Iterator[Any]:
    """Progress on stderr, and every so often what an endpoint over HTTP has cost so far."""
    from sameguard.cli.progress import said_meanwhile, stage_bars  # they need torch, and the other commands do not

    with stage_bars() as progress, ExitStack() as running:
        progress.say(what)
        if endpoint is not None:
            running.enter_context(said_meanwhile(progress.say, lambda: _so_far(endpoint)))
        yield progress
