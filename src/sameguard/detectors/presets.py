"""The presets `paper`, `released` and `cpu` (algorithms.md 2.6), and the default auxiliary network for an input."""

from dataclasses import dataclass

from torch import nn

from sameguard.errors import ConfigurationError
from sameguard.networks import MLP, Augmentation, Conv3, FastCifar, SmallConv
from sameguard.networks.resnet import ResNet18
from sameguard.reconstruction import MAEConfig
from sameguard.scoring.combination import ScoreConfig
from sameguard.training import FitConfig

TARGETS = ("victim_mse", "victim_ce", "victim_kl", "labels_ce")


@dataclass(frozen=True)
class AuxiliaryConfig:
    """How the auxiliary model is trained (Eq. 5).

    view: on `full`-view reconstructions, made once, or on `masked` ones with a fresh mask each step. target: the victim's answers by
    squared error, cross-entropy or KL divergence, or the true labels (`labels_ce`, the released variant).
    """

    fit: FitConfig
    view: str = "full"
    target: str = "victim_ce"
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        if self.view not in ("full", "masked"):
            raise ConfigurationError(f"auxiliary view must be full or masked, got {self.view!r}.")
        if self.target not in TARGETS:
            raise ConfigurationError(f"auxiliary target must be one of {', '.join(TARGETS)}, got {self.target!r}.")


@dataclass(frozen=True)
class Preset:
    """How SAME is fitted: networks' sizes, training, score."""

    name: str
    autoencoder: MAEConfig
    fit: FitConfig
    auxiliary: AuxiliaryConfig
    score: ScoreConfig


def preset(name: str, input_shape: tuple[int, ...], classes: int = 10) -> Preset:
    """The preset of that name for an input. Raises ConfigurationError for an unknown name."""
    if name not in PRESETS:
        raise ConfigurationError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}.")
    return PRESETS[name](tuple(input_shape), classes)


def default_auxiliary(input_shape: tuple[int, ...], classes: int, name: str = "cpu") -> nn.Module:
    """A network for an input whose victim's architecture is not known; the `paper` and `released` presets use the paper's."""
    if len(input_shape) == 1:
        return MLP(input_shape[0], classes)
    channels, side = input_shape[0], min(input_shape[1:])
    if input_shape[1] != input_shape[2] or side > 40:
        return ResNet18(classes, channels=channels)
    if side < 16:
        return SmallConv(classes, channels=channels, side=side)
    if channels == 1 or side < 24:
        return Conv3(classes, channels=channels, side=side)
    return ResNet18(classes, channels=channels) if name != "cpu" else FastCifar(classes, channels=channels)


# ---------------------------------------------------------------------- the three


def _cpu(shape: tuple[int, ...], classes: int) -> Preset:
    colour = len(shape) == 3 and shape[0] > 1
    small = len(shape) == 1 or max(shape[1:]) <= 12
    fit = FitConfig(epochs=24 if colour else 10)
    auxiliary = FitConfig(epochs=8, learning_rate=1e-3, weight_decay=1e-4, warmup_epochs=0.5, batch_size=128)
    if colour and max(shape[1:]) <= 40:
        auxiliary = FitConfig(
            epochs=8, batch_size=1024, learning_rate=1.5, weight_decay=1.33e-3, optimizer="sgd", momentum=0.85, schedule="linear",
            warmup_epochs=1.8, final_fraction=0.07, gradient_clip=None,
        )  # fmt: skip
    if small:  # small data: more epochs cost little
        fit, auxiliary = fit.with_(epochs=60, batch_size=64), auxiliary.with_(epochs=40, batch_size=64)
        if len(shape) == 3:  # held-out digits: full-view error .0075 -> .0044, masked .0472 -> .0444, in the same time
            fit = fit.with_(learning_rate=3e-3, warmup_epochs=5)
    augmentation = Augmentation(shift=2, flip="alternate") if colour else None
    return Preset("cpu", MAEConfig.cpu(shape), fit, AuxiliaryConfig(auxiliary, "full", "victim_ce", augmentation), ScoreConfig())


def _scaled_rate(batch: int) -> float:
    return 1.5e-4 * batch / 256  # the rule of He et al. 2022


def _paper(shape: tuple[int, ...], classes: int) -> Preset:
    fit = FitConfig(epochs=500, warmup_epochs=50, batch_size=128, learning_rate=_scaled_rate(128))
    auxiliary = AuxiliaryConfig(_released_auxiliary(), "masked", "victim_mse", _image_augmentation(shape))
    score = ScoreConfig(
        combination="weighted", deviation="squared", views=("masked",), reconstruction_view="masked", reconstruction_weight=0.5
    )
    return Preset("paper", MAEConfig.vit_tiny(shape, _paper_patch(shape)), fit, auxiliary, score)


def _released(shape: tuple[int, ...], classes: int) -> Preset:
    # the release divides its all-pixel loss by .75: AdamW does not notice a constant factor, so it is left out
    fit = FitConfig(epochs=500, warmup_epochs=50, batch_size=128, learning_rate=0.01)
    auxiliary = AuxiliaryConfig(_released_auxiliary(), "masked", "labels_ce", _image_augmentation(shape))
    score = ScoreConfig(
        combination="weighted", deviation="kl", views=("full",), reconstruction_view="full", reconstruction_weight=0.99, normaliser="none",
        error_factor=4.0,  # the release measures errors on [-1, 1]
        deviation_factor=1.0 / classes,  # and takes the mean over classes
    )  # fmt: skip
    return Preset("released", MAEConfig.vit_tiny(shape, _paper_patch(shape)), fit, auxiliary, score)


def _released_auxiliary() -> FitConfig:
    return FitConfig(
        epochs=80,
        batch_size=128,
        learning_rate=0.1,
        weight_decay=5e-4,
        optimizer="sgd",
        momentum=0.9,
        warmup_epochs=0.0,
        gradient_clip=None,
    )


def _image_augmentation(shape: tuple[int, ...]) -> Augmentation | None:
    return Augmentation(shift=4 if max(shape[1:]) > 28 else 2, flip="random" if shape[0] > 1 else "none") if len(shape) == 3 else None


def _paper_patch(shape: tuple[int, ...]) -> int:
    return 2 if len(shape) == 3 else max(1, -(-shape[0] // 64))


PRESETS = {"cpu": _cpu, "paper": _paper, "released": _released}
