"""Table 3: what each defence costs the owner: accuracy of the victim it leaves, training seconds by component, memory, and what sharing
the victim's trunk with SAME's auxiliary saves and loses.
"""

from typing import Any

from sameguard.evaluation.detection import Found, Made, columns_of
from sameguard.evaluation.families import EDM, OE, TYPICALITY, benign_scores, malicious_scores
from sameguard.evaluation.intervals import cell
from sameguard.evaluation.scenarios import ENSEMBLE, OUTLIER, SAME, Exhibit
from sameguard.evaluation.stages import SCORE_SOURCES, SHARED, Laboratory
from sameguard.runtime import Scorer

SHARED_TITLE = f"{TYPICALITY}, auxiliary shares the victim's trunk"


def costs(lab: Laboratory, exhibit: Exhibit, made: Made) -> Found:
    """One row for each defence, and the AUROC of SAME with and without sharing."""
    setting = exhibit.setting
    victim = lab.victim_stage(setting)
    fit, shared = lab.fit_stage(setting), lab.fit_stage(setting, SHARED)
    seconds = {"victim": victim.facts["training_seconds"], **_parts(fit.facts["seconds"])}
    rows: list[dict[str, Any]] = [{
        "method": "SAME", "victim_accuracy": victim.facts["accuracy"], "seconds": seconds, "training_seconds": sum(seconds.values()),
        "peak_memory_mib": fit.record["peak_memory_mib"], "machine": fit.record["machine"],
    }]  # fmt: skip
    for name, title in ((OUTLIER, OE), (ENSEMBLE, EDM)):
        if name in made.families:
            stage = lab.defence(setting, name).stage
            rows.append({
                "method": title, "victim_accuracy": stage.facts["accuracy"], "seconds": {"victim": stage.facts["training_seconds"]},
                "training_seconds": stage.facts["training_seconds"], "peak_memory_mib": stage.record["peak_memory_mib"],
                "machine": stage.record["machine"], "epochs": stage.facts["epochs"], "network": stage.facts["network"], "members": stage.facts["members"],
            })  # fmt: skip
    memory = {"alone": fit.facts["memory_bytes"], "shared": shared.facts["memory_bytes"]}
    agreement = {"alone": fit.facts["agreement"], "shared": shared.facts["agreement"]}
    detection = []
    for row in made.attacks:
        column = columns_of(lab.theft(setting, row), row)[0]
        alone = benign_scores(lab, setting, SAME)[TYPICALITY], malicious_scores(lab, setting, SAME, row)[TYPICALITY]
        for title, (benign, malicious) in ((TYPICALITY, alone), (SHARED_TITLE, shared_scores(lab, exhibit, row.name, made))):
            values = cell(benign[: column.negatives], malicious[column.rows], resamples=setting.resamples, seed=lab.seed)
            detection.append({"attack": row.title, "title": title, **values})
    return Found({"rows": rows, "memory_bytes": memory, "agreement": agreement, "detection": detection})


def shared_scores(lab: Laboratory, exhibit: Exhibit, name: str, made: Made) -> tuple[Any, Any]:
    """Benign and malicious typicality of the fit that shares the victim's trunk."""
    setting = exhibit.setting
    fit = lab.fit_stage(setting, SHARED)

    def scored(title: str, queries: Any, digest: str) -> Any:
        inputs = {"fit": fit.digest, "queries": digest, "calibrated": lab.scorer_stage(setting).digest}
        stage = lab.cache.stage(f"scores-shared-{title}-{setting.name}", {}, SCORE_SOURCES, inputs)
        if not stage.done:
            with stage.making() as making:
                scorer = lab.once(("shared-scorer", setting.name), lambda: _fitted_scorer(lab, exhibit))
                making.save_arrays(
                    "scores.npz", {"score": scorer.combination.score(lab.terms(scorer, queries, lab.victim(setting).answer(queries)))}
                )
        return stage.arrays("scores.npz")["score"]

    roles = lab.roles(setting)
    row = next(row for row in made.attacks if row.name == name)
    theft = lab.theft(setting, row)
    return scored("test", roles.test_queries, roles.digests["test"]), scored(name, theft.queries, theft.digest)


def _fitted_scorer(lab: Laboratory, exhibit: Exhibit) -> Scorer:
    setting = exhibit.setting
    folder = lab.fit_stage(setting, SHARED).folder / "artefact"
    scorer = Scorer(folder, engine=str(lab.scorer(setting).provider), for_calibration=True)
    chosen = lab.roles(setting).benign[lab.scorer_stage(setting).arrays("statistics.npz")["row"]]
    scorer.fit_combination(lab.terms(scorer, chosen, lab.victim(setting).answer(chosen)))
    return scorer


def _parts(seconds: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in seconds.items() if name != "this_call"}
