"""`sameguard fit` and `sameguard calibrate`: from a victim and its data to an artefact with a threshold."""

import dataclasses
import math
import os
import warnings
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from sameguard.calibration import Threshold, calibrate, check_supported, count_fresh
from sameguard.cli.remote import (
    BATCH_ROWS,
    DialectOption,
    HeaderOption,
    LedgerOption,
    ModelOption,
    OutputNameOption,
    PathOption,
    RemoteOptions,
    RequestsOption,
    RowsOption,
)
from sameguard.cli.sources import (
    BenignOption,
    ClassesOption,
    DataOption,
    DtypeOption,
    HeldOutOption,
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
    train_and_benign,
)
from sameguard.errors import ConfigurationError
from sameguard.runtime import Scorer, choose_engine
from sameguard.runtime.engines import parse_provider, require
from sameguard.victim import BlackBox

PAUSED = 75  # exit code of a fit that the time budget stopped: temporary, try again (EX_TEMPFAIL of sysexits.h)
RateOption = Annotated[float, typer.Option("--rate", help="False-positive rate: the share of benign queries that may be flagged.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
EngineOption = Annotated[str, typer.Option("--engine", help="auto (fastest that agrees), onnxruntime, openvino, openvino-bf16.")]


def fit_command(
    victim: VictimOption,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Directory of the artefact.")],
    data_root: RootOption = Path("data"),
    held_out: HeldOutOption = 0.0,
    benign: BenignOption = None,
    size: SizeOption = None,
    rate: RateOption = 0.05,
    preset: Annotated[str, typer.Option("--preset", help="cpu, paper or released.")] = "cpu",
    epochs: Annotated[int | None, typer.Option(help="Epochs of the autoencoder, instead of the preset's.")] = None,
    auxiliary_epochs: Annotated[int | None, typer.Option(help="Epochs of the auxiliary model, instead of the preset's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Batch of the autoencoder, instead of the preset's.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate of the autoencoder, instead of the preset's.")] = None,
    patch_size: Annotated[int | None, typer.Option(help="Patch side (features per patch for vectors), instead of the preset's.")] = None,
    snapshot_epochs: Annotated[str, typer.Option(help="Comma-separated epochs whose autoencoder weights are kept.")] = "",
    share: Annotated[str, typer.Option(help="none, or trunk: the auxiliary shares the torch victim's weights.")] = "none",
    output: OutputOption = None,
    classes: ClassesOption = None,
    layout: LayoutOption = None,
    dtype: DtypeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    engine: EngineOption = "auto",
    seed: SeedOption = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile: about a minute first, then 1.05x to 1.25x.")] = False,
    time_budget: Annotated[float | None, typer.Option(help="Seconds after which to stop cleanly (exit code 75); --resume goes on.")] = None,
    checkpoint_seconds: Annotated[float, typer.Option(help="Seconds between checkpoints.")] = 60.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoints of an interrupted fit.")] = False,
    work: Annotated[Path | None, typer.Option(help="Directory of checkpoints, for its owner only; default OUT.work.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an artefact that is there.")] = False,
    model: ModelOption = "model",
    dialect: DialectOption = "oip",
    output_name: OutputNameOption = None,
    header: HeaderOption = None,
    path: PathOption = None,
    requests_per_second: RequestsOption = None,
    batch_rows: RowsOption = BATCH_ROWS,
    ledger: LedgerOption = None,
) -> None:
    """Fit SAME on the victim's training data, write the artefact, and calibrate it where benign queries are given.

    Example: sameguard fit --victim model.onnx --data mnist --held-out 0.1 --out guard/
    """
    torch_backed = _training_parts()
    out = out.resolve()  # "." has a name too
    _check_below_a_directory("--out", out)
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise ConfigurationError(f"--out {out} must be new or empty, got a directory with content: choose another, or pass --overwrite.")
    work = work or out.with_name(f"{out.name}.work")
    _check_below_a_directory("--work", work.resolve())
    check_seconds("--time-budget", time_budget)
    check_seconds("--checkpoint-seconds", checkpoint_seconds)
    if not (resume or overwrite) and any(work.glob("*.checkpoint")):
        raise ConfigurationError(
            f"{work} holds checkpoints of another fit: go on with --resume, start anew with --overwrite, or name another --work."
        )
    if engine != "auto":
        require(parse_provider(engine))
    train, benign_queries = train_and_benign(data, data_root, held_out, benign, size)
    remote = RemoteOptions(model, dialect, output_name, tuple(header or ()), tuple(path or ()), requests_per_second, batch_rows, ledger)
    black_box = load_victim(
        victim, train.raw.shape[1:], output=output, classes=classes, layout=layout, dtype=dtype, mean=mean, std=std, remote=remote
    )
    if benign_queries is not None:  # what cannot be calibrated afterwards is refused before hours of training
        check_supported(count_fresh(black_box.contract, benign_queries, train.batches(4096)), rate)
    detector = _detector(torch_backed, black_box, preset, share, patch_size, auxiliary_epochs)
    changes = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    config = detector.preset.fit.with_(
        seed=seed, device=device, precision=precision, compile=compile,
        snapshot_epochs=_epochs(snapshot_epochs),
        **{name: value for name, value in changes.items() if value is not None},
        **({"warmup_epochs": min(detector.preset.fit.warmup_epochs, float(epochs))} if epochs is not None else {}),
    )  # fmt: skip
    _make_work(work)
    with torch_backed.stage_bars() as bars:
        control = torch_backed.RunControl(
            work, resume, checkpoint_seconds, progress=bars, log=lambda message: typer.echo(message, err=True)
        ).with_time_budget(time_budget)
        try:
            detector.fit(train, black_box, config, benign=benign_queries, control=control)
        except torch_backed.TrainingPausedError as pause:
            typer.echo(f"{pause}\nGo on with the same command and --resume.", err=True)
            raise typer.Exit(130 if "interrupted" in str(pause) else PAUSED) from pause
    scorer = detector.export(out, overwrite=overwrite)
    _save_snapshots(detector, work)
    report = detector.report
    typer.echo(f"fitted on {report['rows']} rows; precision {report['precision']}; last training loss {report['epoch_losses'][-1]:.4g}")
    typer.echo(f"auxiliary agrees with the victim on {report['agreement']:.2%} of {report['agreement_rows']} {report['agreement_on']}")
    if "memory_bytes" in report:
        sizes = report["memory_bytes"]
        typer.echo(
            f"memory: victim {sizes['victim']:,} bytes, auxiliary {sizes['auxiliary']:,}, both together {sizes['together']:,} (share {share})"
        )
    typer.echo(f"artefact: {out}")
    typer.echo(f"checkpoints and reconstructions of the training data stay in {work}: delete it when the fit is done with")
    if benign_queries is None:
        typer.echo(
            "Not calibrated: there are no benign queries that the victim has not trained on. Give some:\n"
            f"  sameguard calibrate {out} --victim {victim} --benign held_out.npz"
        )
        return
    _calibrate_and_print(scorer, benign_queries, black_box, rate, engine, seed, from_training_data=False)


def check_seconds(option: str, seconds: float | None) -> None:
    """Raises ConfigurationError for a number of seconds that no clock ever passes, or is below 0."""
    if seconds is not None and not 0.0 <= seconds < math.inf:
        raise ConfigurationError(f"{option} must be a number of seconds from 0 on, got {seconds}.")


def _check_below_a_directory(option: str, path: Path) -> None:
    nearest = next(parent for parent in (path, *path.parents) if parent.exists())
    if not nearest.is_dir():
        raise ConfigurationError(f"{option} {path} must be or lie below a directory, got the file {nearest}: choose another.")


def _make_work(work: Path) -> None:
    """Makes the directory of checkpoints, for its owner only. One that is there may be somebody's home: it keeps its mode, with a warning."""
    work.mkdir(0o700, parents=True, exist_ok=True)
    if os.name == "posix" and work.stat().st_mode & 0o077:
        warnings.warn(
            f"{work} can be read by others than its owner, and checkpoints, answers and reconstructions will lie there: chmod 700 {work}.",
            stacklevel=2,
        )


def _epochs(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError as error:
        raise ConfigurationError(f"--snapshot-epochs must be comma-separated whole numbers, got {text!r}.") from error


def _detector(torch_backed, victim: BlackBox, preset: str, share: str, patch_size: int | None, auxiliary_epochs: int | None):
    """The preset's detector with what the flags change."""
    chosen = torch_backed.preset(preset, victim.contract.shape, victim.classes)
    sizes = chosen.autoencoder if patch_size is None else dataclasses.replace(chosen.autoencoder, patch_size=patch_size)
    auxiliary = chosen.auxiliary
    if auxiliary_epochs is not None:
        warmup = min(auxiliary.fit.warmup_epochs, auxiliary_epochs)
        auxiliary = dataclasses.replace(auxiliary, fit=auxiliary.fit.with_(epochs=auxiliary_epochs, warmup_epochs=warmup))
    return torch_backed.SAME(
        victim.contract, victim.classes, share=share, preset_name=preset, autoencoder=sizes, auxiliary_config=auxiliary
    )


def calibrate_command(
    artifact: Annotated[Path, typer.Argument(help="Directory of the artefact.")],
    victim: VictimOption,
    benign: BenignOption = None,
    data: Annotated[str | None, typer.Option("--data", metavar="NAME|PATH", help="Data of which --held-out is cut off.")] = None,
    data_root: RootOption = Path("data"),
    held_out: HeldOutOption = 0.0,
    size: SizeOption = None,
    rate: RateOption = 0.05,
    engine: EngineOption = "auto",
    output: OutputOption = None,
    classes: ClassesOption = None,
    seed: SeedOption = 0,
    from_training_data: Annotated[
        bool, typer.Option("--from-training-data", help="Use --data whole although the victim trained on them: biased.")
    ] = False,
    model: ModelOption = "model",
    dialect: DialectOption = "oip",
    output_name: OutputNameOption = None,
    header: HeaderOption = None,
    path: PathOption = None,
    requests_per_second: RequestsOption = None,
    batch_rows: RowsOption = BATCH_ROWS,
    ledger: LedgerOption = None,
) -> None:
    """Fit the score's statistics and the threshold on held-out benign queries, on the engine that will serve.

    Example: sameguard calibrate guard/ --victim model.onnx --benign held_out.npz --rate 0.01
    """
    scorer = Scorer(artifact, for_calibration=True)
    if from_training_data:
        if data is None:
            raise ConfigurationError("--from-training-data needs --data, got none.")
        queries = load_split(data, data_root, size=size).inputs
    elif benign is not None:
        queries = load_split(benign, data_root, "test", size).inputs
    elif data is not None and held_out:
        queries = train_and_benign(data, data_root, held_out, None, size)[1]
    else:
        raise ConfigurationError(
            "calibrate needs benign queries: give --benign, or --data with --held-out, or --data with --from-training-data."
        )
    declared = same_output(scorer.manifest, output)
    remote = RemoteOptions(model, dialect, output_name, tuple(header or ()), tuple(path or ()), requests_per_second, batch_rows, ledger)
    black_box = load_victim(
        victim, queries.shape[1:], output=declared, classes=classes or scorer.classes, contract=scorer.contract, remote=remote
    )
    _calibrate_and_print(scorer, queries, black_box, rate, engine, seed, from_training_data)


def _calibrate_and_print(
    scorer: Scorer, benign: np.ndarray, victim: BlackBox, rate: float, engine: str, seed: int, from_training_data: bool
) -> Threshold:
    if engine == "auto":
        for name, found in choose_engine(scorer, benign, victim).items():
            typer.echo(
                f"engine {name}: {found['ms_per_query']:.2f} ms per query, rank correlation {found['rank_correlation']:.5f}, "
                f"flag agreement {found['flag_agreement']:.2%}",
                err=True,
            )
    else:
        scorer = Scorer(scorer.directory, engine=engine, for_calibration=True)
    threshold = calibrate(scorer, benign, victim, rate, seed=seed, from_training_data=from_training_data)
    scorer.save(threshold)
    typer.echo(f"calibrated on {scorer.provider}; auxiliary agreement {scorer.calibration.agreement:.2%} on the statistics queries")
    typer.echo(str(threshold))
    return threshold


def _save_snapshots(detector, work: Path) -> None:
    if detector.snapshots:
        from safetensors.torch import save_file

        for epoch, weights in detector.snapshots.items():
            save_file({name: value.contiguous() for name, value in weights.items()}, work / f"autoencoder-epoch-{epoch}.safetensors")
        typer.echo(f"snapshots: {work}/autoencoder-epoch-*.safetensors")


class _training_parts:
    """What fit needs from the torch-backed half, imported late: the other commands run without torch."""

    def __init__(self) -> None:
        try:
            from sameguard.cli.progress import stage_bars
            from sameguard.detectors import SAME, preset
            from sameguard.training import RunControl, TrainingPausedError
        except ModuleNotFoundError as error:
            raise ConfigurationError(f"fit needs {error.name}, which is not installed: pip install 'sameguard[train]'.") from error
        self.SAME, self.preset, self.RunControl = SAME, preset, RunControl
        self.TrainingPausedError, self.stage_bars = TrainingPausedError, stage_bars
