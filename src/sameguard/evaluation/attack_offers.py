"""Every attack as a caller sees it: what it needs, which options it takes, of which type, and how `NAME=VALUE` becomes one of them.

The registry (attack_kinds.py) knows the names; types and defaults are read from the constructors' signatures, so that a wrong word ends in
a sentence before anything is asked. A class of a caller's own is offered in the same way: its parameters are what it needs and takes.
"""

import ast
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from sameguard.attacks.base import Attack
from sameguard.errors import ConfigurationError
from sameguard.evaluation.attack_kinds import ATTACK_KINDS, Belongings, attack_kind, make_attack

POSSESSIONS = ("proxy", "seeds", "score", "project")  # fields of Belongings that a thief may lack
GIVEN = ("substitute", "budget", *POSSESSIONS, "config", "round_fit", "seed_count", "labels", "device", "control")
REQUIRED = object()  # in place of a default
TYPES: dict[type, str] = {int: "a whole number", float: "a finite number", bool: "True or False", str: "a word"}
MEANINGS = {
    "kind": "uniform noise, or bernoulli: black and white pixels alone",
    "disguise": "what is done to each query before it is sent: blur, median, jpeg, or levels (grey levels of natural images; needs --seeds)",
    "coarse_nodes": "groups of proxy classes on the upper level; None: one up to 30 classes, twice the root of their number above",
    "window": "answers and rewards that count as recent",
    "direction": "jacobian climbs the output of the class that the victim named, loss climbs its cross-entropy",
    "of": "climb the log of the prob, or the logit",
    "flip_every": "rounds after which the step turns round",
    "step": "of one move, in canonical units",
    "reservoir": "at most so many parents a round; None: all",
    "reservoir_after": "rounds before the reservoir holds",
    "seed_count": "natural images that it starts from; the same as --seed-count",
    "probe_step": "of the forward differences, before tanh; below 1 an 8-bit grid swallows it",
    "probes": "directions for each generated image",
    "batch_size": "generated images a step",
    "keep": "so many of the queries are kept, evenly spread; None: all",
    "selection": "entropy, k-center, dfal or dfal+k-center",
    "rounds": "equal parts of the budget after its start",
    "candidates": "random images of the pool that dfal looks at each round",
    "epsilon": "greatest change of any value, in canonical units",
    "steps": "of the signed descent",
    "passes": "times each image goes through the autoencoder",
    "ratio": "share of natural queries",
}


@dataclass(frozen=True)
class Option:
    """One option. types: those of TYPES that it takes, none where its annotation says nothing plain. optional: None is a value."""

    name: str
    types: tuple[type, ...]
    optional: bool
    default: Any

    @property
    def rule(self) -> str:
        """What it takes, in words."""
        words = [TYPES[kind] for kind in self.types if not (kind is int and float in self.types)]
        return " or ".join([*words, "None"] if self.optional else words) or "a value"

    @property
    def shown(self) -> str:
        """As a user would set it, with its default."""
        if self.default is REQUIRED:
            return self.name
        return f"{self.name}={self.default:.4g}" if isinstance(self.default, float) else f"{self.name}={self.default}"

    def read(self, text: str, attack: str) -> Any:
        """The value that a text stands for. Raises ConfigurationError where it is of another type, or no finite number."""
        if self.types == (str,):  # a word stays one, even if it looks like a number
            return None if self.optional and text == "None" else text
        try:
            value = ast.literal_eval(text)
            if type(value) is int and float in self.types and int not in self.types:
                value = float(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError, OverflowError):
            value = text
        if (value is None and self.optional) or not self.types or self._holds(value):
            return value
        example = "" if self.default is REQUIRED else f": leave it out for {self.default!r}"
        raise ConfigurationError(f"option {self.name} of attack {attack} must be {self.rule}, got {text!r}{example}.")

    def _holds(self, value: Any) -> bool:
        if isinstance(value, bool):
            return bool in self.types
        if isinstance(value, float) and not math.isfinite(value):
            return False
        return isinstance(value, self.types)


@dataclass(frozen=True, eq=False)
class Offer:
    """One attack. needs: fields of Belongings without which it cannot be run. make: from belongings, budget and options."""

    name: str
    needs: tuple[str, ...]
    options: dict[str, Option]
    make: Callable[[Belongings, int, Mapping[str, Any]], Attack]

    def read(self, settings: Sequence[str]) -> dict[str, Any]:
        """Options from `NAME=VALUE`. Raises ConfigurationError for another form, an unknown name, a wrong type, one twice or a missing one."""
        found: dict[str, Any] = {}
        for setting in settings:
            name, equals, text = setting.partition("=")
            if not equals or not name:
                raise ConfigurationError(f"--set must be NAME=VALUE, got {setting!r}.")
            if name not in self.options:
                raise ConfigurationError(
                    f"attack {self.name} takes the options {', '.join(self.options) or 'none'}, got {name}: sameguard attack --list tells them."
                )
            if name in found:
                raise ConfigurationError(f"--set must give each option once, got {name} twice: leave one out.")
            found[name] = self.options[name].read(text, self.name)
        lacking = [name for name, option in self.options.items() if option.default is REQUIRED and name not in found]
        if lacking:
            raise ConfigurationError(f"attack {self.name} needs the option {lacking[0]}, got none: add --set {lacking[0]}=VALUE.")
        return found


def offer(name: str) -> Offer:
    """The registered attack of that name. Raises ConfigurationError for an unknown one."""
    kind = attack_kind(name)
    made = getattr(import_module(f"sameguard.{kind.module}"), kind.name)
    parameters = inspect.signature(made).parameters
    options = {option: _option(option, parameters[option]) for option in kind.options if option != "disguise"}
    if "disguise" in kind.options:  # a word here, a function in the class
        options["disguise"] = Option("disguise", (str,), True, None)
    return Offer(name, kind.belongings, options, lambda belongings, budget, chosen: make_attack(name, belongings, budget, chosen))


def offers() -> list[Offer]:
    """All registered attacks."""
    return [offer(name) for name in ATTACK_KINDS]


def own_offer(made: Any, spec: str) -> Offer:
    """A class or function of the caller's own that makes an attack, `spec` being its name.

    Its parameters are passed by name. `substitute`, `budget`, `proxy`, `seeds`, `score`, `project`, `config`, `round_fit`, `seed_count`,
    `labels`, `device` and `control` get what Belongings says of them; the others are options.
    Raises ConfigurationError where it cannot be called so, or what it makes has no `run`.
    """
    if not callable(made):
        raise ConfigurationError(f"attack {spec} must be a class or a function that makes one, got {type(made).__name__}.")
    try:
        parameters = inspect.signature(made).parameters
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"attack {spec} must have a signature that tells what it needs, got none: write a function.") from error
    named = {name: one for name, one in parameters.items() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}
    unnamed = [name for name, one in named.items() if one.kind is one.POSITIONAL_ONLY]
    if unnamed:
        raise ConfigurationError(f"attack {spec} must take its arguments by name, got {unnamed[0]} by position alone: remove the slash.")
    needs = tuple(name for name in POSSESSIONS if name in named and named[name].default is inspect.Parameter.empty)
    options = {name: _option(name, parameter) for name, parameter in named.items() if name not in GIVEN}

    def make(belongings: Belongings, budget: int, chosen: Mapping[str, Any]) -> Attack:
        owned = {name: budget if name == "budget" else getattr(belongings, name) for name in GIVEN if name in named}
        owned = {name: value for name, value in owned.items() if value is not None or named[name].default is inspect.Parameter.empty}
        attack = made(**owned, **chosen)
        if not isinstance(attack, Attack):
            raise ConfigurationError(f"attack {spec} must have run(endpoint, seed), got {type(attack).__name__} without it.")
        return attack

    return Offer(spec, needs, options, make)


def _option(name: str, parameter: inspect.Parameter) -> Option:
    annotation = parameter.annotation
    parts = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else (annotation,)
    plain = tuple(kind for kind in parts if kind in TYPES)
    known = plain if len(plain) == len([part for part in parts if part is not type(None)]) else ()
    default = REQUIRED if parameter.default is inspect.Parameter.empty else parameter.default
    return Option(name, known, type(None) in parts, default)
