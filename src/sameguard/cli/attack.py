"""`sameguard attack`: any attack against any victim, the way a thief would. Parsing and printing only."""

import ast
import json
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

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
)
from sameguard.client import RemoteEndpoint, RemoteVictim
from sameguard.endpoint import Answers, MeteredEndpoint
from sameguard.errors import ConfigurationError
from sameguard.ledger import Ledger
from sameguard.victim import BlackBox


def attack_command(
    name: Annotated[str, typer.Argument(metavar="ATTACK", help="knockoff, jbda, dfme ...: an unknown name prints them all.")],
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
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="An option of the attack, such as step=0.05.")
    ] = None,
    guard: Annotated[Path | None, typer.Option(help="An artefact: attack the victim behind this guard.")] = None,
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
        Path | None, typer.Option(help="Keep every answer in this file: the same command goes on from it after a crash.")
    ] = None,
    save_queries: Annotated[Path | None, typer.Option("--save-queries", help="Write queries and answers to this .npz.")] = None,
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
    try:
        from sameguard.cli.progress import said_meanwhile, stage_bars
        from sameguard.detectors import default_auxiliary
        from sameguard.evaluation.attack_kinds import Belongings, attack_kind, make_attack
        from sameguard.networks import predict_logits
        from sameguard.training import FitConfig, RunControl
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"attack trains a substitute and needs {error.name}: pip install 'sameguard[train]'.") from error
    attack_kind(name)  # an unknown name is refused before data are read
    judged = load_split(test, data_root, "test", size)
    remote = RemoteOptions(
        model, dialect, output_name, tuple(header or ()), tuple(path or ()), requests_per_second, batch_rows,
        solve_seconds=solve_seconds, call_seconds=call_seconds,
    )  # fmt: skip
    told = {"layout": layout, "dtype": dtype, "mean": mean, "std": std}
    black_box = load_victim(victim, judged.raw.shape[1:], output=output, classes=classes, **told, remote=remote)
    judged_by = black_box if judge is None else _judge(judge, black_box, judged.raw.shape[1:])
    attacked = guard is None and isinstance(black_box, RemoteVictim)  # at its address, which may be a guard's
    config = FitConfig(epochs=epochs, batch_size=64, learning_rate=1e-3, weight_decay=1e-4, precision="fp32")
    with stage_bars() as progress, ExitStack() as running:
        progress.say(f"{name}: {budget:,} queries to {victim}")
        if attacked:
            running.enter_context(said_meanwhile(progress.say, lambda: _so_far(black_box.endpoint)))
        belongings = Belongings(
            lambda: default_auxiliary(black_box.contract.shape, black_box.classes),
            proxy=None if proxy is None else load_split(proxy, data_root, size=size),
            seeds=None if seeds is None else load_split(seeds, data_root, size=size),
            config=config, round_fit=config.with_(epochs=max(1, epochs // 6)), seed_count=seed_count, labels=labels, device=device,
            control=RunControl(progress=progress),
        )  # fmt: skip
        thief = make_attack(name, belongings, budget, _options(setting or []))
        endpoint: Any = _guarded(black_box, guard) if guard is not None else black_box.endpoint if attacked else black_box
        meter = MeteredEndpoint(endpoint if ledger is None else Ledger(endpoint, ledger), budget=budget)
        found = thief.run(meter, seed)
    queries = black_box.contract.canonicalise(judged.inputs)
    cost = _cost(endpoint) if attacked else None
    truth = _answered_unpaid(endpoint.url, black_box, remote, queries) if attacked and judge is None else judged_by.query(queries)
    stolen, own = (logits.argmax(axis=1) for logits in (predict_logits(found.substitute, queries), truth.probs))
    result = {
        "attack": name, "budget": budget, "used": found.used, "answered": int(found.answered.sum()), "test": len(queries),
        "judged": int(truth.answered.sum()), "fidelity": _share((stolen == own)[truth.answered]),
        "accuracy": None if judged.labels is None else _share(stolen == judged.labels),
        "victim_accuracy": None if judged.labels is None else _share((own == judged.labels)[truth.answered]),
        "notes": found.notes, "cost": cost,
    }  # fmt: skip
    if save_queries is not None:
        _save(save_queries, found)
    if as_json:
        typer.echo(json.dumps(result, indent=1))
    else:
        Console().print(_table(result))


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


def _share(agreed: np.ndarray) -> float | None:
    return float(agreed.mean()) if len(agreed) else None


def _guarded(victim: BlackBox, artefact: Path) -> Any:
    from sameguard.guard import Guard
    from sameguard.policies import Reject
    from sameguard.runtime import Scorer

    scorer = Scorer(artefact)
    return Guard(victim, scorer, Reject(scorer.threshold()))


def _options(settings: list[str]) -> dict[str, Any]:
    options = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise ConfigurationError(f"--set must be NAME=VALUE, got {setting!r}.")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value  # a word
    return options


def _save(path: Path, found: Any) -> None:
    natural = np.zeros(len(found.queries), bool) if found.natural is None else found.natural
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # numpy would add .npz to another name
        np.savez_compressed(file, inputs=found.queries, victim_probs=found.probs, answered=found.answered, natural=natural)


def _table(result: dict[str, Any]) -> Table:
    table = Table("", "value", title=f"{result['attack']}: {result['used']:,} of {result['budget']:,} queries spent")
    table.add_row("answered", f"{result['answered']:,} of {result['used']:,}")
    judged = f"{result['judged']:,} test inputs"
    if result["judged"] < result["test"]:
        judged += f", those of {result['test']:,} that are answered unpaid"
    table.add_row("fidelity of the copy", f"{_percent(result['fidelity'])} of {judged}")
    if result["accuracy"] is not None:
        table.add_row("accuracy of the copy", _percent(result["accuracy"]))
        table.add_row("accuracy of the victim", _percent(result["victim_accuracy"]))
    if result["cost"] is not None:
        cost = result["cost"]
        table.add_row("requests", f"{cost['requests']:,}, of them {cost['retries']:,} again")
        table.add_row(
            "proofs of work", f"{cost['challenges']:,} in {cost['cpu_seconds']:.1f} CPU seconds; {cost['unpaid_rows']:,} rows not paid for"
        )
    for name, value in result["notes"].items():
        table.add_row(name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
    return table


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.1f} %"
