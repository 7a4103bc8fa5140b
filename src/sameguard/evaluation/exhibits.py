"""How each kind of table or figure is made: which stages it needs, in order, and what computes it from them."""

from collections.abc import Callable
from typing import Any, NamedTuple

from sameguard.evaluation.ablations import components, epochs, histograms, ratios, snapshot_stage, weights, width_stage, widths
from sameguard.evaluation.costs import costs, shared_scores
from sameguard.evaluation.detection import Found, Made, detection
from sameguard.evaluation.enforcement import accounts, add_ons, enforcement
from sameguard.evaluation.families import benign_scores, malicious_scores
from sameguard.evaluation.scenarios import AUTOENCODER, BOUND, ENSEMBLE, OUTLIER, WIDTHS, AttackRow, Exhibit, Setting
from sameguard.evaluation.stages import DEFAULT, MASKED, SHARED, Laboratory


class Step(NamedTuple):
    """One stage of the plan. seconds: a rough guess, for the progress bar alone.

    parts: the attack and the family that it belongs to; without what failed in one of them it is not tried, and if it fails, so has the last.
    """

    title: str
    seconds: float
    run: Callable[[Laboratory], Any]
    parts: tuple[str, ...] = ()


KINDS: dict[str, Callable[[Laboratory, Exhibit, Made], Found]] = {
    "detection": detection, "ratios": ratios, "components": components, "weights": weights, "histograms": histograms, "epochs": epochs,
    "widths": widths, "enforcement": enforcement, "costs": costs, "add-ons": add_ons, "accounts": accounts,
}  # fmt: skip
GUESSES = {  # seconds on two cores: victim, fit, calibration, a defence, a theft of 1,000 queries, scoring 1,000 queries, one more autoencoder
    "digits": (4.0, 20.0, 3.0, 5.0, 2.0, 0.5, 5.0),
    "mnist": (120.0, 450.0, 60.0, 90.0, 20.0, 3.0, 320.0),
    "cifar10": (2400.0, 2400.0, 120.0, 1200.0, 90.0, 12.0, 1600.0),
}


UNSCORED = ("accounts", "epochs", "widths")  # kinds that need no score of SAME
SOURCES = tuple(
    f"evaluation.{name}" for name in ("detection", "ablations", "enforcement", "costs", "families", "intervals", "feasibility", "metrics", "exhibits")
)  # fmt: skip


def steps(exhibit: Exhibit) -> list[Step]:
    """The stages that the exhibit needs, each once, in an order in which none waits for a later one."""
    setting = exhibit.setting
    victim, fit, calibration, defence, theft, score, another = GUESSES[setting.dataset]
    found = [Step(f"{setting.name}: victim", victim, lambda lab: lab.victim(setting))]
    if exhibit.kind not in UNSCORED:
        found.append(Step(f"{setting.name}: SAME", fit, lambda lab: lab.fit_stage(setting, DEFAULT)))
        found.append(Step(f"{setting.name}: SAME, auxiliary on masked views", fit / 3, lambda lab: lab.fit_stage(setting, MASKED)))
        found.append(Step(f"{setting.name}: calibration", calibration, lambda lab: lab.scorer_stage(setting)))
    if exhibit.kind == "costs":
        found.append(Step(f"{setting.name}: SAME, trunk shared", fit / 3, lambda lab: lab.fit_stage(setting, SHARED)))
    for row in exhibit.attacks:
        found += _theft_steps(exhibit, row, theft * row.budget / 1000)
    if exhibit.kind not in UNSCORED:
        for family in exhibit.families:
            found += _family_steps(exhibit, family, defence, score)
    if exhibit.kind == "costs":
        kept = [(row, min(row.budget, 10_000) / 1000) for row in exhibit.attacks]
        found += [
            Step(f"{setting.name}: scores of {row.name}, trunk shared", size * score, _shared(setting, row), (row.name,))
            for row, size in kept
        ]
    if exhibit.kind == "epochs":
        found.append(Step(f"{setting.name}: autoencoder with snapshots", another, lambda lab: snapshot_stage(lab, setting)))
    if exhibit.kind == "widths":
        found += [_width_step(setting, width, another) for width in WIDTHS]
    return found


def _theft_steps(exhibit: Exhibit, row: AttackRow, seconds: float) -> list[Step]:
    setting = exhibit.setting
    found = [Step(f"{setting.name}: {row.name}", seconds, lambda lab: lab.theft(setting, row), (row.name,))]
    if exhibit.kind == "enforcement":
        for rate in (None, *setting.rates):
            for labels in ("soft", "hard"):
                title = f"{setting.name}: {row.name}, {'open' if rate is None else f'guarded at {rate:.0%}'}, {labels} labels"
                found.append(Step(title, seconds, _guarded(setting, row, rate, labels), (row.name,)))
    return found


def _guarded(setting: Setting, row: AttackRow, rate: float | None, labels: str) -> Callable[[Laboratory], Any]:
    return lambda lab: lab.theft(setting, row, rate=rate, labels=labels)


def _family_steps(exhibit: Exhibit, family: str, defence: float, seconds: float) -> list[Step]:
    setting, found = exhibit.setting, []
    if family in (OUTLIER, ENSEMBLE):
        found.append(Step(f"{setting.name}: {family}", defence, lambda lab: lab.defence(setting, family), (family,)))
    if family == AUTOENCODER:
        found.append(Step(f"{setting.name}: {family}", defence / 2, lambda lab: lab.plain_autoencoder(setting), (family,)))
    if family != BOUND:
        found.append(
            Step(
                f"{setting.name}: {family} scores of the test set", 10 * seconds, lambda lab: benign_scores(lab, setting, family), (family,)
            )
        )
    for row in exhibit.attacks:
        kept = min(row.budget, 10_000) / 1000
        found.append(
            Step(f"{setting.name}: {family} scores of {row.name}", kept * seconds, _scored(setting, family, row), (row.name, family))
        )
    return found


def _scored(setting: Setting, family: str, row: AttackRow) -> Callable[[Laboratory], Any]:
    return lambda lab: malicious_scores(lab, setting, family, row)


def _shared(setting: Setting, row: AttackRow) -> Callable[[Laboratory], Any]:
    return lambda lab: shared_scores(lab, setting, row)


def _width_step(setting: Setting, width: int, seconds: float) -> Step:
    return Step(f"{setting.name}: autoencoder of width {width}", seconds, lambda lab: width_stage(lab, setting, width))


def inputs_of(lab: Laboratory, exhibit: Exhibit, made: Made) -> dict[str, str]:
    """Digests of everything that the exhibit is computed from: with the same ones, its result is the same."""
    setting = exhibit.setting
    found = {"victim": lab.victim_stage(setting).digest, "test": lab.roles(setting).digests["test"]}
    if exhibit.kind not in UNSCORED:
        found |= {"calibrated": lab.scorer_stage(setting).digest, "masked": lab.fit_stage(setting, MASKED).digest}
    if exhibit.kind == "costs":
        found["shared"] = lab.fit_stage(setting, SHARED).digest
    if exhibit.kind == "epochs":
        found["snapshots"] = snapshot_stage(lab, setting).digest
    if exhibit.kind == "widths":
        found |= {f"width-{width}": width_stage(lab, setting, width).digest for width in WIDTHS}
    for row in made.attacks:
        found[row.name] = lab.theft(setting, row).digest
        if exhibit.kind == "enforcement":
            for rate in (None, *setting.rates):
                for labels in ("soft", "hard"):
                    found[f"{row.name} {rate} {labels}"] = lab.theft(setting, row, rate=rate, labels=labels).digest
    for family in made.families:
        if family in (OUTLIER, ENSEMBLE):
            found[family] = lab.defence(setting, family).stage.digest
    return found
