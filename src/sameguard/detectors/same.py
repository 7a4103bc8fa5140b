"""SAME: sample reconstruction against model extraction (AAAI 2024, Eq. 4-6).

A masked autoencoder learns to reconstruct the owner's training data (Eq. 4). An auxiliary model learns to answer like the victim, but on
reconstructions (Eq. 5). A query is suspicious where it reconstructs badly and where the two answers part (Eq. 6). Fitting needs the
training inputs and the victim's answers to them: no outlier data, no query history, no weights.
"""

import copy
import hashlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sameguard.calibration import short_digests, warn_of_weak_auxiliary
from sameguard.contract import InputContract
from sameguard.data import Split
from sameguard.detectors.checkpoints import bind, in_chunks, known, stored, weights_digest
from sameguard.detectors.presets import AuxiliaryConfig, Preset, default_auxiliary, preset
from sameguard.errors import ConfigurationError, InvalidDataError, NotFittedError
from sameguard.networks.classifier import as_float, fit_classifier, predict_logits
from sameguard.networks.sharing import frozen, memory_bytes, share_trunk
from sameguard.networks.torch_victim import TorchVictim
from sameguard.precision import compile_in_place
from sameguard.reconstruction import MAEConfig, MaskedAutoencoder
from sameguard.scoring.combination import ScoreConfig
from sameguard.scoring.texture import Terms
from sameguard.scoring.two_stage import TwoStageScorer
from sameguard.shapes import Queries
from sameguard.training import FitConfig, RunControl, seeded, train
from sameguard.victim import BlackBox

HELD_OUT_SHARE, HELD_OUT_LIMIT = 0.05, 2000  # of the training rows, to measure agreement where the owner gives no benign data
MINIMUM_ROWS = 2


class SAME(TwoStageScorer):
    """The detector in torch: fit it, look into it, export it. Serving uses `runtime.Scorer` on the exported artefact.

    autoencoder: sizes of the MAE; None takes the preset's. auxiliary: any module from (batch, *input) to (batch, classes) logits; None
    takes the victim's architecture where it is a torch module (fresh weights), else a network by input. share: `trunk` shares the
    victim's frozen weights (torch victims only). preset: `cpu` (default), `paper`, `released`; score and auxiliary_config override it.
    """

    def __init__(
        self,
        contract: InputContract,
        classes: int,
        *,
        autoencoder: MAEConfig | None = None,
        auxiliary: nn.Module | None = None,
        share: str = "none",
        preset_name: str = "cpu",
        score: ScoreConfig | None = None,
        auxiliary_config: AuxiliaryConfig | None = None,
    ) -> None:
        chosen: Preset = preset(preset_name, contract.shape, classes)
        if share not in ("none", "trunk"):
            raise ConfigurationError(f"share must be none or trunk, got {share!r}.")
        self.autoencoder_config = autoencoder or chosen.autoencoder
        if self.autoencoder_config.input_shape != contract.shape:
            raise ConfigurationError(
                f"autoencoder input_shape must be the contract's {contract.shape}, got {self.autoencoder_config.input_shape}."
            )
        self.auxiliary_config = auxiliary_config or chosen.auxiliary
        super().__init__(contract, classes, score or chosen.score, self.auxiliary_config.view)
        self._check_views()
        self.preset = chosen
        self.share = share
        self.auxiliary = auxiliary
        self.autoencoder: MaskedAutoencoder | None = None
        self.train_digests = np.empty(0, np.uint64)
        self.victim_output = "probs"  # what the fitted victim returns, for the manifest
        self.report: dict[str, Any] = {}
        self.snapshots: dict[int, dict[str, Tensor]] = {}

    # ------------------------------------------------------------------ fitting

    def fit(
        self,
        train_data: Split | np.ndarray,
        victim: BlackBox,
        config: FitConfig | None = None,
        *,
        benign: np.ndarray | None = None,
        control: RunControl | None = None,
    ) -> "SAME":
        """Fits autoencoder and auxiliary on the victim's training data; resumable stage by stage where control names a directory.

        train_data: canonical inputs (n, *input), or a Split (labels are needed for `labels_ce` only). config: training of the
        autoencoder, default the preset's; its seed, device, precision and compile hold for the auxiliary too. benign: held-out canonical
        queries on which the auxiliary's agreement with the victim is measured; without them a twentieth of the training rows is kept aside.

        Raises InvalidDataError, InvalidVictimError, TrainingError, TrainingPausedError. Warns WeakAuxiliaryWarning below 85 % agreement.
        """
        control = control or RunControl()
        config = config or self.preset.fit
        if victim.contract != self.contract or victim.classes != self.classes:
            raise ConfigurationError("victim and detector must share contract and classes: build both from one InputContract.")
        if self.share == "trunk" and not isinstance(victim, TorchVictim):
            raise ConfigurationError("share trunk needs a TorchVictim, got a victim without a module: use share='none'.")
        if benign is not None:
            benign = self.contract.canonicalise(benign)  # wrong shapes are refused before hours of training
        data, labels = self._prepared(train_data)
        fitted, aside = self._rows(len(data), benign, config.seed)
        keys = short_digests(_digests(self.contract, data))
        first = victim.answer(_canonical(data[:32]))
        bind(control, keys, victim, first)
        began = time.monotonic()
        self.autoencoder = self._fit_autoencoder(data[fitted], config, control)
        made_by = hashlib.sha256(repr((known(victim, first), keys.tobytes())).encode()).digest()
        answers = stored(control, "answers", made_by, lambda: self._answers(victim, data, control))
        self._fit_auxiliary(victim, data[fitted], answers[fitted], None if labels is None else labels[fitted], config, control)
        held_out = self.contract.canonicalise(benign[:HELD_OUT_LIMIT]) if benign is not None else _canonical(data[aside])
        agreement = self.agreement(held_out, victim)
        self.train_digests = np.unique(keys)
        self.victim_output = victim.output
        self.report |= {
            "rows": len(fitted),
            "agreement": agreement,
            "agreement_rows": len(held_out),
            "agreement_on": "held-out benign queries" if benign is not None else "training rows kept aside",
            "seconds": {**control.seconds, "this_call": time.monotonic() - began},
            "parameters": {"autoencoder": _count(self.autoencoder), "auxiliary": _count(self.auxiliary)},
        }
        warn_of_weak_auxiliary(agreement)
        return self

    def agreement(self, queries: Queries, victim: BlackBox) -> float:
        """Share of queries on which the auxiliary, seeing the reconstruction, names the class that the victim names on the query."""
        reconstruction = self.reconstruct(queries)
        return float(np.mean(self.auxiliary_probs(reconstruction).argmax(axis=1) == victim.answer(queries).argmax(axis=1)))

    def _fit_autoencoder(self, data: np.ndarray, config: FitConfig, control: RunControl) -> MaskedAutoencoder:
        with seeded(config.seed):
            network = MaskedAutoencoder(self.autoencoder_config).to(config.device)
        rows = torch.from_numpy(data).to(config.device)
        network.set_normalisation(as_float(rows[:5000]))
        if config.compile:
            compile_in_place([network.encoder, network.decoder], control.say)

        def step(indices: Tensor, generator: torch.Generator, epoch: int) -> Tensor:
            return network.loss(as_float(rows[indices]), generator)

        result = train(network, step, len(rows), config, control, stage="autoencoder")
        self.snapshots = result.snapshots
        self.report |= {"epoch_losses": result.epoch_losses, "precision": result.precision}
        if not config.compile:
            return network
        plain = MaskedAutoencoder(self.autoencoder_config).to(config.device)  # a compiled module cannot be exported
        plain.load_state_dict(network.state_dict())
        return plain.eval()

    def _fit_auxiliary(
        self, victim: BlackBox, data: np.ndarray, answers: np.ndarray, labels: np.ndarray | None, config: FitConfig, control: RunControl
    ) -> None:
        chosen = self.auxiliary_config
        if chosen.target == "labels_ce" and labels is None:
            raise InvalidDataError("auxiliary target labels_ce needs labelled training data, got none: pass a Split with labels.")
        fit = replace(
            chosen.fit, seed=config.seed, device=config.device, precision=config.precision, compile=config.compile and self.share == "none"
        )
        module = victim.module if isinstance(victim, TorchVictim) else None
        self.auxiliary = self._new_auxiliary(module, fit.seed)
        inputs: np.ndarray = data
        transform = None
        if chosen.view == "full":
            made_by = weights_digest(self.autoencoder) + hashlib.sha256(np.ascontiguousarray(data)).digest()
            inputs = stored(control, "reconstructions", made_by, lambda: self._reconstructions(data, config.device, control))
        else:
            autoencoder = self.autoencoder

            def transform(batch: Tensor, generator: torch.Generator) -> Tensor:
                return autoencoder.reconstruct_random(batch, generator)

        loss = {"victim_mse": "mse", "victim_ce": "cross_entropy", "victim_kl": "kl", "labels_ce": "cross_entropy"}[chosen.target]
        targets = labels if chosen.target == "labels_ce" else answers
        shared_with = module if self.share == "trunk" else None
        with frozen(shared_with):
            network = self.auxiliary
            result = fit_classifier(
                network, inputs, targets, fit, control, stage="auxiliary", loss=loss, augmentation=chosen.augmentation, transform=transform
            )
        if fit.compile:
            self.auxiliary = self._new_auxiliary(module, fit.seed)
            self.auxiliary.load_state_dict(network.state_dict())
            self.auxiliary.to(config.device).eval()
        self.report |= {"auxiliary_losses": result.epoch_losses}
        if module is not None:
            together = memory_bytes(module, self.auxiliary)
            self.report |= {
                "memory_bytes": {"victim": memory_bytes(module), "auxiliary": memory_bytes(self.auxiliary), "together": together}
            }

    def _new_auxiliary(self, victim_module: nn.Module | None, seed: int) -> nn.Module:
        if self.share == "trunk":
            return share_trunk(victim_module)
        with seeded(seed + 1):
            if self.auxiliary is not None:
                return _reset(copy.deepcopy(self.auxiliary))
            scripted = isinstance(victim_module, torch.jit.ScriptModule)  # cannot be built anew from a copy
            if victim_module is not None and not scripted and self.contract.raw_shape == self.contract.shape and self._plain_inputs():
                return _reset(copy.deepcopy(victim_module))
            return default_auxiliary(self.contract.shape, self.classes, self.preset.name)

    def _plain_inputs(self) -> bool:
        return set(self.contract.scale) == {1.0} and set(self.contract.offset) == {0.0}

    # ------------------------------------------------------------------ data

    def _prepared(self, train_data: Split | np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Training inputs as stored for training, uint8 images or float32, and labels or None; checked against the contract."""
        labels = train_data.labels if isinstance(train_data, Split) else None
        raw = train_data.raw if isinstance(train_data, Split) else np.asarray(train_data)
        if len(raw) < MINIMUM_ROWS:
            raise InvalidDataError(
                f"training data must hold at least {MINIMUM_ROWS} rows, got {len(raw)}: SAME learns from the victim's training set."
            )
        if labels is not None and (labels.min() < 0 or labels.max() >= self.classes):
            raise InvalidDataError(f"training labels must be in [0, {self.classes}), got {labels.min()} to {labels.max()}.")
        if raw.dtype == np.uint8 and raw.shape[1:] == self.contract.shape and self.contract.grid == "8bit":
            return np.ascontiguousarray(raw), labels
        if raw.dtype == np.uint8:
            raw = raw.astype(np.float32) / 255.0
        canonical = self.contract.canonicalise(raw)
        if self.contract.grid == "8bit":  # a quarter of the memory, and exact: the values are on the grid
            return np.rint(canonical * 255.0).astype(np.uint8), labels
        return canonical, labels

    def _rows(self, rows: int, benign: np.ndarray | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
        if benign is not None:
            return np.arange(rows), np.empty(0, np.int64)
        aside = min(max(1, int(HELD_OUT_SHARE * rows)), HELD_OUT_LIMIT)
        order = np.random.default_rng(seed).permutation(rows)
        return np.sort(order[aside:]), np.sort(order[:aside])

    def _answers(self, victim: BlackBox, data: np.ndarray, control: RunControl) -> np.ndarray:
        def chunk(start: int) -> np.ndarray:
            return victim.answer(_canonical(data[start : start + victim.batch_size]))

        return in_chunks("answers", len(data), victim.batch_size, chunk, control)

    @torch.no_grad()
    def _reconstructions(self, data: np.ndarray, device: str, control: RunControl) -> np.ndarray:
        """Full-view reconstructions of all training rows, made once; images kept in 8 bits."""

        def chunk(start: int) -> np.ndarray:
            batch = as_float(torch.from_numpy(data[start : start + 256]).to(device))
            images = self.autoencoder.reconstruct_full(batch).cpu().numpy()
            return np.rint(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8) if data.dtype == np.uint8 else images

        return in_chunks("reconstructions", len(data), 256, chunk, control)

    # ------------------------------------------------------------------ network passes for scoring

    @torch.no_grad()
    def _reconstruct(self, queries: Queries) -> tuple[dict[str, np.ndarray], Terms]:
        network = self._fitted_autoencoder()
        batch = torch.from_numpy(queries).to(network.shift.device)
        views, terms = {}, {}
        if "full" in self.score_config.views or self.auxiliary_view == "full":
            full = network.reconstruct_full(batch)
            views["full"], terms["error_full"] = full.cpu().numpy(), network.error_full(batch, full).cpu().numpy()
        if "masked" in self.score_config.views or self.auxiliary_view == "masked":
            masked = network.reconstruct_masked(batch)
            views["masked"], terms["error_masked"] = masked.cpu().numpy(), network.error_masked(batch, masked).cpu().numpy()
        return views, terms

    def _auxiliary_logits(self, images: Queries) -> np.ndarray:
        if self.auxiliary is None:
            raise NotFittedError("SAME needs fit() before it can score, got an unfitted detector.")
        return predict_logits(self.auxiliary, images)

    def _fitted_autoencoder(self) -> MaskedAutoencoder:
        if self.autoencoder is None:
            raise NotFittedError("SAME needs fit() before it can score, got an unfitted detector.")
        return self.autoencoder

    def _check_views(self) -> None:
        if self.autoencoder_config.loss != "all" and "full" in (*self.score_config.views, self.auxiliary_view):
            raise ConfigurationError(
                f"loss {self.autoencoder_config.loss} leaves visible patches untrained, got a score that uses the full view: use loss all, "
                "or views=('masked',) and an auxiliary on masked reconstructions."
            )

    # ------------------------------------------------------------------ export

    def export(self, directory: str | Path, *, overwrite: bool = False) -> Any:
        """Writes the artefact (ONNX graphs, weights, manifest) and returns a `runtime.Scorer` on it, not yet calibrated.

        Raises NotFittedError before fit(), ArtifactError where the graphs do not reproduce torch or the disk refuses.
        """
        from sameguard.detectors.export import export_artifact
        from sameguard.runtime import Scorer

        export_artifact(self, Path(directory), self.victim_output, overwrite)
        return Scorer(directory, for_calibration=True)


# ---------------------------------------------------------------------- small pieces


def _canonical(data: np.ndarray) -> Queries:
    return data.astype(np.float32) / np.float32(255.0) if data.dtype == np.uint8 else data


def _digests(contract: InputContract, data: np.ndarray) -> np.ndarray:
    return np.concatenate([contract.digests(_canonical(data[start : start + 4096])) for start in range(0, len(data), 4096)])


def _reset(network: nn.Module) -> nn.Module:
    """Fresh weights in place, from torch's (seeded) generator: an auxiliary must not start as the victim it is compared with.

    Raises ConfigurationError where a matrix of the network stays as it was: nothing knows how to draw it anew.
    """
    before = {name: value.detach().clone() for name, value in network.named_parameters() if value.ndim >= 2}
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    network.requires_grad_(True)  # a victim in service is often frozen; its twin has to learn
    if hasattr(network, "reset"):
        network.reset()
    kept = [name for name, value in network.named_parameters() if name in before and torch.equal(value, before[name])]
    if kept:
        raise ConfigurationError(
            f"auxiliary {type(network).__name__} must start from fresh weights, got {', '.join(kept)} that no reset_parameters() draws anew: "
            "give the network a method reset(), or pass another auxiliary."
        )
    return network


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
