"""The laboratory's victims, by name: architecture and training recipe (algorithms.md 2.7, speed.md).

small_conv: 8x8 digits. conv3: the paper's on MNIST. strong: a fast network that reaches 93 % and more on CIFAR-10. paper: the paper's on
CIFAR-10, ResNet-18 with the ImageNet stem, about 83 %. A thief's substitute and SAME's auxiliary have the victim's architecture. strong_small
is no victim: it is a member of the ensemble that two cores can train five of.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from sameguard.data import Split, split
from sameguard.errors import ConfigurationError
from sameguard.networks import Augmentation, Conv3, FastCifar, ResNet18, SmallConv, fit_classifier
from sameguard.training import FitConfig, RunControl, seeded

HELD_OUT_SEED = 0


class Architecture(NamedTuple):
    """make: classes -> a fresh network. source: the module that it lies in."""

    make: Callable[[int], nn.Module]
    source: str


class VictimRecipe(NamedTuple):
    """How a victim is trained. options: of `fit_classifier`."""

    fit: FitConfig
    options: dict[str, Any]


ARCHITECTURES: dict[str, Architecture] = {
    "small_conv": Architecture(SmallConv, "networks.conv3"),
    "conv3": Architecture(Conv3, "networks.conv3"),
    "strong": Architecture(FastCifar, "networks.fast_cifar"),
    "strong_small": Architecture(partial(FastCifar, widths=(32, 128, 128)), "networks.fast_cifar"),
    "paper": Architecture(ResNet18, "networks.resnet"),
}
RECIPES: dict[str, VictimRecipe] = {
    "small_conv": VictimRecipe(
        FitConfig(epochs=25, batch_size=64, learning_rate=2e-3, weight_decay=1e-4, precision="fp32"), {}
    ),
    "conv3": VictimRecipe(
        FitConfig(epochs=8, batch_size=128, learning_rate=1e-3, weight_decay=1e-4, warmup_epochs=0.5), {}
    ),
    "strong": VictimRecipe(
        FitConfig(
            epochs=15, batch_size=1024, learning_rate=1.5, weight_decay=1.33e-3, optimizer="sgd", momentum=0.85, schedule="linear",
            warmup_epochs=3.45, final_fraction=0.07, gradient_clip=None,
        ),
        {"label_smoothing": 0.2, "augmentation": Augmentation(shift=2, flip="alternate")},
    ),
    "paper": VictimRecipe(
        FitConfig(
            epochs=20, batch_size=128, learning_rate=0.1, weight_decay=5e-4, optimizer="sgd", momentum=0.9, warmup_epochs=0, gradient_clip=None
        ),
        {"augmentation": Augmentation(shift=4, flip="random")},
    ),
}  # fmt: skip


def held_out_split(train: Split, held_out: float = 0.1) -> tuple[Split, Split]:
    """The fixed share that victims train on, and the rest, which they never see."""
    fitted, rest = split(train, (1.0 - held_out, held_out), seed=HELD_OUT_SEED)
    return fitted, rest


def architecture(name: str) -> Architecture:
    """The architecture of that name. Raises ConfigurationError for an unknown one."""
    if name not in ARCHITECTURES:
        raise ConfigurationError(f"network must be one of {', '.join(ARCHITECTURES)}, got {name!r}.")
    return ARCHITECTURES[name]


def new_network(name: str, classes: int = 10) -> nn.Module:
    """A fresh network of that architecture."""
    return architecture(name).make(classes)


def train_victim(name: str, fitted: Split, config: FitConfig | None = None, control: RunControl | None = None) -> nn.Module:
    """A trained victim, in eval mode on the CPU; resumable as stage `victim`. config: None takes the recipe's."""
    chosen = RECIPES[name]
    config = config or chosen.fit
    with seeded(config.seed):
        network = new_network(name, fitted.classes)
    fit_classifier(network, fitted.raw, fitted.labels, config, control, stage="victim", **chosen.options)
    return network.cpu().eval()
