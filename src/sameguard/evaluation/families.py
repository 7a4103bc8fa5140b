"""Families of scores: what each detector gives for canonical queries, under the names that tables print.

A family is scored as a whole because its members share their expensive part. SAME's combinations are all fitted on the same benign
`statistics` terms; two-sided and feature scores on benign or training data. Only the last family sees malicious queries, and says so.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sameguard.detectors import (
    Energy,
    Entropy,
    Mahalanobis,
    MaxProbability,
    NearestNeighbours,
    NearestTrainingImage,
    OffGrid,
    RelativeMahalanobis,
    SupervisedUpperBound,
    VictimOnReconstruction,
    penultimate,
    trivial_detectors,
)
from sameguard.evaluation.cache import code_digest
from sameguard.evaluation.scenarios import (
    AUTOENCODER,
    BOUND,
    ENSEMBLE,
    FEATURES,
    OUTLIER,
    OUTPUTS,
    SAME,
    TRIVIAL,
    AttackRow,
    Setting,
)
from sameguard.evaluation.stages import MASKED, SCORE_SOURCES, Laboratory
from sameguard.evaluation.victims import architecture, new_network
from sameguard.networks import predict_logits
from sameguard.scoring import ScoreConfig, Terms, TwoStageScorer, combination_for

if TYPE_CHECKING:
    from sameguard.evaluation.cache import Stage

Scores = dict[str, np.ndarray]
Scoring = Callable[[np.ndarray, np.ndarray], Scores]

TYPICALITY = "SAME, typicality (default)"
PAPER = "SAME, Eq. 6 as the paper (masked, z-scores, .5)"
RELEASED = "SAME, Eq. 6 as the release (full, .99)"
SAME_X, SAME_Y = "SAME-X (reconstruction error alone)", "SAME-Y (disagreement alone)"
MASKED_X, TEXTURE = "SAME-X on masked views", "texture typicality alone"
OE, EDM = "Outlier Exposure", "Ensemble of Diverse Models"
CHEATING = "classifier trained on this very attack (cheating)"
REPORTED = {PAPER: "SAME", OE: "OE", EDM: "EDM"}  # our score -> the paper's method that it is held against

COMBINATIONS: dict[str, ScoreConfig] = {
    "SAME, two-sided": ScoreConfig(combination="two_sided"),
    RELEASED: ScoreConfig("weighted", "kl", ("full",), "full", 0.99, "none", 4.0, 0.1),
}
PAPER_SCORE = ScoreConfig("weighted", "squared", ("masked",), "masked", 0.5, "zscore_benign")
MASKED_PREFIX = "masked_auxiliary."
TERM = "term "  # begins the name of a raw term in units of its benign spread: for sweeps, not for tables


class Family(NamedTuple):
    """title: heading of its rows. sources: modules whose change makes its scores anew."""

    title: str
    sources: tuple[str, ...]


FAMILIES: dict[str, Family] = {
    SAME: Family("SAME", SCORE_SOURCES),
    OUTLIER: Family("defences of the paper", ("detectors.outlier_exposure", "detectors.base")),
    ENSEMBLE: Family("defences of the paper", ("detectors.diverse_ensemble", "detectors.base")),
    OUTPUTS: Family("the victim's output", ("detectors.outputs", "detectors.base")),
    FEATURES: Family("the victim's features", ("detectors.features", "detectors.base")),
    AUTOENCODER: Family("a plain autoencoder", ("detectors.plain_autoencoder", "detectors.base")),
    TRIVIAL: Family("no learning", ("detectors.trivial", "detectors.base", "scoring.texture")),
    BOUND: Family("upper bound", ("detectors.supervised", "networks.classifier", "training")),
}


def benign_scores(lab: Laboratory, setting: Setting, family: str, row: AttackRow | None = None) -> Scores:
    """Scores of the test set. row: the attack, which the upper bound alone depends on."""
    if family == BOUND:
        stored = _bound(lab, setting, row).arrays("scores.npz")
        return {CHEATING: stored["benign"]}
    return _scored(lab, setting, family, "test", lab.roles(setting).test_queries, lab.roles(setting).digests["test"])


def malicious_scores(lab: Laboratory, setting: Setting, family: str, row: AttackRow) -> Scores:
    """Scores of an attack's queries; NaN where the upper bound was trained on a query."""
    if family == BOUND:
        return {CHEATING: _bound(lab, setting, row).arrays("scores.npz")["malicious"]}
    theft = lab.theft(setting, row)
    return _scored(lab, setting, family, row.name, theft.queries, theft.digest)


def _scored(lab: Laboratory, setting: Setting, family: str, name: str, queries: np.ndarray, digest: str) -> Scores:
    def make() -> Scores:
        known = {"code": code_digest(*CODE[family]), **({"neighbours": setting.neighbours} if family == FEATURES else {})}
        if family == SAME:
            known["combinations"] = repr((COMBINATIONS, PAPER_SCORE))
        inputs = {"queries": digest, "victim": lab.victim_stage(setting).digest, **_fitted_inputs(lab, setting, family)}
        stage = lab.cache.stage(f"scores-{family}-{name}-{setting.name}", known, FAMILIES[family].sources, inputs)
        if not stage.done:
            with stage.making() as making:
                probs = lab.victim(setting).answer(queries)
                scoring = lab.once(("scoring", setting.name, family), lambda: SCORINGS[family](lab, setting))
                found = scoring(queries, probs)
                making.save_arrays("scores.npz", {f"{place:03d}": values for place, values in enumerate(found.values())})
                making.facts["names"] = list(found)
        stored = stage.arrays("scores.npz")
        return {title: stored[f"{place:03d}"] for place, title in enumerate(stage.facts["names"])}

    return lab.once(("scores", setting.name, family, name), make)


def _fitted_inputs(lab: Laboratory, setting: Setting, family: str) -> dict[str, str]:
    roles = lab.roles(setting)
    if family == SAME:
        return {"calibrated": lab.scorer_stage(setting).digest, "masked": lab.fit_stage(setting, MASKED).digest}
    if family in (OUTLIER, ENSEMBLE):
        return {"defence": lab.defence(setting, family).stage.digest}
    if family == AUTOENCODER:
        return {"autoencoder": lab.plain_autoencoder(setting).stage.digest}
    return {"train": roles.digests["train"], "benign": roles.digests["benign"]}


# ---------------------------------------------------------------------- one scoring for each family


def _same(lab: Laboratory, setting: Setting) -> Scoring:
    scorer, masked = lab.scorer(setting), lab.masked_scorer(setting)
    stored = lab.scorer_stage(setting).arrays("statistics.npz")
    chosen = lab.roles(setting).benign[stored.pop("row")]
    statistics = with_masked(stored, masked, chosen, lab.victim(setting).answer(chosen))
    fitted = {name: combination_for(config).fit(own_terms(statistics)) for name, config in COMBINATIONS.items()}
    fitted = {TYPICALITY: scorer.combination, **fitted}  # the very score that the guard's threshold belongs to
    paper = combination_for(PAPER_SCORE).fit(paper_terms(statistics))

    swept = ("error_full", "error_masked", "deviation_disagreement", f"{MASKED_PREFIX}deviation_squared")

    def scoring(queries: np.ndarray, probs: np.ndarray) -> Scores:
        terms = with_masked(lab.terms(scorer, queries, probs), masked, queries, probs)
        own = own_terms(terms)
        found = {name: combination.score(own) for name, combination in fitted.items()}
        found[PAPER] = paper.score(paper_terms(terms))
        found |= {SAME_X: terms["error_full"], MASKED_X: terms["error_masked"], SAME_Y: terms["deviation_disagreement"]}
        found[TEXTURE] = scorer.combination.stage_a(own)
        return found | {TERM + name: (terms[name] - statistics[name].mean()) / statistics[name].std() for name in swept}

    return scoring


def with_masked(terms: Terms, masked: TwoStageScorer, queries: np.ndarray, probs: np.ndarray) -> Terms:
    """The terms, with the deviations of the auxiliary on masked reconstructions beside them."""
    other = masked.score_terms(queries, probs)
    return {**terms, **{f"{MASKED_PREFIX}{name}": values for name, values in other.items() if name.startswith("deviation_")}}


def own_terms(terms: Terms) -> Terms:
    return {name: values for name, values in terms.items() if not name.startswith(MASKED_PREFIX)}


def paper_terms(terms: Terms) -> Terms:
    """The terms of Eq. 6 as the paper: the deviation is that of the auxiliary on masked reconstructions."""
    return {"error_masked": terms["error_masked"], "deviation_squared": terms[f"{MASKED_PREFIX}deviation_squared"]}


def _defence(name: str, title: str) -> Callable[[Laboratory, Setting], Scoring]:
    def build(lab: Laboratory, setting: Setting) -> Scoring:
        detector = lab.defence(setting, name).detector
        return lambda queries, probs: {title: detector.score(queries, probs)}

    return build


def _outputs(lab: Laboratory, setting: Setting) -> Scoring:
    module = lab.victim(setting).module
    detectors = {
        "MSP": MaxProbability(), "entropy": Entropy(), "energy": Energy(lambda queries: predict_logits(module, queries)),
    }  # fmt: skip
    return lambda queries, probs: {title: detector.score(queries, probs) for title, detector in detectors.items()}


def _features(lab: Laboratory, setting: Setting) -> Scoring:
    roles = lab.roles(setting)
    features = penultimate(lab.victim(setting).module)
    k = setting.neighbours
    detectors = {
        f"kNN (k = {k})": NearestNeighbours(features, k, contract=roles.contract).fit(roles.train.raw),
        "Mahalanobis": Mahalanobis(features, contract=roles.contract).fit(roles.train.raw, roles.train.labels),
        "relative Mahalanobis": RelativeMahalanobis(features, contract=roles.contract).fit(roles.train.raw, roles.train.labels),
    }
    return lambda queries, probs: {title: detector.score(queries, probs) for title, detector in detectors.items()}


def _autoencoder(lab: Laboratory, setting: Setting) -> Scoring:
    autoencoder = lab.plain_autoencoder(setting).detector
    second = VictimOnReconstruction(autoencoder, lab.victim(setting))
    return lambda queries, probs: {
        "its reconstruction error": autoencoder.score(queries, probs),
        "victim(x) against victim(AE(x))": second.score(queries, probs),
    }


def _trivial(lab: Laboratory, setting: Setting) -> Scoring:
    roles = lab.roles(setting)
    detectors = {title: detector.fit(roles.benign) for title, detector in trivial_detectors(roles.contract).items()}
    others = {
        "distance to the nearest training image": NearestTrainingImage(contract=roles.contract).fit(roles.train.raw),
        "off the 8-bit grid": OffGrid(roles.contract),
    }
    return lambda queries, probs: {title: detector.score(queries, probs) for title, detector in {**detectors, **others}.items()}


SCORINGS: dict[str, Callable[[Laboratory, Setting], Scoring]] = {
    SAME: _same, OUTLIER: _defence(OUTLIER, OE), ENSEMBLE: _defence(ENSEMBLE, EDM), OUTPUTS: _outputs, FEATURES: _features,
    AUTOENCODER: _autoencoder, TRIVIAL: _trivial,
}  # fmt: skip


CODE: dict[str, tuple[Callable[..., Any], ...]] = {  # functions of this module whose change makes a family's scores anew
    SAME: (_same, with_masked, own_terms, paper_terms), OUTLIER: (_defence,), ENSEMBLE: (_defence,), OUTPUTS: (_outputs,), FEATURES: (_features,),
    AUTOENCODER: (_autoencoder,), TRIVIAL: (_trivial,),
}  # fmt: skip


def _bound(lab: Laboratory, setting: Setting, row: AttackRow) -> "Stage":
    """The upper bound: trained on every other query of the attack and as many benign ones, scored on the rest and on the test set."""

    def make() -> "Stage":
        roles, theft = lab.roles(setting), lab.theft(setting, row)
        sources = (*FAMILIES[BOUND].sources, architecture(setting.victim).source)
        inputs = {"queries": theft.digest, "benign": roles.digests["benign"], "test": roles.digests["test"]}
        stage = lab.cache.stage(
            f"scores-{BOUND}-{row.name}-{setting.name}", {"seed": lab.seed, "code": code_digest(_bound)}, sources, inputs
        )
        if not stage.done:
            with stage.making() as making:
                trained = np.arange(len(theft.queries)) % 2 == 0
                detector = SupervisedUpperBound(lambda: new_network(setting.victim, 2), roles.contract)
                config = setting.substitute.with_(seed=lab.seed, epochs=min(20, setting.substitute.epochs))
                detector.fit(roles.benign[: max(1, int(trained.sum()))], theft.queries[trained], config, lab.controlled(stage))
                malicious = np.full(len(theft.queries), np.nan)
                rest = theft.queries[~trained]
                malicious[~trained] = detector.score(rest, lab.victim(setting).answer(rest))
                benign = detector.score(roles.test_queries, lab.victim(setting).answer(roles.test_queries))
                making.save_arrays("scores.npz", {"malicious": malicious, "benign": benign})
            stage.forget_checkpoints()
        return stage

    return lab.once(("bound", setting.name, row.name), make)
