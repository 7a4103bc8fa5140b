"""Table 3: what each defence costs the owner: accuracy of the victim it leaves, training seconds by component, the weights it keeps, and what
sharing the victim's trunk with SAME's auxiliary saves and loses.

Weights are counted. What a training needs beside them is known only as what the process grew by while it ran, which depends on what the
process had freed before; where a stage did not record that, or took its training over from elsewhere, nothing is said.
"""

from typing import Any

import numpy as np

from sameguard.detectors import preset
from sameguard.evaluation.cache import Stage
from sameguard.evaluation.detection import Found, Made, columns_of, row_scores
from sameguard.evaluation.families import EDM, OE, TYPICALITY, benign_scores, malicious_scores
from sameguard.evaluation.intervals import cell
from sameguard.evaluation.scenarios import ENSEMBLE, OUTLIER, SAME, AttackRow, Exhibit, Setting
from sameguard.evaluation.stages import SCORE_SOURCES, SHARED, Laboratory
from sameguard.evaluation.victims import new_network
from sameguard.networks.sharing import memory_bytes
from sameguard.reconstruction import MaskedAutoencoder
from sameguard.runtime import Scorer
from sameguard.training import seeded

SHARED_TITLE = f"{TYPICALITY}, auxiliary shares the victim's trunk"


def costs(lab: Laboratory, exhibit: Exhibit, made: Made) -> Found:
    """One row for each defence, and the AUROC of SAME with and without sharing."""
    setting = exhibit.setting
    victim = lab.victim_stage(setting)
    fit, shared = lab.fit_stage(setting), lab.fit_stage(setting, SHARED)
    seconds = {"victim": victim.facts["training_seconds"], **_parts(fit.facts["seconds"])}
    together = {name: stage.facts["memory_bytes"]["together"] for name, stage in (("alone", fit), ("shared", shared))}
    with seeded(lab.seed):
        autoencoder = memory_bytes(MaskedAutoencoder(preset(setting.preset, lab.roles(setting).contract.shape).autoencoder))
    rows: list[dict[str, Any]] = [{
        "method": "SAME", "victim_accuracy": victim.facts["accuracy"], "seconds": seconds, "training_seconds": sum(seconds.values()),
        "weights_bytes": together["alone"] + autoencoder, "weights_bytes_shared": together["shared"] + autoencoder,
        "memory_growth_mib": memory_growth(fit), "machine": fit.record["machine"],
    }]  # fmt: skip
    for name, title in ((OUTLIER, OE), (ENSEMBLE, EDM)):
        if name in made.families:
            stage = lab.defence(setting, name).stage
            with seeded(lab.seed):
                member = memory_bytes(new_network(stage.facts["network"], lab.roles(setting).classes))
            rows.append({
                "method": title, "victim_accuracy": stage.facts["accuracy"], "seconds": {"victim": stage.facts["training_seconds"]},
                "training_seconds": stage.facts["training_seconds"], "weights_bytes": stage.facts["members"] * member,
                "memory_growth_mib": memory_growth(stage), "machine": stage.record["machine"], "epochs": stage.facts["epochs"],
                "network": stage.facts["network"], "members": stage.facts["members"],
            })  # fmt: skip
    memory = {"alone": fit.facts["memory_bytes"], "shared": shared.facts["memory_bytes"]}
    agreement = {"alone": fit.facts["agreement"], "shared": shared.facts["agreement"]}
    detection: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    for row in made.attacks:
        column = columns_of(lab.theft(setting, row), row)[0]
        alone = benign_scores(lab, setting, SAME)[TYPICALITY], malicious_scores(lab, setting, SAME, row)[TYPICALITY]
        for title, scores in ((TYPICALITY, alone), (SHARED_TITLE, shared_scores(lab, setting, row))):
            benign, malicious = scores[0][: column.negatives], scores[1][column.rows]
            arrays |= row_scores(len(detection), benign, malicious)
            values = cell(benign, malicious, resamples=setting.resamples, seed=lab.seed)
            detection.append({"attack": row.title, "title": title, **values})
    return Found({"rows": rows, "memory_bytes": memory, "agreement": agreement, "detection": detection}, arrays)


def memory_growth(stage: Stage) -> float | None:
    """MiB by which the process grew at most while the stage was made; None where that was not recorded or nothing was trained in it."""
    resident = stage.record.get("resident_before_mib")
    return None if resident is None or "reused" in stage.facts else round(stage.record["peak_memory_mib"] - resident, 1)


def shared_scores(lab: Laboratory, setting: Setting, row: AttackRow) -> tuple[Any, Any]:
    """Benign and malicious typicality of the fit that shares the victim's trunk."""
    fit = lab.fit_stage(setting, SHARED)

    def scored(title: str, queries: Any, digest: str) -> Any:
        inputs = {"fit": fit.digest, "queries": digest, "calibrated": lab.scorer_stage(setting).digest}
        stage = lab.cache.stage(f"scores-shared-{title}-{setting.name}", {}, SCORE_SOURCES, inputs)
        if not stage.done:
            with stage.making() as making:
                scorer = lab.once(("shared-scorer", setting.name), lambda: _fitted_scorer(lab, setting))
                making.save_arrays(
                    "scores.npz", {"score": scorer.combination.score(lab.terms(scorer, queries, lab.victim(setting).answer(queries)))}
                )
        return stage.arrays("scores.npz")["score"]

    roles = lab.roles(setting)
    theft = lab.theft(setting, row)
    return scored("test", roles.test_queries, roles.digests["test"]), scored(row.name, theft.queries, theft.digest)


def _fitted_scorer(lab: Laboratory, setting: Setting) -> Scorer:
    folder = lab.fit_stage(setting, SHARED).folder / "artefact"
    scorer = Scorer(folder, engine=str(lab.scorer(setting).provider), for_calibration=True)
    chosen = lab.roles(setting).benign[lab.scorer_stage(setting).arrays("statistics.npz")["row"]]
    scorer.fit_combination(lab.terms(scorer, chosen, lab.victim(setting).answer(chosen)))
    return scorer


def _parts(seconds: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in seconds.items() if name != "this_call"}
