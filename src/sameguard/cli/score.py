"""`sameguard score` and `sameguard show`: apply an artefact to queries, and read what it says of itself. Neither needs torch."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sameguard.artifact import read_artifact
from sameguard.cli.remote import (
    BATCH_ROWS,
    DialectOption,
    HeaderOption,
    ModelOption,
    OutputNameOption,
    PathOption,
    RemoteOptions,
    RequestsOption,
    RowsOption,
)
from sameguard.cli.sources import (
    ClassesOption,
    DataOption,
    OutputOption,
    RootOption,
    SizeOption,
    VictimOption,
    load_split,
    load_victim,
    same_output,
)
from sameguard.errors import ArtifactError, CalibrationError, ConfigurationError
from sameguard.policies import LevelDescription, ProofOfWork
from sameguard.runtime import Scorer

PartOption = Annotated[str, typer.Option("--part", help="train or test, where the data have both.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
BATCH = 1024


def score_command(
    artifact: Annotated[Path, typer.Argument(help="Directory of a calibrated artefact.")],
    victim: VictimOption,
    data: DataOption,
    data_root: RootOption = Path("data"),
    part: PartOption = "test",
    size: SizeOption = None,
    limit: Annotated[int | None, typer.Option(help="Score the first N queries only.")] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="Another false-positive rate than the stored one.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write every row: .npz (scores, stage_a, flagged, all terms) or .csv.")] = None,
    output: OutputOption = None,
    classes: ClassesOption = None,
    model: ModelOption = "model",
    dialect: DialectOption = "oip",
    output_name: OutputNameOption = None,
    header: HeaderOption = None,
    path: PathOption = None,
    requests_per_second: RequestsOption = None,
    batch_rows: RowsOption = BATCH_ROWS,
    as_json: JsonOption = False,
) -> None:
    """Score queries against a calibrated artefact and count what its threshold flags.

    Example: sameguard score guard/ --victim model.onnx --data queries.npz --out scores.csv
    """
    if part not in ("train", "test"):
        raise ConfigurationError(f"--part must be train or test, got {part!r}.")
    if limit is not None and limit < 1:
        raise ConfigurationError(f"--limit must be at least 1, got {limit}.")
    if out is not None and out.suffix not in (".npz", ".csv"):
        raise ConfigurationError(f"--out must end in .npz or .csv, got {out}.")
    scorer = Scorer(artifact)
    threshold = scorer.threshold(rate)
    queries = load_split(data, data_root, part, size)
    queries = (queries if limit is None else queries.take(np.arange(min(limit, len(queries))))).inputs
    remote = RemoteOptions(model, dialect, output_name, tuple(header or ()), tuple(path or ()), requests_per_second, batch_rows)
    black_box = load_victim(
        victim,
        queries.shape[1:],
        output=same_output(scorer.manifest, output),
        classes=classes or scorer.classes,
        contract=scorer.contract,
        remote=remote,
    )
    scorer.calibration.check_victim(black_box)
    rows = _scored(scorer, black_box, queries)
    stage_a = rows.get("stage_a")
    flagged = threshold.flags(rows["score"], stage_a)
    if out is not None:
        _write(out, rows | {"flagged": flagged})
    summary = {
        "queries": len(flagged),
        "flagged": int(flagged.sum()),
        "flagged_share": float(flagged.mean()),
        "threshold": threshold.value,
        "false_positive_rate": threshold.false_positive_rate,
        "score_quantiles": {name: float(np.quantile(rows["score"], q)) for name, q in (("5%", 0.05), ("50%", 0.5), ("95%", 0.95))},
        "engine": str(scorer.provider),
    }
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
        return
    table = Table("queries", "flagged", "share", "threshold", "score, 5 %", "median", "95 %")
    quantiles = [f"{value:.3g}" for value in summary["score_quantiles"].values()]
    table.add_row(str(len(flagged)), str(summary["flagged"]), f"{flagged.mean():.2%}", f"{threshold.value:.4g}", *quantiles)
    Console().print(table)
    typer.echo(str(threshold))
    if out is not None:
        typer.echo(f"rows: {out}")


def _scored(scorer: Scorer, victim, queries: np.ndarray) -> dict[str, np.ndarray]:
    parts = []
    for start in range(0, len(queries), BATCH):
        chunk = scorer.contract.canonicalise(queries[start : start + BATCH])
        terms = scorer.score_terms(chunk, victim.answer(chunk))
        stage_a = scorer.combination.stage_a(terms)
        parts.append(({} if stage_a is None else {"stage_a": stage_a}) | {"score": scorer.combination.score(terms)} | terms)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _write(out: Path, rows: dict[str, np.ndarray]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.touch(0o600)  # a new file is for its owner only: scores of many queries tell a thief which of them pass
    if out.suffix == ".npz":
        np.savez_compressed(out, **rows)
        return
    names = ["score", "flagged", *[name for name in rows if name not in ("score", "flagged")]]
    with out.open("w", encoding="utf-8") as file:
        file.write("row," + ",".join(names) + "\n")
        for row, values in enumerate(zip(*[rows[name] for name in names], strict=True)):
            file.write(f"{row}," + ",".join(str(int(value)) if isinstance(value, np.bool_) else f"{value:.9g}" for value in values) + "\n")


def show_command(artifact: Annotated[Path, typer.Argument(help="Directory of the artefact.")], as_json: JsonOption = False) -> None:
    """Show what an artefact guards, how it was fitted, what its threshold promises, and what a proof of work would cost.

    Example: sameguard show guard/
    """
    read_artifact(artifact)  # verifies every file that the manifest lists, the weights too, which serving does not read
    scorer = _on_any_engine(artifact)
    manifest = scorer.manifest
    price, why_not = _price(scorer)
    if as_json:
        typer.echo(json.dumps({**manifest, "proof_of_work": _price_as_json(price, why_not)}, indent=2))
        return
    contract, fit, score = manifest["contract"], manifest.get("fit", {}), manifest["score"]
    table = Table(show_header=False, title=escape(str(artifact)))
    table.add_row(
        "input", f"{contract['shape']} {contract['dtype']} {contract['layout']}, bounds {contract['bounds']}, grid {contract['grid']}"
    )
    table.add_row(
        "victim",
        f"{manifest['classes']} classes, returns {manifest['victim']['output']}" + (" (label-only deviation)" if scorer.label_only else ""),
    )
    table.add_row(
        "preset", f"{manifest['preset']}; auxiliary {manifest['auxiliary']['network']} on {manifest['auxiliary']['view']} reconstructions"
    )
    table.add_row("score", f"{score['combination']} of views {', '.join(score['views'])} and deviation {score['deviation']}")
    if "rows" in fit:
        table.add_row(
            "fitted", f"on {fit['rows']} rows; auxiliary agrees on {fit['agreement']:.2%} of {fit['agreement_rows']} {fit['agreement_on']}"
        )
    thresholds = scorer.thresholds
    table.add_row("threshold", "\n".join(map(str, thresholds)) if thresholds else "none yet: sameguard calibrate")
    if "provider" in manifest:
        provider = manifest["provider"]
        table.add_row("bound to", f"{provider['engine']} {provider['version']}, {provider['precision']}")
        table.add_row("roles", ", ".join(f"{role} {count}" for role, count in manifest["roles"].items()) + " queries, disjoint by digest")
    if "weights.safetensors" not in manifest["files"]:
        table.add_row("weights", "left out: it serves and can be calibrated again, but its networks cannot be trained further")
    table.add_row("files", ", ".join(f"{entry['file']} ({entry['bytes']:,} bytes)" for entry in manifest["files"].values()))
    table.add_row("written by", f"sameguard {manifest['sameguard']}")
    if price is None:
        table.add_row("proof of work", escape(why_not))
    Console().print(table)
    if price is not None:
        Console().print(_price_table(price))
    typer.echo(f"artifact_digest: {manifest['sha256']}")  # as the guard's settings pin it


def _on_any_engine(artifact: Path) -> Scorer:
    """With its calibration where the engine that it is bound to is installed, else without."""
    try:
        return Scorer(artifact)
    except ArtifactError:  # a damaged artefact says so again
        return Scorer(artifact, for_calibration=True)


def _price(scorer: Scorer) -> tuple[ProofOfWork | None, str]:
    """Proof of work at its default levels, or why this artefact cannot have it."""
    if scorer.calibration is None:
        return None, "bound to an engine that is not installed here" if scorer.thresholds else "not calibrated yet: sameguard calibrate"
    try:
        return ProofOfWork(scorer.calibration), ""
    except CalibrationError as error:
        return None, str(error)


def _price_as_json(price: ProofOfWork | None, why_not: str) -> dict[str, Any]:
    if price is None:
        return {"levels": [], "why_not": why_not}
    return {"puzzle": asdict(price.pricing.puzzle), "levels": [asdict(level) for level in price.describe()]}


def _price_table(price: ProofOfWork) -> Table:
    puzzle = price.pricing.puzzle
    title = f"proof of work, {puzzle.algorithm} at {puzzle.seconds_per_try:g} s a try on one core"
    table = Table("level", "benign, at most", "realised (95 %)", "mean tries", "expected", "at worst", title=title)
    for level in price.describe():
        table.add_row(*_cells(level))
    return table


def _cells(level: LevelDescription) -> tuple[str, ...]:
    low, high = level.interval
    share, realised = f"{level.benign_share:.2%}", f"{low:.2%} to {high:.2%}"
    return str(level.level), share, realised, str(level.work), f"{level.expected_seconds:.3g} s", f"{level.worst_seconds:.3g} s"
