"""A detection table: every score of every family against every attack, with intervals, counts and the feasibility check.

A column is an attack at a budget. Where an attack brings natural images of its own (JBDA's seeds) it has a second column without them.
Positives are the attack's queries, negatives equally many test images in a fixed random order, as in the paper's release.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from sameguard.calibration import Threshold, clopper_pearson, flag_count_range
from sameguard.evaluation.families import (
    EDM,
    FAMILIES,
    OE,
    PAPER,
    RELEASED,
    SAME_X,
    SAME_Y,
    TERM,
    TEXTURE,
    TYPICALITY,
    benign_scores,
    malicious_scores,
)
from sameguard.evaluation.feasibility import TIES, TOLERANCE, infeasibilities, natural_caps
from sameguard.evaluation.intervals import cell, curve_of
from sameguard.evaluation.scenarios import BOUND, ENSEMBLE, OUTLIER, SAME, AttackRow, Exhibit, Setting
from sameguard.evaluation.stages import DEFAULT, MASKED, Laboratory
from sameguard.evaluation.thefts import Theft
from sameguard.reconstruction import MAEConfig

SHOWN = 6  # queries of each attack in the report
ERROR_CEILING = 0.5  # squared error that is drawn darkest
ALL, SYNTHETIC = "all", "synthetic only"
RIVALS = {  # what a sceptic sets against SAME, one score for each idea, the same in every table whatever the attack -> its name outside its group
    "energy": "the victim's energy", "its reconstruction error": "a plain autoencoder's error", "share faint": "no learning: share of faint pixels",
}  # fmt: skip
DRAWN = (TYPICALITY, PAPER, RELEASED, SAME_X, SAME_Y, OE, EDM, "MSP", *RIVALS)


class Made(NamedTuple):
    """The attacks and families of an exhibit that could be made, in its order."""

    attacks: list[AttackRow]
    families: list[str]


@dataclass(frozen=True, eq=False)
class Column:
    """One attack's queries, or those of them that it made itself. rows: of the scored queries. negatives: benign queries beside them."""

    row: AttackRow
    part: str
    rows: np.ndarray
    theft: Theft
    negatives: int

    @property
    def name(self) -> str:
        return self.row.name if self.part == ALL else f"{self.row.name}-synthetic"

    @property
    def title(self) -> str:
        return self.row.title if self.part == ALL else f"{self.row.title}, {self.part}"


def columns_of(theft: Theft, row: AttackRow) -> list[Column]:
    """The attack's columns: all scored queries, and where some are natural, the others alone."""
    start = len(theft.queries) - round(row.tail * len(theft.queries))
    rows = np.arange(start, len(theft.queries))
    columns = [Column(row, ALL, rows, theft, len(rows))]
    if theft.natural is not None and theft.natural.any() and not theft.natural.all():
        columns.append(Column(row, SYNTHETIC, rows[~theft.natural[rows]], theft, len(rows)))
    return columns


@dataclass(eq=False)
class Found:
    """What an exhibit found. data: JSON. arrays: raw scores, named as data's rows (and columns) are numbered. pictures: name -> sheet."""

    data: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)


def row_scores(number: int, benign: np.ndarray, malicious: np.ndarray) -> dict[str, np.ndarray]:
    """The raw scores that a row of a table was computed from, named by its place among the rows."""
    return {f"r{number:03d}b": benign, f"r{number:03d}m": malicious}


def detection(lab: Laboratory, exhibit: Exhibit, made: "Made") -> Found:
    """The table of all thefts and families that could be made."""
    setting = exhibit.setting
    columns = [column for row in made.attacks for column in columns_of(lab.theft(setting, row), row)]
    rows: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    for family in made.families:
        rows += _family_rows(lab, setting, family, columns, arrays, len(rows))
    shown = {}
    if setting_is_image(lab, setting) and SAME in made.families:
        shown = {column.name: pictures(lab, setting, column.theft.queries[column.rows]) for column in columns}
        shown["benign"] = pictures(lab, setting, lab.roles(setting).test_queries)
    data: dict[str, Any] = {"columns": [_column_facts(column) for column in columns], "rows": rows}
    data["training"] = training_facts(lab, setting, made.families)
    data["guard"] = _guard(lab, setting, columns, rows, arrays)
    data["curves"] = _curves(columns, rows, arrays)
    data["infeasible"] = [sentence for row in rows for sentence in _impossible(row)]
    return Found(data, arrays, shown)


def setting_is_image(lab: Laboratory, setting: Setting) -> bool:
    return lab.roles(setting).contract.is_image


def _family_rows(
    lab: Laboratory, setting: Setting, family: str, columns: list[Column], arrays: dict[str, np.ndarray], first: int
) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for place, column in enumerate(columns):
        benign, malicious = benign_scores(lab, setting, family, column.row), malicious_scores(lab, setting, family, column.row)
        for title, values in malicious.items():
            if title.startswith(TERM):
                continue
            row = found.setdefault(title, {"family": family, "group": FAMILIES[family].title, "title": title, "cells": {}})
            number = first + list(found).index(title)
            chosen, honest = values[column.rows], benign[title][: column.negatives]
            arrays[f"m{number:03d}c{place:02d}"] = chosen
            arrays[f"m{number:03d}b" if family != BOUND else f"m{number:03d}c{place:02d}b"] = benign[title]
            chosen = chosen[~np.isnan(chosen)]  # the upper bound was trained on the others
            if len(chosen):
                row["cells"][column.name] = cell(honest, chosen, resamples=setting.resamples, seed=lab.seed)
    return list(found.values())


def training_facts(lab: Laboratory, setting: Setting, families: list[str]) -> list[dict[str, Any]]:
    """How long SAME, OE and EDM were trained, and the accuracy of the victim that answers under each: OE and EDM bring their own."""
    found: list[dict[str, Any]] = []
    if SAME in families:
        own, masked = (lab.fit_stage(setting, variant).known["settings"] for variant in (DEFAULT, MASKED))
        found.append({
            "title": "SAME", "victim_accuracy": lab.victim_stage(setting).facts["accuracy"], "frozen": True, "network": setting.victim,
            "preset": setting.preset, "epochs": own["fit"]["epochs"], "auxiliary_epochs": own["auxiliary"]["fit"]["epochs"],
            "masked_auxiliary_epochs": masked["auxiliary"]["fit"]["epochs"],
        })  # fmt: skip
    for name, title in ((OUTLIER, OE), (ENSEMBLE, EDM)):
        if name in families:
            facts = lab.defence(setting, name).stage.facts
            kept = {key: facts[key] for key in ("network", "epochs", "members", "outliers")}
            found.append({"title": title, "victim_accuracy": facts["accuracy"], "frozen": False, **kept})
    return found


def _curves(columns: list[Column], rows: list[dict[str, Any]], arrays: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """For the scores that matter most: points of the ROC curve and histograms, so that a report needs no raw scores."""
    found = []
    for number, row in enumerate(rows):
        if row["title"] not in DRAWN:
            continue
        for place, column in enumerate(columns):
            malicious, benign = arrays[f"m{number:03d}c{place:02d}"], arrays[f"m{number:03d}b"][: column.negatives]
            found.append({"title": row["title"], "column": column.name, **roc_points(benign, malicious), **histogram(benign, malicious)})
    return found


def roc_points(benign: np.ndarray, malicious: np.ndarray, points: int = 60) -> dict[str, list[float]]:
    """fpr, tpr: at most so many points of the ROC curve, evenly spread along it."""
    curve = curve_of(benign, malicious)
    false_rates = np.concatenate([[0.0], curve.alarms / curve.alarms[-1]])
    true_rates = np.concatenate([[0.0], curve.hits / curve.hits[-1]])
    along = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(false_rates)) + np.abs(np.diff(true_rates)))])
    chosen = np.unique(np.searchsorted(along, np.linspace(0.0, along[-1], points)).clip(0, len(along) - 1))
    return {"fpr": np.round(false_rates[chosen], 4).tolist(), "tpr": np.round(true_rates[chosen], 4).tolist()}


def histogram(benign: np.ndarray, malicious: np.ndarray, bins: int = 40) -> dict[str, list[float]]:
    """edges, and the shares of benign and malicious queries in each bin; the outermost percent of both is gathered at the ends."""
    both = np.concatenate([benign, malicious])
    both = both[np.isfinite(both)]
    low, high = np.quantile(both, [0.005, 0.995])
    edges = np.linspace(low, high, bins + 1) if high > low else np.linspace(low - 0.5, low + 0.5, bins + 1)
    shares = [np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / max(1, len(values)) for values in (benign, malicious)]
    return {
        "edges": [float(f"{edge:.5g}") for edge in edges],
        "benign": np.round(shares[0], 4).tolist(),
        "malicious": np.round(shares[1], 4).tolist(),
    }


def _column_facts(column: Column) -> dict[str, Any]:
    facts = column.theft.facts
    natural = 0 if column.theft.natural is None or column.part != ALL else int(column.theft.natural[column.rows].sum())
    return {
        "name": column.name, "title": column.title, "attack": column.row.kind, "part": column.part, "budget": column.row.budget,
        "status": column.row.status, "reported": column.row.reported, "scored": len(column.rows), "natural": natural,
        "caps": natural_caps(natural / len(column.rows))._asdict() if natural else None,
        **{name: facts[name] for name in ("used", "kept", "answered", "accuracy", "fidelity", "notes", "proxy") if name in facts},
    }  # fmt: skip


def _guard(
    lab: Laboratory, setting: Setting, columns: list[Column], rows: list[dict[str, Any]], arrays: dict[str, np.ndarray]
) -> dict[str, Any]:
    """What the calibrated guard flags, of the test set and of each attack, at each rate."""
    titles = [row["title"] for row in rows]
    if TYPICALITY not in titles:
        return {}
    score, stage_a = titles.index(TYPICALITY), titles.index(TEXTURE)
    stage = lab.scorer_stage(setting)
    found: dict[str, Any] = {
        "engine": stage.facts["engine"], "agreement": stage.facts["agreement"], "calibration": stage.facts["calibration"], "rates": []
    }  # fmt: skip
    for stored in stage.facts["thresholds"]:
        threshold = Threshold.from_json(stored)
        flags = threshold.flags(arrays[f"m{score:03d}b"], arrays[f"m{stage_a:03d}b"])
        entry = {
            "rate": threshold.false_positive_rate, "flagged": int(flags.sum()), "of": len(flags),
            "interval": list(clopper_pearson(int(flags.sum()), len(flags))), "expected": list(flag_count_range(len(flags), threshold.k, threshold.n)),
            "attacks": {},
        }  # fmt: skip
        for place, column in enumerate(columns):
            caught = threshold.flags(arrays[f"m{score:03d}c{place:02d}"], arrays[f"m{stage_a:03d}c{place:02d}"])
            entry["attacks"][column.name] = round(float(caught.mean()), 5)
        found["rates"].append(entry)
    return found


def _impossible(row: dict[str, Any]) -> list[str]:
    sentences = []
    for name, values in row["cells"].items():
        prevalence = values["n_pos"] / (values["n_pos"] + values["n_neg"])
        slack = TOLERANCE + TIES * values["largest_tie"]
        found = infeasibilities(
            values["auroc"], values["average_precision"], prevalence, fpr95=values["fpr95"], fpr90=values["fpr90"], tolerance=slack
        )
        sentences += [f"{row['title']}, {name}: {sentence}" for sentence in found]
    return sentences


def pictures(lab: Laboratory, setting: Setting, queries: np.ndarray) -> np.ndarray:
    """The last few queries (an attack's first ones may be its seeds), each patch as painted while it was hidden, and the squared error.

    float32 (shown, 3, *input).
    """
    shown = queries[-SHOWN:]
    scorer = lab.scorer(setting)
    passes = scorer.reconstruct(shown).views["masked"]  # shown, passes, *input
    patcher = MAEConfig.from_json(scorer.manifest["autoencoder"]).patcher
    hidden = patcher.partition(passes.shape[1]) != torch.arange(passes.shape[1])[:, None]  # passes, patches
    unseen = patcher.unpatchify(hidden.float()[:, :, None].expand(-1, -1, patcher.token_dim).contiguous()).numpy()  # passes, *input
    share = unseen / unseen.sum(axis=0)
    painted = (passes * share).sum(axis=1)
    error = ((passes - shown[:, None]) ** 2 * share).sum(axis=1)
    return np.stack([shown, painted, error], axis=1).astype(np.float32)


def save_picture(path: Path, picture: np.ndarray) -> None:
    """A PNG of queries above, paintings in the middle, errors below (dark is large), every image in its own pixels."""
    shown, kinds, channels, height, width = picture.shape
    gap = 2
    sheet = np.full((channels, kinds * (height + gap) - gap, shown * (width + gap) - gap), 255, np.uint8)
    for column, images in enumerate(picture):
        scaled = [
            images[0],
            images[1],
            1.0 - np.sqrt(np.clip(images[2] / ERROR_CEILING, 0.0, 1.0)).mean(axis=0, keepdims=True).repeat(channels, 0),
        ]
        for row, image in enumerate(scaled):
            top, left = row * (height + gap), column * (width + gap)
            sheet[:, top : top + height, left : left + width] = np.rint(np.clip(image, 0.0, 1.0) * 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet[0] if channels == 1 else sheet.transpose(1, 2, 0)).save(path, optimize=True)
