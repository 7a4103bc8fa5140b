"""The paper's tables and figures, and the laboratory's own, as data: which victim, which attacks, which detectors, at which scale.

`tiny` (scikit-learn's digits, minutes) shows that everything works; `cpu` (MNIST, CIFAR-10) is what two cores carry; `paper` has the paper's
own settings, for an accelerator. Nothing is run here. Attacks that were looked at while the score was built are marked `development`, all
others `evaluation` (docs/deviations.md).
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sameguard.errors import ConfigurationError
from sameguard.training import FitConfig

SCALES = ("tiny", "cpu", "paper")
RATIOS = (0.01, 0.05, 0.10, 0.30, 0.50, 0.90)  # Table 4
WEIGHTS = tuple(round(0.1 * step, 1) for step in range(11))  # of Eq. 6, the ablation that the paper announces
WIDTHS = (32, 64, 128, 192)  # Figure 7
DEEPFOOLED = 2000  # images that ActiveThief's DFAL looks at each round: two cores would take a quarter of an hour for its default
DEVELOPMENT, EVALUATION = "development", "evaluation"

SAME, OUTPUTS, TRIVIAL, FEATURES, AUTOENCODER, OUTLIER, ENSEMBLE, BOUND = (
    "same", "outputs", "trivial", "features", "plain_autoencoder", "outlier_exposure", "diverse_ensemble", "supervised"
)  # fmt: skip
FAMILIES = (SAME, OUTLIER, ENSEMBLE, OUTPUTS, FEATURES, AUTOENCODER, TRIVIAL, BOUND)  # the order of the tables' rows


@dataclass(frozen=True)
class Source:
    """Part of a data set: `train` or `test`, all of it or one of two fixed halves (0, 1)."""

    name: str
    part: str = "train"
    half: int | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.part}" + ("" if self.half is None else f", half {self.half + 1} of 2")


@dataclass(frozen=True)
class Setting:
    """One victim on one data set, and how long everything about it is trained.

    proxies, outliers: tried in order, the first that is found is taken. held_out: share of the training set that the victim never sees;
    thief_share: of that, what belongs to the thief (JBDA's seeds), the rest is SAME's benign data. budgets: the smaller and the larger
    of the paper's; few: that of the other attacks; late: of the late generator, of which `kept` queries are stored and which plays in
    batches of `late_batch`. rounds: of attacks that choose their queries in rounds. *_epochs: None takes the preset's default. member:
    network of the ensemble's members, None the victim's.
    """

    name: str
    title: str
    dataset: str
    victim: str
    proxies: tuple[Source, ...]
    outliers: tuple[Source, ...]
    budgets: tuple[int, int]
    few: int
    late: int
    kept: int
    substitute: FitConfig
    round_fit: FitConfig
    held_out: float = 0.1
    thief_share: float = 1 / 6
    seeds: int = 200
    rounds: int = 10
    late_batch: int = 256
    preset: str = "cpu"
    fit_epochs: int | None = None
    auxiliary_epochs: int | None = None
    masked_target: str = "victim_mse"
    exposure_epochs: int = 2
    ensemble_epochs: int = 1
    member: str | None = None
    rates: tuple[float, ...] = (0.05, 0.01)
    neighbours: int = 50
    choose_engine: bool = True
    resamples: int = 1000


@dataclass(frozen=True)
class AttackRow:
    """One attack at one budget. kind: its name in `attack_kinds`. options: what differs from the attack's defaults.

    tail: share of the stored queries, from the end, that is scored (a late generator's). reported: its name in the paper's tables.
    """

    name: str
    title: str
    kind: str
    budget: int
    status: str = EVALUATION
    options: tuple[tuple[str, Any], ...] = ()
    tail: float = 1.0
    reported: str | None = None


@dataclass(frozen=True)
class Exhibit:
    """One table or figure of one setting. kind: how it is computed (`exhibits.KINDS`). missing: why it is not made at this scale."""

    name: str
    title: str
    kind: str
    setting: Setting
    attacks: tuple[AttackRow, ...] = ()
    families: tuple[str, ...] = (SAME,)
    missing: str = ""

    @property
    def key(self) -> str:
        return f"{self.name}-{self.setting.name}"


# ---------------------------------------------------------------------- settings

_SHORT = FitConfig(epochs=12, batch_size=32, learning_rate=2e-3, weight_decay=1e-4, precision="fp32")
_CONV3 = FitConfig(epochs=30, batch_size=64, learning_rate=1e-3, weight_decay=1e-4, precision="fp32")
_STRONG = FitConfig(epochs=10, batch_size=64, learning_rate=1e-3, weight_decay=1e-4, precision="fp32")

_DIGITS = Setting(
    "digits", "8x8 digits, small convolutional victim", "digits", "small_conv",
    proxies=(Source("glyphs", half=0),), outliers=(Source("glyphs", half=1),), budgets=(150, 300), few=150, late=4000, kept=600, late_batch=32,
    substitute=_SHORT, round_fit=_SHORT.with_(epochs=4), held_out=0.4, thief_share=0.25, seeds=30, rounds=3, fit_epochs=12, auxiliary_epochs=20,
    exposure_epochs=10, ensemble_epochs=6, neighbours=10, choose_engine=False, resamples=200,
)  # fmt: skip
_MNIST = Setting(
    "mnist", "MNIST, Conv3 victim", "mnist", "conv3",
    proxies=(Source("emnist-digits"), Source("femnist-digits")), outliers=(Source("kmnist", "train"), Source("kmnist", "test", 0)),
    budgets=(1000, 4000), few=1000, late=100_000, kept=10_000, substitute=_CONV3, round_fit=_CONV3.with_(epochs=10),
)  # fmt: skip
_CIFAR = Setting(
    "cifar10-strong", "CIFAR-10, strong victim", "cifar10", "strong",
    proxies=(Source("cifar100"),), outliers=(Source("tiny-imagenet"),), budgets=(6000, 10_000), few=1000, late=100_000, kept=10_000,
    substitute=_STRONG, round_fit=_STRONG.with_(epochs=5), masked_target="victim_ce", exposure_epochs=4,
    ensemble_epochs=3, member="strong_small",
)  # fmt: skip
_CIFAR_PAPER = replace(_CIFAR, name="cifar10-paper", title="CIFAR-10, the paper's ResNet-18 victim", victim="paper")


def settings_of(scale: str) -> dict[str, Setting]:
    """Name -> setting at a scale. Raises ConfigurationError for an unknown one."""
    if scale not in SCALES:
        raise ConfigurationError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}.")
    if scale == "tiny":
        return {"digits": _DIGITS}
    found = {setting.name: setting for setting in (_MNIST, _CIFAR, _CIFAR_PAPER)}
    if scale == "cpu":
        return found
    long = {"preset": "paper", "exposure_epochs": 100, "ensemble_epochs": 100, "member": None}
    return {
        name: replace(setting, **long, late=2_000_000, substitute=setting.substitute.with_(epochs=60)) for name, setting in found.items()
    }


# ---------------------------------------------------------------------- attacks


def paper_attacks(setting: Setting, budgets: tuple[int, ...] | None = None) -> tuple[AttackRow, ...]:
    """JBDA, Knockoff and DFME at the paper's budgets."""
    rows = []
    for budget in budgets or setting.budgets:
        rows += [
            AttackRow(f"jbda-{budget}", "JBDA", "jbda", budget, DEVELOPMENT, reported="JBDA"),
            AttackRow(f"knockoff-{budget}", "Knockoff, random", "knockoff", budget, DEVELOPMENT, reported="Knockoff"),
            AttackRow(f"dfme-{budget}", "DFME", "dfme", budget, reported="DFME"),
        ]
    if setting.victim == "paper":  # nobody looked at this victim while the score was built
        rows = [replace(row, status=EVALUATION) for row in rows]
    return tuple(rows)


def _few(setting: Setting, name: str, title: str, attack: str, status: str = EVALUATION, /, **options: Any) -> AttackRow:
    """A row at the setting's small budget."""
    return AttackRow(f"{name}-{setting.few}", title, attack, setting.few, status, tuple(options.items()))


def late_generator(setting: Setting) -> AttackRow:
    """DFME after many generator steps: the last fifth of its queries."""
    options = (("keep", setting.kept), ("batch_size", setting.late_batch))
    return AttackRow(f"dfme-late-{setting.late}", "DFME, late generator", "dfme", setting.late, EVALUATION, options, tail=0.2)


def other_attacks(setting: Setting) -> tuple[AttackRow, ...]:
    """The attacks that the paper does not run."""
    row = partial(_few, setting)
    return (
        row("knockoff-adaptive", "Knockoff, adaptive", "knockoff-adaptive", DEVELOPMENT),
        row("copycat", "Copycat (labels only)", "copycat", DEVELOPMENT),
        row("jbda-loss", "JBDA, along the loss", "jbda", DEVELOPMENT, direction="loss"),
        row("jbda-tr", "JBDA-TR", "jbda-tr"),
        row("active-thief-entropy", "ActiveThief, entropy", "active-thief", selection="entropy", rounds=setting.rounds),
        row("active-thief-k-center", "ActiveThief, k-center", "active-thief", selection="k-center", rounds=setting.rounds),
        row("active-thief-dfal", "ActiveThief, DFAL", "active-thief", selection="dfal", rounds=setting.rounds, candidates=DEEPFOOLED),
        row("cloud-leak", "CloudLeak-style", "cloud-leak", rounds=setting.rounds),
        row("maze", "MAZE", "maze"),
        row("noise-uniform", "noise, uniform", "noise", kind="uniform"),
        row("noise-bernoulli", "noise, Bernoulli", "noise", kind="bernoulli"),
        late_generator(setting),
    )


def informed_thieves(setting: Setting) -> tuple[AttackRow, ...]:
    """Thieves who know the guard."""
    row = partial(_few, setting)
    return (
        row("filtered", "Knockoff, SAME-filtered", "knockoff-filtered"),
        row("projected", "Knockoff, MAE-projected", "knockoff-projected"),
        row("mixed", "Knockoff, half of it benign", "knockoff-mixed", ratio=0.5),
        row("knockoff-levels", "Knockoff, benign grey levels", "knockoff", disguise="levels"),
        row("jbda-blur", "JBDA, blurred", "jbda", DEVELOPMENT, disguise="blur"),
        row("jbda-median", "JBDA, median-filtered", "jbda", DEVELOPMENT, disguise="median"),
        row("jbda-jpeg", "JBDA, JPEG", "jbda", DEVELOPMENT, disguise="jpeg"),
        row("jbda-levels", "JBDA, benign grey levels", "jbda", disguise="levels"),
        row("dfme-step", "DFME, step above the 8-bit grid", "dfme", probe_step=1.0),
    )


# ---------------------------------------------------------------------- tables and figures


def exhibits(scale: str) -> tuple[Exhibit, ...]:
    """Everything that the laboratory makes at a scale, in the order in which it is run: what matters most comes first."""
    settings = settings_of(scale)
    if scale == "tiny":
        digits = settings["digits"]
        return (*_detection("table-1", "Table 1: detection", (digits,)), *_rest(digits, (digits,), digits))
    mnist, strong, paper = settings["mnist"], settings["cifar10-strong"], settings["cifar10-paper"]
    return (
        *_detection("table-1", "Table 1: detection", (mnist,)),
        *_detection("table-2", "Table 2: detection", (strong, paper)),
        *_rest(mnist, (mnist, strong), strong),
    )


def _detection(name: str, title: str, settings: tuple[Setting, ...]) -> tuple[Exhibit, ...]:
    return tuple(Exhibit(name, title, "detection", setting, paper_attacks(setting), FAMILIES) for setting in settings)


def _rest(first: Setting, all_settings: tuple[Setting, ...], costs: Setting) -> tuple[Exhibit, ...]:
    """What both scales share. first: the cheapest setting, for what is run once. costs: the setting of Table 3."""
    larger = {setting.name: paper_attacks(setting, (setting.budgets[1],)) for setting in all_settings}
    each = [
        Exhibit("enforcement", "Stolen models, open and guarded", "enforcement", first, paper_attacks(first, (first.budgets[0],))),
        Exhibit(
            "table-3", "Table 3: accuracy, time and memory of the defences", "costs", costs, larger[costs.name], (SAME, OUTLIER, ENSEMBLE)
        ),
    ]
    for setting in all_settings:
        attacks = larger[setting.name]
        each += [
            Exhibit("table-4", "Table 4: share of malicious queries", "ratios", setting, attacks),
            Exhibit("figure-5", "Figure 5: SAME, SAME-X, SAME-Y", "components", setting, attacks),
            Exhibit("weights", "The weight of Eq. 6", "weights", setting, attacks),
            Exhibit(
                "figure-1", "Figure 1: Outlier Exposure and reconstruction error", "histograms", setting, attacks[1:2], (OUTLIER, SAME)
            ),
            Exhibit("figure-2", "Figure 2: reconstruction error and the whole score", "histograms", setting, attacks[:1]),
        ]
    each += [
        Exhibit("figure-4", "Figure 4: refusal and proof of work", "add-ons", first, larger[first.name]),
        Exhibit("attacks", "Other attacks", "detection", first, other_attacks(first), FAMILIES),
        Exhibit("thieves", "Thieves who know the guard", "detection", first, informed_thieves(first), FAMILIES),
        Exhibit("accounts", "PRADA, and one thief with many accounts", "accounts", first, larger[first.name]),
        Exhibit("figure-6", "Figure 6: epochs of the autoencoder", "epochs", first, larger[first.name]),
        Exhibit("figure-7", "Figure 7: width of the autoencoder", "widths", first, larger[first.name]),
    ]
    return tuple(each)


def select(scale: str, names: tuple[str, ...] = ()) -> tuple[Exhibit, ...]:
    """The exhibits of these names (all without any): `table-1`, `figure-6`, `weights`, or with a setting, `table-2-cifar10-strong`.

    Raises ConfigurationError for a name that this scale does not have.
    """
    every = exhibits(scale)
    known = {exhibit.name for exhibit in every} | {exhibit.key for exhibit in every}
    for name in names:
        if name not in known:
            offered = ", ".join(dict.fromkeys(exhibit.name for exhibit in every))
            raise ConfigurationError(f"table or figure at scale {scale} must be one of {offered}, got {name!r}.")
    return every if not names else tuple(exhibit for exhibit in every if exhibit.name in names or exhibit.key in names)
