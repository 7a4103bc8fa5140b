"""The laboratory's stages: victim, fit, calibration, defences, thefts (thefts.py). Each is made once, kept in the cache, and resumed where it stopped.

One frozen victim per data set serves every method. Attack queries are made once, against the undefended victim, and every detector scores
the same ones. Whatever is fitted or chosen here sees benign data only; the thieves who know the guard are given their own copy of it.
"""

import json
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors.torch import load_file
from torch import nn

from sameguard.calibration import WeakAuxiliaryWarning, calibrate, short_digests
from sameguard.data import Split, load
from sameguard.detectors import SAME, AuxiliaryConfig, DiverseEnsemble, OutlierExposure, PlainAutoencoder, preset
from sameguard.detectors.exposure import default_fit
from sameguard.errors import SameguardError
from sameguard.evaluation.cache import RECORD, Cache, Stage, save_weights, source_digest, weights_digest, write_text
from sameguard.evaluation.metrics import accuracy
from sameguard.evaluation.roles import Roles, digest_of, foreign_data, roles_of
from sameguard.evaluation.scenarios import ENSEMBLE, OUTLIER, AttackRow, Setting
from sameguard.evaluation.thefts import Theft, theft_of
from sameguard.evaluation.victims import RECIPES, architecture, new_network, train_victim
from sameguard.networks.torch_victim import TorchVictim
from sameguard.precision import resolve_precision
from sameguard.runtime import Scorer, choose_engine
from sameguard.scoring import ScoreConfig, Terms
from sameguard.training import FitConfig, ProgressEvent, RunControl, TrainingPausedError

Made = TypeVar("Made")
DEFAULT, MASKED, SHARED = (
    "default",
    "masked",
    "shared",
)  # fits: auxiliary on full views; on masked ones (the paper's); sharing the victim's trunk
FIT_SOURCES = (
    "reconstruction.masked_autoencoder", "reconstruction.patching", "reconstruction.transformer", "detectors.same", "detectors.checkpoints",
    "networks.classifier", "networks.sharing", "training",
)  # fmt: skip
SCORE_SOURCES = (
    "calibration", "scoring.combination", "scoring.texture", "scoring.two_stage", "scoring.deviation", "runtime.scorer", "runtime.engines",
)  # fmt: skip
PLAIN_STEPS = 2500  # of the plain autoencoder
BENCHMARK_VICTIMS = {"mnist": "conv3", "cifar10": "strong"}  # what benchmarks/victims.py trains


class Fitted:
    """A trained detector that is loaded when it is first needed, and its stage."""

    def __init__(self, stage: Stage, detector: Any, load: Callable[[], Any]) -> None:
        self.stage = stage
        self._detector = detector
        self._load: Callable[[], Any] | None = load

    @property
    def detector(self) -> Any:
        if self._load is not None:
            self._load()
            self._load = None
        return self._detector


class Laboratory:
    """Makes and loads stages. control: deadline, progress and log of the whole run; its checkpoint_dir is not used.

    reuse: output folders of benchmarks/victims.py and real_data.py, whose checkpoints are taken over; each fit checks by itself that they
    come from the same data, victim and settings.
    """

    def __init__(
        self, out: str | Path, *, seed: int = 0, data_root: str | Path = "data", device: str = "cpu", control: RunControl | None = None,
        reuse: tuple[Path, ...] = (),
    ) -> None:  # fmt: skip
        self.cache = Cache(Path(out) / "cache")
        self.seed = seed
        self.data_root = Path(data_root)
        self.device = device
        self.control = control or RunControl()
        self.reuse = reuse
        self._made: dict[tuple[Any, ...], Any] = {}
        self._failed: dict[tuple[Any, ...], Exception] = {}

    def once(self, key: tuple[Any, ...], make: Callable[[], Made]) -> Made:
        """What `make` returned the first time; what failed then fails again, without being tried again."""
        if key in self._failed:
            raise self._failed[key]
        if key not in self._made:
            try:
                self._made[key] = make()
            except TrainingPausedError:
                raise
            except (SameguardError, ModuleNotFoundError) as error:
                self._failed[key] = error
                raise
        return self._made[key]

    def controlled(self, stage: Stage) -> RunControl:
        """The run's control with this stage's checkpoints."""
        return replace(self.control, checkpoint_dir=stage.work, resume=True, seconds={})

    def settled(self, config: FitConfig) -> FitConfig:
        """The config with its precision settled: `auto` is measured once for this folder, so that a resumed run means the same."""
        if config.precision != "auto":
            return config
        path = self.cache.root / "precision.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        if self.device not in known:
            known[self.device] = resolve_precision("auto", self.device)
            write_text(path, json.dumps(known))
        return config.with_(precision=known[self.device])

    # ------------------------------------------------------------------ data and victim

    def roles(self, setting: Setting) -> Roles:
        key = ("roles", setting.dataset, setting.held_out, setting.thief_share)
        return self.once(key, lambda: roles_of(setting, self.data_root))

    def proxy(self, setting: Setting) -> tuple[Split, str, str]:
        """The thief's proxy, its name and its digest."""
        return self.once(("foreign", setting.proxies), lambda: self._foreign(setting.proxies))

    def outliers(self, setting: Setting) -> tuple[Split, str, str]:
        """The outliers of OE and EDM, their name and their digest."""
        return self.once(("foreign", setting.outliers), lambda: self._foreign(setting.outliers))

    def _foreign(self, sources: tuple[Any, ...]) -> tuple[Split, str, str]:
        found, source = foreign_data(sources, self.data_root, lambda name, root: self.once(("data", name), lambda: load(name, root)))
        return found, str(source), digest_of(found)

    def victim_stage(self, setting: Setting) -> Stage:
        return self.once(("victim-stage", setting.dataset, setting.victim), lambda: self._victim_stage(setting))

    def victim(self, setting: Setting) -> TorchVictim:
        """The frozen victim: seed 0 whatever the run's seed is."""

        def load() -> TorchVictim:
            roles, network = self.roles(setting), new_network(setting.victim, self.roles(setting).classes)
            network.load_state_dict(load_file(self.victim_stage(setting).folder / "victim.safetensors"))
            return TorchVictim(network, roles.contract, classes=roles.classes)

        return self.once(("victim", setting.dataset, setting.victim), load)

    def _victim_stage(self, setting: Setting) -> Stage:
        roles, chosen = self.roles(setting), RECIPES[setting.victim]
        config = self.settled(chosen.fit.with_(device=self.device))
        known = {"victim": setting.victim, "fit": asdict(config), "options": repr(chosen.options)}
        inputs = {"train": roles.digests["train"], "test": roles.digests["test"]}
        stage = self.cache.stage(
            f"victim-{setting.name}", known, ("networks.classifier", architecture(setting.victim).source, "training"), inputs
        )
        if not stage.done:
            reused = self._take_over(setting, stage, "checkpoints")
            with stage.making() as making:
                control = self.controlled(stage)
                network = train_victim(setting.victim, roles.train, config, control)
                save_weights(stage.folder / "victim.safetensors", network)
                making.add("weights", weights_digest(network))
                victim = TorchVictim(network, roles.contract, classes=roles.classes)
                making.facts |= {
                    "accuracy": accuracy(victim, roles.test_queries, roles.test.labels), "test": len(roles.test), "rows": len(roles.train),
                    "left_out": roles.left_out, "training_seconds": sum(control.seconds.values()),
                }  # fmt: skip
                if reused is not None:
                    stored = json.loads((reused / "victim-0.json").read_text())
                    making.facts |= {"reused": str(reused), "training_seconds": stored["seconds"]}
        return stage

    def _take_over(self, setting: Setting, stage: Stage, name: str) -> Path | None:
        """Copies the checkpoints of an earlier run of the benchmarks on this data set and victim; the folder they came from, or None."""
        for folder in self.reuse:
            told = folder / "victim-0.json"
            dataset = json.loads(told.read_text()).get("dataset") if told.exists() else None
            fits = dataset == setting.dataset and BENCHMARK_VICTIMS.get(dataset) == setting.victim and setting.preset == "cpu"
            if fits and (folder / name).is_dir() and not stage.work.exists():
                shutil.copytree(folder / name, stage.work)
                return folder
        return None

    # ------------------------------------------------------------------ SAME

    def fit_stage(self, setting: Setting, variant: str = DEFAULT) -> Stage:
        """A fit of SAME, exported to `artefact` in the stage's folder."""
        return self.once(("fit-stage", setting.name, variant), lambda: self._fit_stage(setting, variant))

    def _fit_stage(self, setting: Setting, variant: str) -> Stage:
        roles, victim = self.roles(setting), self.victim(setting)
        config, auxiliary = self.fit_configs(setting, variant)
        share = "trunk" if variant == SHARED else "none"
        known = {
            "preset": setting.preset, "autoencoder": preset(setting.preset, roles.contract.shape).autoencoder.to_json(), "fit": asdict(config),
            "auxiliary": asdict(auxiliary), "share": share,
        }  # fmt: skip
        inputs = {"train": roles.digests["train"], "benign": roles.digests["benign"], "victim": self.victim_stage(setting).digest}
        stage = self.cache.stage(f"fit-{variant}-{setting.name}", known, (*FIT_SOURCES, architecture(setting.victim).source), inputs)
        if stage.done:
            return stage
        reused = self._take_over(
            setting, stage, f"artefact-{self.seed}.work" if variant == DEFAULT else f"artefact-masked_auxiliary-{self.seed}.work"
        )
        if reused is None:
            _share_autoencoder(self.fit_stage(setting).work if variant != DEFAULT else self._fit_of_another_victim(stage), stage.work)
        with stage.making() as making:
            same = SAME(
                roles.contract, roles.classes, preset_name=setting.preset, score=ScoreConfig(), auxiliary_config=auxiliary, share=share
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", WeakAuxiliaryWarning)  # the agreement is among the facts, and reports print it
                same.fit(roles.train, victim, config, benign=roles.benign[:2000], control=self.controlled(stage))
            same.export(stage.folder / "artefact", overwrite=True)
            making.add("autoencoder", weights_digest(same.autoencoder))
            making.add("auxiliary", weights_digest(same.auxiliary))
            making.facts |= same.report
            manifest = None if reused is None else reused / stage_artefact(variant, self.seed) / "manifest.json"
            if manifest is not None and manifest.exists():
                making.facts |= {"reused": str(reused), "seconds": json.loads(manifest.read_text())["fit"]["seconds"]}
        return stage

    def _fit_of_another_victim(self, stage: Stage) -> Path | None:
        """Where a finished fit left the autoencoder that this one would train again: it knows no victim. Or None."""
        makers = {source_digest((*FIT_SOURCES, architecture(name).source)) for name in RECIPES}
        for path in sorted(self.cache.root.glob(f"fit-{DEFAULT}-*/{RECORD}")):
            known = Stage(path.parent, {}).record
            same = known["sources"] in makers and known["inputs"]["train"] == stage.known["inputs"]["train"]
            if same and all(known["settings"][name] == stage.known["settings"][name] for name in ("autoencoder", "fit", "preset")):
                return path.parent / "work"
        return None

    def fit_configs(self, setting: Setting, variant: str) -> tuple[FitConfig, AuxiliaryConfig]:
        """Training of the autoencoder and of the auxiliary model."""
        chosen = preset(setting.preset, self.roles(setting).contract.shape)
        fit = self.settled(_shortened(chosen.fit, setting.fit_epochs).with_(seed=self.seed, device=self.device))
        auxiliary = replace(chosen.auxiliary, fit=_shortened(chosen.auxiliary.fit, setting.auxiliary_epochs))
        if variant != MASKED:
            return fit, replace(auxiliary, view="full", target="victim_ce")
        if setting.preset == "cpu":  # masked reconstructions are made anew in each step: half the epochs
            auxiliary = replace(auxiliary, fit=_shortened(auxiliary.fit, max(2, auxiliary.fit.epochs // 2), 0.9))
        return fit, replace(auxiliary, view="masked", target=setting.masked_target)

    def scorer_stage(self, setting: Setting) -> Stage:
        """The default fit's artefact, calibrated on benign data; statistics.npz holds the raw terms of the `statistics` queries."""
        return self.once(("scorer-stage", setting.name), lambda: self._scorer_stage(setting))

    def scorer(self, setting: Setting) -> Scorer:
        return self.once(("scorer", setting.name), lambda: Scorer(self.scorer_stage(setting).folder / "artefact"))

    def masked_scorer(self, setting: Setting) -> Scorer:
        """The fit with the auxiliary on masked reconstructions, on the same engine; it only gives terms."""
        folder = self.fit_stage(setting, MASKED).folder / "artefact"
        return self.once(
            ("masked-scorer", setting.name), lambda: Scorer(folder, engine=str(self.scorer(setting).provider), for_calibration=True)
        )

    def _scorer_stage(self, setting: Setting) -> Stage:
        roles, victim, fit = self.roles(setting), self.victim(setting), self.fit_stage(setting)
        inputs = {"fit": fit.digest, "benign": roles.digests["benign"], "victim": self.victim_stage(setting).digest}
        known = {"rates": setting.rates, "choose_engine": setting.choose_engine}
        stage = self.cache.stage(f"calibrated-{setting.name}", known, SCORE_SOURCES, inputs)
        if stage.done:
            return stage
        with stage.making() as making:
            folder = stage.folder / "artefact"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(fit.folder / "artefact", folder)
            scorer = Scorer(folder, for_calibration=True)
            engines = choose_engine(scorer, roles.benign, victim) if setting.choose_engine else {}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", WeakAuxiliaryWarning)
                scorer.save(calibrate(scorer, roles.benign, victim, setting.rates[0]))
            making.save_arrays("statistics.npz", self._statistics(scorer, roles, victim))
            thresholds = [scorer.calibration.threshold(rate) for rate in setting.rates]
            making.facts |= {
                "engine": str(scorer.provider), "engines": engines, "agreement": scorer.calibration.agreement,
                "thresholds": [threshold.to_json() for threshold in thresholds],
                "statistics": len(scorer.calibration.digests["statistics"]), "calibration": len(scorer.calibration.digests["calibration"]),
            }  # fmt: skip
        return stage

    def _statistics(self, scorer: Scorer, roles: Roles, victim: TorchVictim) -> Terms:
        own = short_digests(roles.contract.digests(roles.benign))
        chosen = roles.benign[np.isin(own, scorer.calibration.digests["statistics"])]
        return {
            **self.terms(scorer, chosen, victim.answer(chosen)),
            "row": np.flatnonzero(np.isin(own, scorer.calibration.digests["statistics"])),
        }

    def terms(self, scorer: Scorer, queries: np.ndarray, probs: np.ndarray, name: str = "scoring") -> Terms:
        """The scorer's raw terms of canonical queries, with progress and the run's deadline."""
        parts = []
        for start in range(0, len(queries), 512):
            self.stop_at_deadline(name)
            parts.append(scorer.score_terms(queries[start : start + 512], probs[start : start + 512]))
            if self.control.progress is not None:
                done = min(start + 512, len(queries))
                self.control.progress(ProgressEvent(name, done, len(queries), float("nan"), 0.0))
        return {term: np.concatenate([part[term] for part in parts]) for term in parts[0]}

    def stop_at_deadline(self, name: str) -> None:
        """Raises TrainingPausedError where the time budget is spent."""
        if self.control.deadline is not None and time.monotonic() >= self.control.deadline:
            raise TrainingPausedError(f"{name} stopped: the time budget is spent; the same command goes on from there.")

    # ------------------------------------------------------------------ other detectors that are trained

    def defence(self, setting: Setting, name: str) -> "Fitted":
        """Outlier Exposure or the Diverse Ensemble."""
        return self.once(("defence", setting.name, name), lambda: self._defence(setting, name))

    def _defence(self, setting: Setting, name: str) -> "Fitted":
        roles, (outliers, outliers_name, outliers_digest) = self.roles(setting), self.outliers(setting)
        kind, network, epochs, batch = {
            OUTLIER: (OutlierExposure, setting.victim, setting.exposure_epochs, 512),
            ENSEMBLE: (DiverseEnsemble, setting.member or setting.victim, setting.ensemble_epochs, 256),
        }[name]
        detector = kind(lambda: new_network(network, roles.classes), roles.contract, roles.classes)
        config = default_fit(new_network(network), len(roles.train), epochs=epochs, batch_size=batch)
        warmup = config.warmup_epochs * epochs / config.epochs  # it takes more epochs on small data
        config = self.settled(config.with_(epochs=epochs, warmup_epochs=warmup, seed=self.seed, device=self.device))
        known = {"defence": name, "fit": asdict(config), "network": network}
        inputs = {"train": roles.digests["train"], "outliers": outliers_digest, "test": roles.digests["test"]}
        sources = (f"detectors.{name}", "detectors.exposure", architecture(network).source, "training")
        stage = self.cache.stage(f"{name}-{setting.dataset}-{network}", known, sources, inputs)

        def fit(control: RunControl) -> nn.Module:
            detector.fit(roles.train, outliers, config, control)
            return detector.network if name == OUTLIER else detector.networks

        def facts() -> dict[str, Any]:
            own = accuracy(detector.victim, roles.test_queries, roles.test.labels)
            return {
                "accuracy": own,
                "outliers": outliers_name,
                "epochs": epochs,
                "network": network,
                "members": getattr(detector, "members", 1),
            }

        return self._fitted(stage, detector, fit, facts)

    def plain_autoencoder(self, setting: Setting) -> "Fitted":
        return self.once(("plain-autoencoder", setting.name), lambda: self._plain_autoencoder(setting))

    def _plain_autoencoder(self, setting: Setting) -> "Fitted":
        roles = self.roles(setting)
        detector = PlainAutoencoder(roles.contract)
        epochs = min(max(PLAIN_STEPS * 128 // len(roles.train), 4), 60)
        config = FitConfig(epochs, 128, 2e-3, 1e-4, seed=self.seed, device=self.device, precision="fp32")
        known, sources = {"fit": asdict(config)}, ("detectors.plain_autoencoder", "training")
        stage = self.cache.stage(f"plain_autoencoder-{setting.name}", known, sources, {"train": roles.digests["train"]})
        return self._fitted(stage, detector, lambda control: detector.fit(roles.train, config, control).network, dict)

    def _fitted(self, stage: Stage, detector: Any, fit: Callable[[RunControl], nn.Module], facts: Callable[[], dict[str, Any]]) -> "Fitted":
        """A stage whose last checkpoint is its product: fitting again with it at hand only loads it, and happens when it is asked for."""
        control = self.controlled(stage)
        if stage.done:
            return Fitted(stage, detector, lambda: fit(replace(control, progress=None)))
        with stage.making() as making:
            network = fit(control)
            making.add("weights", weights_digest(network))
            making.facts |= {"training_seconds": sum(control.seconds.values()), **facts()}
        return Fitted(stage, detector, lambda: None)

    # ------------------------------------------------------------------ thefts

    def theft(self, setting: Setting, row: AttackRow, *, rate: float | None = None, labels: str = "soft") -> Theft:
        """One attack against the open victim, or against the guard at a false-positive rate."""
        return self.once(("theft", setting.name, row, rate, labels), lambda: theft_of(self, setting, row, rate, labels))


# ---------------------------------------------------------------------- small pieces


def stage_artefact(variant: str, seed: int) -> str:
    """The folder in which benchmarks/real_data.py leaves the artefact of such a fit."""
    return f"artefact-{seed}" if variant == DEFAULT else f"artefact-masked_auxiliary-{seed}"


def _share_autoencoder(source: Path | None, target: Path) -> None:
    """A second fit on the same data begins with the first one's autoencoder and what it made of the data: both are the same by definition.

    The victim's answers carry a seal of the victim and are made again for another one.
    """
    if source is None:
        return
    target.mkdir(parents=True, exist_ok=True)
    kept = ("autoencoder.checkpoint", "data.sha256", "answers.npy", "answers.sha256", "reconstructions.npy", "reconstructions.sha256")
    for name in kept:
        if (source / name).exists() and not (target / name).exists():
            shutil.copy(source / name, target / name)


def _shortened(config: FitConfig, epochs: int | None, warmup: float | None = None) -> FitConfig:
    if epochs is None:
        return config
    return config.with_(epochs=epochs, warmup_epochs=min(config.warmup_epochs, epochs if warmup is None else warmup))
