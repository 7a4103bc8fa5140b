"""One attack of the laboratory: run once against the open victim or the guard, kept with its ledger, and loaded from then on.

The thief is given its proxy, a few natural images, the victim's architecture, and where it knows the guard, its own copy of SAME.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sameguard.attacks.base import Extraction
from sameguard.data.transforms import quantise
from sameguard.endpoint import MeteredEndpoint
from sameguard.evaluation.attack_kinds import Belongings, attack_kind, make_attack
from sameguard.evaluation.cache import Making, Stage, save_weights
from sameguard.evaluation.metrics import accuracy, fidelity
from sameguard.evaluation.scenarios import AttackRow, Setting
from sameguard.evaluation.victims import architecture, new_network
from sameguard.guard import Guard
from sameguard.ledger import Ledger
from sameguard.policies import Reject

if TYPE_CHECKING:
    from sameguard.evaluation.stages import Laboratory

COPIES = {"score", "project"}  # what a thief who knows the guard has of it
AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class Theft:
    """One run of an attack. queries: canonical, as sent (those that were kept). facts: what a report says of it. digest: of the queries."""

    queries: np.ndarray
    probs: np.ndarray
    answered: np.ndarray
    natural: np.ndarray | None
    facts: dict[str, Any]
    digest: str


def theft_of(lab: "Laboratory", setting: Setting, row: AttackRow, rate: float | None, labels: str) -> Theft:
    """The theft, run where it is not cached. rate: of the guard before the victim, None for the open victim."""
    stage = _stage(lab, setting, row, rate, labels)
    if not stage.done:
        with stage.making() as making:
            found = _run(lab, setting, row, stage, rate, labels)
            _keep(lab, setting, making, found)
            if "proxy" in stage.known["inputs"]:
                making.facts["proxy"] = lab.proxy(setting)[1]
        stage.forget_checkpoints()
    stored = stage.arrays("queries.npz")
    queries = stored["queries"]
    queries = queries.astype(np.float32) / np.float32(255) if queries.dtype == np.uint8 else queries
    return Theft(queries, stored["probs"], stored["answered"], stored.get("natural"), stage.facts, stage.digest)


def _stage(lab: "Laboratory", setting: Setting, row: AttackRow, rate: float | None, labels: str) -> Stage:
    roles, kind, options = lab.roles(setting), attack_kind(row.kind), dict(row.options)
    inputs = {"victim": lab.victim_stage(setting).digest, "test": roles.digests["test"]}
    if "proxy" in kind.belongings:
        inputs["proxy"] = lab.proxy(setting)[2]
    if "seeds" in kind.belongings or options.get("disguise") == "levels":
        inputs["natural"] = roles.digests["natural"]
    if rate is not None or COPIES & set(kind.belongings):
        inputs["scorer"] = lab.scorer_stage(setting).digest
    known = {
        "kind": row.kind, "budget": row.budget, "options": options, "labels": labels, "rate": rate, "seed": lab.seed,
        "substitute": setting.victim, "config": asdict(setting.substitute), "round_fit": asdict(setting.round_fit), "seeds": setting.seeds,
        "device": lab.device,
    }  # fmt: skip
    sources = (*kind.sources, architecture(setting.victim).source, *(("data.transforms",) if "disguise" in options else ()))
    guarded = "" if rate is None else f"-guarded-{rate:g}"
    return lab.cache.stage(f"attack-{row.name}{guarded}{'-hard' if labels == 'hard' else ''}-{setting.name}", known, sources, inputs)


def _run(lab: "Laboratory", setting: Setting, row: AttackRow, stage: Stage, rate: float | None, labels: str) -> Extraction:
    kind, roles = attack_kind(row.kind), lab.roles(setting)
    belongings = Belongings(
        lambda: new_network(setting.victim, roles.classes), proxy=lab.proxy(setting)[0] if "proxy" in kind.belongings else None,
        seeds=roles.natural, config=setting.substitute, round_fit=setting.round_fit, seed_count=setting.seeds, labels=labels,
        device=lab.device, control=lab.controlled(stage), score=_own_score(lab, setting) if "score" in kind.belongings else None,
        project=_own_picture(lab, setting) if "project" in kind.belongings else None,
    )  # fmt: skip
    attack = make_attack(row.kind, belongings, row.budget, dict(row.options))
    endpoint: Any = lab.victim(setting)
    if rate is not None:
        scorer = lab.scorer(setting)
        endpoint = Guard(endpoint, scorer, Reject(scorer.threshold(rate)))
    return attack.run(MeteredEndpoint(Ledger(endpoint, stage.work / "answers.ledger"), budget=row.budget), lab.seed)


def _own_score(lab: "Laboratory", setting: Setting) -> Callable[[np.ndarray], np.ndarray]:
    """A thief's copy of SAME. Asking the victim about every candidate would cost queries: the auxiliary model stands in for it."""
    scorer = lab.scorer(setting)

    def score(queries: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(queries), AT_ONCE):
            reconstruction = scorer.reconstruct(queries[start : start + AT_ONCE])
            own = scorer.auxiliary_probs(reconstruction)
            parts.append(scorer.combined_score(reconstruction, scorer.deviation(reconstruction, own)))
        return np.concatenate(parts)

    return score


def _own_picture(lab: "Laboratory", setting: Setting) -> Callable[[np.ndarray], np.ndarray]:
    """A thief's copy of the autoencoder: full-view reconstructions, on the 8-bit grid."""
    scorer = lab.scorer(setting)

    def picture(queries: np.ndarray) -> np.ndarray:
        parts = [scorer.reconstruct(queries[start : start + AT_ONCE]).views["full"] for start in range(0, len(queries), AT_ONCE)]
        return quantise(np.concatenate(parts))

    return picture


def _keep(lab: "Laboratory", setting: Setting, making: Making, found: Extraction) -> None:
    roles, victim = lab.roles(setting), lab.victim(setting)
    queries = np.rint(found.queries * 255).astype(np.uint8) if roles.contract.grid == "8bit" else found.queries
    arrays = {"queries": queries, "probs": found.probs, "answered": found.answered}
    making.save_arrays("queries.npz", arrays if found.natural is None else {**arrays, "natural": found.natural})
    save_weights(making.stage.folder / "substitute.safetensors", found.substitute)
    making.facts |= {
        "used": found.used, "answered": int(found.answered.sum()), "kept": len(queries), "notes": found.notes,
        "accuracy": accuracy(found.substitute, roles.test_queries, roles.test.labels),
        "fidelity": fidelity(found.substitute, victim, roles.test_queries), "test": len(roles.test),
    }  # fmt: skip
