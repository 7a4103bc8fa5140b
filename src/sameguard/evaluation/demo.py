"""The demonstration: fit SAME on scikit-learn's digits, let a Knockoff thief try to rebuild the victim, with and without the guard.

Everything comes with the installed packages: the digits are real handwriting at 8x8, the thief's proxy are letters and symbols rendered
from fonts. One seed and toy data: it shows how the parts go together, not how good SAME is. Nothing here is tuned on the thief's queries.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sameguard.attacks import Extraction, KnockoffNets
from sameguard.calibration import Threshold, calibrate, clopper_pearson
from sameguard.contract import InputContract
from sameguard.data import Split, load, split
from sameguard.data.glyphs import render_glyphs
from sameguard.detectors import SAME, AuxiliaryConfig
from sameguard.endpoint import MeteredEndpoint
from sameguard.errors import ConfigurationError
from sameguard.evaluation.demo_picture import Shown, draw
from sameguard.evaluation.metrics import accuracy, auroc, average_precision, bootstrap_interval, fidelity
from sameguard.guard import Guard
from sameguard.networks import SmallConv, fit_classifier
from sameguard.networks.torch_victim import TorchVictim
from sameguard.policies import Reject
from sameguard.reconstruction import MAEConfig
from sameguard.runtime import Scorer
from sameguard.training import FitConfig, ProgressEvent, RunControl, seeded

CLASSES = 10
PROXY_SURPLUS = 2  # the thief owns this many times as many glyphs as it may ask about
SHOWN = 5  # examples of each kind in the picture: the first ones, not chosen ones
RESAMPLES = 500  # of the AUROC's interval
OWN_FIT = FitConfig(epochs=25, batch_size=64, learning_rate=2e-3, weight_decay=1e-4, precision="fp32")  # owner and thief train alike

Progress = Callable[[ProgressEvent], None]


@dataclass(frozen=True)
class DemoConfig:
    """What the demonstration runs; the defaults are `sameguard demo`.

    fractions: of the 1,797 digits, cut by content: train (victim and SAME), benign (statistics and calibration), test. fit, auxiliary:
    training of SAME, None for the `cpu` preset's; autoencoder: likewise, its sizes. budget: the thief's queries, the same with and without the guard.
    """

    seed: int = 0
    budget: int = 1000
    false_positive_rate: float = 0.05
    fractions: tuple[float, float, float] = (0.5, 0.3, 0.2)
    victim: FitConfig = OWN_FIT
    fit: FitConfig | None = None
    auxiliary: FitConfig | None = None
    autoencoder: MAEConfig | None = None
    substitute: FitConfig = OWN_FIT

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ConfigurationError(f"budget must be at least 1 query, got {self.budget}.")


@dataclass(frozen=True)
class Theft:
    """One run of the thief. answered: queries answered, of `used`. accuracy, fidelity: of the substitute, on the test digits."""

    used: int
    answered: int
    accuracy: float
    fidelity: float


@dataclass(frozen=True)
class DemoResult:
    """The numbers of one demonstration. Rates are in [0, 1]; intervals have 95 % confidence and cover the choice of queries only.

    agreement: auxiliary and victim, on test digits. false_positives: test digits flagged, of `test`. promised_interval: where the
    calibrated threshold's rate lies (Beta). auroc, average_precision: the thief's queries (n_pos) against the test digits (n_neg).
    """

    seed: int
    train: int
    benign: int
    test: int
    victim_accuracy: float
    agreement: float
    promised_rate: float
    promised_interval: tuple[float, float]
    calibration_n: int
    false_positives: int
    false_positive_rate: float
    false_positive_interval: tuple[float, float]
    auroc: float
    auroc_interval: tuple[float, float]
    average_precision: float
    n_pos: int
    n_neg: int
    open: Theft
    guarded: Theft
    artefact: Path
    picture: Path
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types."""
        stored = asdict(self)
        return stored | {"artefact": str(self.artefact), "picture": str(self.picture)}


def run_demo(out: str | Path, config: DemoConfig | None = None, progress: Progress | None = None) -> DemoResult:
    """Runs everything and writes `digits-guard/` (the calibrated artefact) and `demo.png` below `out`.

    progress: called with ProgressEvents of every stage. Same seed, machine and versions: same numbers.
    """
    with _one_thread():
        return _run(Path(out).absolute(), config or DemoConfig(), progress)


def _run(out: Path, config: DemoConfig, progress: Progress | None) -> DemoResult:
    stages = _Stages(progress)
    train, benign, test = _digits(config)
    contract = InputContract.images(*train.input_shape)
    test_queries = contract.canonicalise(test.inputs)

    victim = _victim(train, contract, config, stages)
    same, scorer = _fitted(train, benign, victim, out / "digits-guard", config, stages)
    with stages.stage("calibration"):
        threshold = calibrate(scorer, benign.inputs, victim, config.false_positive_rate, seed=config.seed)
        scorer.save(threshold)

    glyphs = render_glyphs(PROXY_SURPLUS * config.budget, config.seed)
    open_run = _theft(MeteredEndpoint(victim, budget=config.budget), glyphs, config, stages, "thief, no guard")
    guard = Guard(victim, scorer, Reject(threshold))
    guarded_run = _theft(MeteredEndpoint(guard, budget=config.budget), glyphs, config, stages, "thief, guarded")

    with stages.stage("evaluation"):
        honest = _shown(same, scorer, victim, threshold, test_queries)
        stolen = _shown(same, scorer, victim, threshold, open_run.queries)
        flagged = int(honest.flagged.sum())
        interval = bootstrap_interval(auroc, honest.scores, stolen.scores, resamples=RESAMPLES, seed=config.seed)
    picture = out / "demo.png"
    with stages.stage("picture"):
        draw(picture, honest, stolen, threshold, SHOWN)
    return DemoResult(
        seed=config.seed,
        train=len(train),
        benign=len(benign),
        test=len(test),
        victim_accuracy=accuracy(victim, test_queries, test.labels),
        agreement=same.agreement(test_queries, victim),
        promised_rate=threshold.false_positive_rate,
        promised_interval=threshold.interval,
        calibration_n=threshold.n,
        false_positives=flagged,
        false_positive_rate=flagged / len(test),
        false_positive_interval=clopper_pearson(flagged, len(test)),
        auroc=auroc(honest.scores, stolen.scores),
        auroc_interval=interval,
        average_precision=average_precision(honest.scores, stolen.scores),
        n_pos=len(stolen.scores),
        n_neg=len(honest.scores),
        open=_judged(open_run, victim, test_queries, test.labels),
        guarded=_judged(guarded_run, victim, test_queries, test.labels),
        artefact=out / "digits-guard",
        picture=picture,
        seconds=stages.seconds,
    )


# ---------------------------------------------------------------------- the stages


class _Stages:
    """Names the stages for the progress bar and times them."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress or (lambda event: None)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A stage without steps of its own."""
        began = time.monotonic()
        self._progress(ProgressEvent(name, 0, 1, float("nan"), 0.0))
        yield
        self._progress(ProgressEvent(name, 1, 1, float("nan"), 0.0))
        self.seconds[name] = time.monotonic() - began

    @contextmanager
    def training(self, name: str | None = None) -> Iterator[RunControl]:
        """A stage that trains: its events pass through, under `name` where one is given (else the stage's own names are kept)."""
        control = RunControl(progress=lambda event: self._progress(event if name is None else event._replace(stage=name)))
        began = time.monotonic()
        yield control
        self.seconds |= control.seconds if name is None else {name: time.monotonic() - began}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Networks this small gain little from a second thread, and lose much where another process wants the core it waits on."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _digits(config: DemoConfig) -> tuple[Split, ...]:
    parts = load("digits")
    whole = Split(np.concatenate([parts.train.raw, parts.test.raw]), np.concatenate([parts.train.labels, parts.test.labels]), CLASSES)
    return split(whole, config.fractions, seed=config.seed)


def _victim(train: Split, contract: InputContract, config: DemoConfig, stages: _Stages) -> TorchVictim:
    with seeded(config.seed):
        network = SmallConv(CLASSES)
    with stages.training("victim") as control:
        fit_classifier(network, train.inputs, train.labels, config.victim.with_(seed=config.seed), control, stage="victim")
    return TorchVictim(network, contract, classes=CLASSES)


def _fitted(train: Split, benign: Split, victim: TorchVictim, directory: Path, config: DemoConfig, stages: _Stages) -> tuple[SAME, Scorer]:
    auxiliary = None if config.auxiliary is None else AuxiliaryConfig(config.auxiliary)
    same = SAME(victim.contract, CLASSES, autoencoder=config.autoencoder, auxiliary_config=auxiliary)
    with stages.training() as control:
        same.fit(train, victim, (config.fit or same.preset.fit).with_(seed=config.seed), benign=benign.inputs, control=control)
    with stages.stage("export"):
        scorer = same.export(directory, overwrite=True)
    return same, scorer


def _theft(endpoint: MeteredEndpoint, glyphs: Split, config: DemoConfig, stages: _Stages, name: str) -> Extraction:
    with stages.training(name) as control:
        thief = KnockoffNets(glyphs, lambda: SmallConv(CLASSES), config.budget, config=config.substitute, control=control)
        return thief.run(endpoint, seed=config.seed)


def _judged(run: Extraction, victim: TorchVictim, queries: np.ndarray, labels: np.ndarray) -> Theft:
    substitute = run.substitute
    return Theft(run.used, int(run.answered.sum()), accuracy(substitute, queries, labels), fidelity(substitute, victim, queries))


def _shown(same: SAME, scorer: Scorer, victim: TorchVictim, threshold: Threshold, queries: np.ndarray) -> Shown:
    """Scores of all queries by the exported artefact, and what the picture shows of the first ones."""
    reconstruction = scorer.reconstruct(queries)
    answers = victim.answer(queries)
    scores = scorer.combined_score(reconstruction, scorer.deviation(reconstruction, answers))
    first = reconstruction.take(np.arange(min(SHOWN, len(queries))))
    hidden = same.autoencoder.hidden_values.numpy()  # (4, *input), 1 where a pass did not see the pixel
    share = hidden / hidden.sum(axis=0)  # each pixel counts in the passes that did not see it
    passes = first.views["masked"]  # (shown, 4, *input)
    return Shown(
        queries=first.queries,
        reconstructions=(passes * share).sum(axis=1),
        errors=((passes - first.queries[:, None]) ** 2 * share).sum(axis=1),
        victim_classes=answers.argmax(axis=1)[: len(first)],
        auxiliary_classes=scorer.auxiliary_probs(first).argmax(axis=1),
        scores=scores,
        flagged=threshold.flags(scores, scorer.stage_a_score(reconstruction)),
    )
