"""What is varied while all else is held: share of malicious queries (Table 4), parts of the score (Figures 1, 2, 5), its weight, epochs and
width of the autoencoder (Figures 6, 7). The first five are computed from the same raw scores; the last two train autoencoders of their own.
"""

from dataclasses import asdict, replace

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from sameguard.detectors import preset
from sameguard.evaluation.cache import Stage, save_weights, weights_digest
from sameguard.evaluation.detection import Found, Made, columns_of, histogram, row_scores, training_facts
from sameguard.evaluation.families import (
    MASKED_PREFIX,
    MASKED_X,
    OE,
    PAPER,
    RELEASED,
    SAME_X,
    SAME_Y,
    TERM,
    TYPICALITY,
    benign_scores,
    malicious_scores,
)
from sameguard.evaluation.feasibility import pooled_prevalence
from sameguard.evaluation.intervals import cell, curve_of
from sameguard.evaluation.metrics import aupr_trapezoid
from sameguard.evaluation.scenarios import OUTLIER, RATIOS, SAME, WEIGHTS, WIDTHS, AttackRow, Exhibit, Setting
from sameguard.evaluation.stages import FIT_SOURCES, Laboratory
from sameguard.networks.classifier import as_float
from sameguard.reconstruction import MAEConfig, MaskedAutoencoder
from sameguard.training import FitConfig, seeded, train

DRAWS = 20  # subsamples at each ratio
POOLED = "all pooled"
SNAPSHOTS = 6
SWEPT = {
    "masked error and squared deviation (the paper's terms)": ("error_masked", f"{MASKED_PREFIX}deviation_squared"),
    "full error and disagreement": ("error_full", "deviation_disagreement"),
}


def scored(lab: Laboratory, setting: Setting, row: AttackRow, title: str, family: str = SAME) -> tuple[np.ndarray, np.ndarray]:
    """Benign and malicious scores of one title: the attack's scored queries, and as many test images as there are of them at most."""
    column = columns_of(lab.theft(setting, row), row)[0]
    benign, malicious = benign_scores(lab, setting, family, row)[title], malicious_scores(lab, setting, family, row)[title]
    return benign[: column.negatives], malicious[column.rows]


# ---------------------------------------------------------------------- Table 4


def ratios(lab: Laboratory, exhibit: Exhibit, made: Made) -> Found:
    """Each attack and all pooled, at each ratio of malicious to benign queries, by subsampling the same scores."""
    setting, rows, arrays = exhibit.setting, [], {}
    for title in (TYPICALITY, PAPER):
        benign = benign_scores(lab, setting, SAME)[title]
        dumps = {row.title: scored(lab, setting, row, title)[1] for row in made.attacks}
        if not dumps:
            continue
        for place, malicious in enumerate(dumps.values()):
            arrays |= row_scores(len(rows) + place, benign, malicious)
        negatives = min(len(benign), int(min(map(len, dumps.values())) / max(RATIOS)))
        for ratio in RATIOS:
            positives = max(1, round(ratio * negatives))
            draw = np.random.default_rng(lab.seed)
            for name in (*dumps, POOLED):
                parts = list(dumps.values()) if name == POOLED else [dumps[name]]
                found = [_at_ratio(benign, parts, negatives, positives, draw) for _ in range(DRAWS)]
                values = {key: [round(float(np.mean([entry[key] for entry in found])), 5)] for key in found[0]}
                for key, value in values.items():
                    value += [round(float(end), 4) for end in np.quantile([entry[key] for entry in found], [0.025, 0.975])]
                n_pos = positives * len(parts)
                rows.append({
                    "title": title, "attack": name, "ratio": ratio, "n_pos": n_pos, "n_neg": negatives, "prevalence": n_pos / (n_pos + negatives), **values,
                })  # fmt: skip
    return Found(
        {"rows": rows, "draws": DRAWS, "pooled_prevalence": {str(ratio): round(pooled_prevalence(ratio), 4) for ratio in RATIOS}}, arrays
    )


def _at_ratio(benign: np.ndarray, parts: list[np.ndarray], negatives: int, positives: int, draw: np.random.Generator) -> dict[str, float]:
    honest = draw.choice(benign, negatives, replace=False)
    malicious = np.concatenate([draw.choice(part, positives, replace=False) for part in parts])
    curve = curve_of(honest, malicious)
    return {
        "auroc": curve.auroc(), "average_precision": curve.average_precision(), "aupr_trapezoid": aupr_trapezoid(honest, malicious),
        "fpr95": curve.fpr_at(0.95), "fpr90": curve.fpr_at(0.90),
    }  # fmt: skip


# ---------------------------------------------------------------------- Figures 1, 2, 5 and the weight


def components(lab: Laboratory, exhibit: Exhibit, made: Made) -> Found:
    """AUROC of SAME, SAME-X and SAME-Y, which share one autoencoder."""
    rows, arrays = [], {}
    for row in made.attacks:
        for title in (TYPICALITY, PAPER, RELEASED, SAME_X, MASKED_X, SAME_Y):
            benign, malicious = scored(lab, exhibit.setting, row, title)
            arrays |= row_scores(len(rows), benign, malicious)
            values = cell(benign, malicious, resamples=exhibit.setting.resamples, seed=lab.seed)
            rows.append({"attack": row.title, "title": title, **values})
    return Found({"rows": rows}, arrays)


def weights(lab: Laboratory, exhibit: Exhibit, made: Made) -> Found:
    """AUROC over the weight of Eq. 6, both terms in units of their benign spread. 1 is SAME-X, 0 is SAME-Y."""
    rows, arrays = [], {}
    for row in made.attacks:
        for title, (error, deviation) in SWEPT.items():
            errors = scored(lab, exhibit.setting, row, TERM + error)
            others = scored(lab, exhibit.setting, row, TERM + deviation)
            for weight in WEIGHTS:
                benign, malicious = (weight * first + (1.0 - weight) * second for first, second in zip(errors, others, strict=True))
                arrays |= row_scores(len(rows), benign, malicious) if weight in (0.0, 1.0) else {}  # the others are sums of these two
                auroc = curve_of(benign, malicious).auroc()
                rows.append(
                    {
                        "attack": row.title,
                        "title": title,
                        "weight": weight,
                        "auroc": round(auroc, 5),
                        "n_pos": len(malicious),
                        "n_neg": len(benign),
                    }
                )
    return Found({"rows": rows}, arrays)


def histograms(lab: Laboratory, exhibit: Exhibit, made: Made) -> Found:
    """Score histograms of benign and malicious queries: OE against the reconstruction error (Figure 1), error against score (Figure 2)."""
    titles = (
        [(OE, OUTLIER), (SAME_X, SAME), (MASKED_X, SAME)]
        if OUTLIER in exhibit.families
        else [(SAME_X, SAME), (PAPER, SAME), (TYPICALITY, SAME)]
    )
    rows, arrays = [], {}
    for row in made.attacks:
        for title, family in titles:
            if family in made.families:
                benign, malicious = scored(lab, exhibit.setting, row, title, family)
                arrays |= row_scores(len(rows), benign, malicious)
                rows.append({
                    "attack": row.title, "title": title, "auroc": round(curve_of(benign, malicious).auroc(), 5), "n_pos": len(malicious),
                    "n_neg": len(benign), **histogram(benign, malicious),
                })  # fmt: skip
    return Found({"rows": rows, "training": training_facts(lab, exhibit.setting, made.families)}, arrays)


# ---------------------------------------------------------------------- Figures 6 and 7


def epochs(lab: Laboratory, exhibit: Exhibit, made: Made) -> Found:
    """Mean reconstruction error of benign and malicious queries after some epochs of one fit."""
    setting, roles = exhibit.setting, lab.roles(exhibit.setting)
    stage = snapshot_stage(lab, setting)
    rows, arrays = [], {}
    for epoch in stage.facts["epochs"]:
        network = _restored(stage, f"epoch-{epoch}", own_autoencoder(lab, setting))
        errors = {"benign": _errors(network, roles.test_queries[:2000])}
        errors |= {row.title: _errors(network, columns_of(lab.theft(setting, row), row)[-1].theft.queries[-2000:]) for row in made.attacks}
        for name, (full, masked) in errors.items():
            arrays |= {f"r{len(rows):03d}{view}": values for view, values in (("full", full), ("masked", masked))}
            rows.append(
                {"epoch": epoch, "queries": name, "error_full": float(full.mean()), "error_masked": float(masked.mean()), "n": len(full)}
            )
    return Found({"rows": rows}, arrays)


def widths(lab: Laboratory, exhibit: Exhibit, made: Made) -> Found:
    """AUROC of the reconstruction error alone over the encoder's width; the deviation is left out."""
    setting, roles = exhibit.setting, lab.roles(exhibit.setting)
    rows, arrays = [], {}
    for width in WIDTHS:
        stage = width_stage(lab, setting, width)
        network = _restored(stage, "weights", own_autoencoder(lab, setting, width))
        honest = _errors(network, roles.test_queries[: setting.budgets[1]])
        for row in made.attacks:
            column = columns_of(lab.theft(setting, row), row)[0]
            stolen = _errors(network, column.theft.queries[column.rows])
            for place, view in enumerate(("full", "masked")):
                arrays |= row_scores(len(rows), honest[place], stolen[place])
                values = cell(honest[place], stolen[place], resamples=setting.resamples, seed=lab.seed)
                rows.append({"width": width, "attack": row.title, "view": view, **values})
    return Found({"rows": rows}, arrays)


def own_autoencoder(lab: Laboratory, setting: Setting, width: int | None = None) -> MAEConfig:
    config = preset(setting.preset, lab.roles(setting).contract.shape).autoencoder
    return config if width is None else replace(config, embed_dim=width)


def snapshot_stage(lab: Laboratory, setting: Setting) -> Stage:
    """A fit of the autoencoder whose weights are kept after some epochs."""
    config = lab.fit_configs(setting, "default")[0]
    kept = sorted({max(1, round(config.epochs * share)) for share in np.linspace(0.0, 1.0, SNAPSHOTS)})
    return lab.once(
        ("snapshots", setting.name), lambda: _autoencoder_stage(lab, setting, "snapshots", config.with_(snapshot_epochs=tuple(kept)), None)
    )


def width_stage(lab: Laboratory, setting: Setting, width: int) -> Stage:
    """A fit of the autoencoder with an encoder of this width."""
    config = lab.fit_configs(setting, "default")[0]
    return lab.once(("width", setting.name, width), lambda: _autoencoder_stage(lab, setting, f"width-{width}", config, width))


def _autoencoder_stage(lab: Laboratory, setting: Setting, name: str, config: FitConfig, width: int | None) -> Stage:
    sizes, roles = own_autoencoder(lab, setting, width), lab.roles(setting)
    stage = lab.cache.stage(
        f"autoencoder-{name}-{setting.name}",
        {"fit": asdict(config), "sizes": sizes.to_json()},
        FIT_SOURCES,
        {"train": roles.digests["train"]},
    )
    if stage.done:
        return stage
    with stage.making() as making:
        with seeded(config.seed):
            network = MaskedAutoencoder(sizes).to(config.device)
        rows = torch.from_numpy(roles.train.raw).to(config.device)
        network.set_normalisation(as_float(rows[:5000]))

        def step(indices: Tensor, generator: torch.Generator, epoch: int) -> Tensor:
            return network.loss(as_float(rows[indices]), generator)

        report = train(network, step, len(rows), config, lab.controlled(stage), stage="autoencoder")
        network = network.cpu()
        for epoch, weights_then in report.snapshots.items():
            network.load_state_dict(weights_then)
            save_weights(stage.folder / f"epoch-{epoch}.safetensors", network)
        save_weights(stage.folder / "weights.safetensors", network)  # the last snapshot is the last epoch
        making.add("weights", weights_digest(network))
        making.facts |= {"epochs": sorted(report.snapshots), "epoch_losses": report.epoch_losses, "precision": report.precision}
    stage.forget_checkpoints()
    return stage


def _restored(stage: Stage, name: str, sizes: MAEConfig) -> MaskedAutoencoder:
    network = MaskedAutoencoder(sizes)
    network.load_state_dict(load_file(stage.folder / f"{name}.safetensors"))
    return network.eval()


@torch.no_grad()
def _errors(network: MaskedAutoencoder, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Errors of the full and of the masked view, (batch,) each."""
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for start in range(0, len(queries), 64):
        batch = torch.from_numpy(queries[start : start + 64])
        full = network.error_full(batch, network.reconstruct_full(batch))
        parts.append((full.numpy(), network.error_masked(batch, network.reconstruct_masked(batch)).numpy()))
    return tuple(np.concatenate(column).astype(np.float64) for column in zip(*parts, strict=True))
