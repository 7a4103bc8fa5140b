"""`sameguard attack`: any attack against any victim, the way a thief would. Parsing and printing only."""

import ast
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

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
from sameguard.endpoint import MeteredEndpoint
from sameguard.errors import ConfigurationError
from sameguard.ledger import Ledger
from sameguard.victim import BlackBox


def attack_command(
    name: Annotated[str, typer.Argument(metavar="ATTACK", help="knockoff, jbda, dfme ...: an unknown name prints them all.")],
    victim: VictimOption,
    budget: Annotated[int, typer.Option(min=1, help="Queries that the thief may send.")],
    test: Annotated[
        str, typer.Option("--test", metavar="NAME|PATH", help="Labelled data of the victim's kind: what the stolen model is judged on.")
    ],
    proxy: Annotated[str | None, typer.Option("--proxy", metavar="NAME|PATH", help="The thief's images of another kind.")] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", metavar="NAME|PATH", help="The thief's few natural images (JBDA).")] = None,
    seed_count: Annotated[int, typer.Option(min=1, help="How many of them JBDA starts from.")] = 200,
    labels: Annotated[str, typer.Option(help="soft: learn from probabilities; hard: from the class alone.")] = "soft",
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of the substitute's training.")] = 60,
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
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda, for attacks that train a generator.")] = "cpu",
    ledger: Annotated[
        Path | None, typer.Option(help="Keep every answer in this file: the same command goes on from it after a crash.")
    ] = None,
    save_queries: Annotated[Path | None, typer.Option("--save-queries", help="Write queries and answers to this .npz.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Steal a model as a thief would, and print what it cost and how good the copy is.

    Example: sameguard attack knockoff --victim model.onnx --proxy femnist-digits --budget 1000 --test mnist
    """
    try:
        from sameguard.cli.progress import stage_bars
        from sameguard.detectors import default_auxiliary
        from sameguard.evaluation.attack_kinds import Belongings, attack_kind, make_attack
        from sameguard.evaluation.metrics import accuracy, fidelity
        from sameguard.training import FitConfig, RunControl
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"attack trains a substitute and needs {error.name}: pip install 'sameguard[train]'.") from error
    attack_kind(name)  # an unknown name is refused before data are read
    judged = load_split(test, data_root, "test", size)
    black_box = load_victim(victim, judged.raw.shape[1:], output=output, classes=classes, layout=layout, dtype=dtype, mean=mean, std=std)
    config = FitConfig(epochs=epochs, batch_size=64, learning_rate=1e-3, weight_decay=1e-4, precision="fp32")
    with stage_bars() as progress:
        belongings = Belongings(
            lambda: default_auxiliary(black_box.contract.shape, black_box.classes),
            proxy=None if proxy is None else load_split(proxy, data_root, size=size),
            seeds=None if seeds is None else load_split(seeds, data_root, size=size),
            config=config, round_fit=config.with_(epochs=max(1, epochs // 6)), seed_count=seed_count, labels=labels, device=device,
            control=RunControl(progress=progress),
        )  # fmt: skip
        thief = make_attack(name, belongings, budget, _options(setting or []))
        endpoint: Any = black_box if guard is None else _guarded(black_box, guard)
        meter = MeteredEndpoint(endpoint if ledger is None else Ledger(endpoint, ledger), budget=budget)
        found = thief.run(meter, seed)
    queries = black_box.contract.canonicalise(judged.inputs)
    result = {
        "attack": name, "budget": budget, "used": found.used, "answered": int(found.answered.sum()), "test": len(queries),
        "fidelity": fidelity(found.substitute, black_box, queries),
        "accuracy": None if judged.labels is None else accuracy(found.substitute, queries, judged.labels),
        "victim_accuracy": None if judged.labels is None else accuracy(black_box, queries, judged.labels), "notes": found.notes,
    }  # fmt: skip
    if save_queries is not None:
        _save(save_queries, found)
    if as_json:
        typer.echo(json.dumps(result, indent=1))
    else:
        Console().print(_table(result))


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
    table.add_row("fidelity of the copy", f"{100 * result['fidelity']:.1f} % of {result['test']:,} test inputs")
    if result["accuracy"] is not None:
        table.add_row("accuracy of the copy", f"{100 * result['accuracy']:.1f} %")
        table.add_row("accuracy of the victim", f"{100 * result['victim_accuracy']:.1f} %")
    for name, value in result["notes"].items():
        table.add_row(name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
    return table
