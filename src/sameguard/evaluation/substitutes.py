"""What a thief trains: the victim's architecture with fresh weights where it can be seen, else one that suits the input, or one by name.

The paper's extreme case is a thief who knows the architecture. A torch victim shows it; an ONNX file, a classifier or an address does not.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from sameguard.contract import InputContract
from sameguard.detectors import default_auxiliary
from sameguard.errors import ConfigurationError
from sameguard.networks import MLP, Conv3, FastCifar, ResNet18, SmallConv
from sameguard.networks.fresh import fresh_copy
from sameguard.networks.torch_victim import TorchVictim
from sameguard.training import seeded
from sameguard.victim import BlackBox

Shape = tuple[int, ...]


class Architecture(NamedTuple):
    """make: shape of a query, classes -> a fresh network. takes: the queries that it is made for, in words; suits: and as a test of their shape."""

    make: Callable[[Shape, int], nn.Module]
    takes: str
    suits: Callable[[Shape], bool]


def _square(side: int) -> Callable[[Shape], bool]:
    return lambda shape: len(shape) == 3 and shape[1] == shape[2] >= side


SUBSTITUTES = {
    "MLP": Architecture(lambda shape, classes: MLP(shape[0], classes), "vectors", lambda shape: len(shape) == 1),
    "SmallConv": Architecture(
        lambda shape, classes: SmallConv(classes, channels=shape[0], side=shape[1]), "square images of at least 2 pixels", _square(2)
    ),
    "Conv3": Architecture(
        lambda shape, classes: Conv3(classes, channels=shape[0], side=shape[1]), "square images of at least 16 pixels", _square(16)
    ),
    "FastCifar": Architecture(
        lambda shape, classes: FastCifar(classes, channels=shape[0]), "square images of at least 24 pixels", _square(24)
    ),
    "ResNet18": Architecture(lambda shape, classes: ResNet18(classes, channels=shape[0]), "images", lambda shape: len(shape) == 3),
}


class Substitute(NamedTuple):
    """make: a fresh network. what: how a report names it, and why it is that one."""

    make: Callable[[], nn.Module]
    what: str


def substitute_for(victim: BlackBox) -> Substitute:
    """The victim's architecture where it is a torch module that takes canonical queries and gives logits; else the input's default."""
    why_not = _hidden(victim)
    if why_not is None:
        module = victim.module
        try:
            _tried(lambda: fresh_copy(module))
        except ConfigurationError as error:
            why_not = str(error)
        else:
            return Substitute(lambda: fresh_copy(module), f"{type(module).__name__}, the victim's architecture")

    def make() -> nn.Module:
        return default_auxiliary(victim.contract.shape, victim.classes)

    return Substitute(make, f"{type(_tried(make)).__name__}, the default for its input: {why_not}")


def named_substitute(name: str, contract: InputContract, classes: int) -> Substitute:
    """An architecture of this package by the name of its class, for such an input. Raises ConfigurationError where it does not suit."""
    if name not in SUBSTITUTES:
        raise ConfigurationError(f"substitute must be one of {', '.join(SUBSTITUTES)}, or package.module:factory, got {name!r}.")
    shape, named = contract.shape, SUBSTITUTES[name]
    if not named.suits(shape):
        raise ConfigurationError(f"substitute {name} takes {named.takes}, got queries of shape {shape}: choose another.")
    return Substitute(lambda: named.make(shape, classes), name)


def own_substitute(found: Any, spec: str, classes: int) -> Substitute:
    """The architecture of a torch module, or what a function makes: it is called with the number of classes, or with nothing.

    Raises ConfigurationError where it is neither.
    """
    if isinstance(found, nn.Module):
        _tried(lambda: fresh_copy(found))  # says what hinders it before anything is asked
        return Substitute(lambda: fresh_copy(found), f"{spec}, with fresh weights")
    if not callable(found):
        raise ConfigurationError(
            f"substitute {spec} must be a torch module, or a function that makes one from the number of classes, got {type(found).__name__}."
        )
    given = (classes,) if _takes_classes(found) else ()

    def make() -> nn.Module:
        made = found(*given)
        if not isinstance(made, nn.Module):
            raise ConfigurationError(f"substitute {spec} must make a torch module, got {type(made).__name__}.")
        return made

    return Substitute(make, spec)


def _hidden(victim: BlackBox) -> str | None:
    """Why the victim's architecture cannot be the substitute's; None where it can."""
    if not isinstance(victim, TorchVictim):
        return "the victim does not show its architecture"
    contract = victim.contract
    if contract.raw_shape != contract.shape or contract.dtype != "FP32":  # a mean and a standard deviation are no matter to fresh weights
        return "the victim's network takes other inputs than canonical queries"
    return None if victim.output == "logits" else f"the victim's network gives {victim.output}, and a substitute is trained on its logits"


def _tried(make: Callable[[], nn.Module]) -> nn.Module:
    """One such network; torch's global generator is as it was."""
    with seeded(0):
        return make()


def _takes_classes(make: Callable[..., Any]) -> bool:
    """Whether the first argument is the number of classes: it has no default, or that name."""
    try:
        parameters = list(inspect.signature(make).parameters.values())
    except (TypeError, ValueError):  # some functions written in C tell nothing
        return True
    if not parameters or parameters[0].kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
        return False
    return parameters[0].name == "classes" or parameters[0].default is inspect.Parameter.empty
