"""Every attack by name: what it needs to be given, which modules it is made of, and how it is built from a thief's belongings.

The laboratory and `sameguard attack` build their attacks here, so that a row of a table and a command mean the same thing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from torch import nn

from sameguard.attacks.base import SUBSTITUTE_FIT, Attack
from sameguard.data import Split
from sameguard.data.transforms import blur, jpeg, median
from sameguard.errors import ConfigurationError
from sameguard.training import FitConfig, RunControl

Array = Callable[[np.ndarray], np.ndarray]
TRAINED = ("attacks.base", "attacks.transcript", "networks.classifier", "training")  # modules behind every attack that trains by rows


@dataclass(frozen=True, eq=False)
class Belongings:
    """What a thief has. substitute: makes its network. proxy: images of another kind. seeds: a few natural ones of the victim's own kind.

    score, project: a thief's own copy of SAME, as callables on canonical queries: suspicion, and the autoencoder's picture.
    """

    substitute: Callable[[], nn.Module]
    proxy: Split | None = None
    seeds: Split | None = None
    score: Array | None = None
    project: Array | None = None
    config: FitConfig = SUBSTITUTE_FIT
    round_fit: FitConfig | None = None
    seed_count: int = 200
    labels: str = "soft"
    device: str = "cpu"
    control: RunControl | None = None


@dataclass(frozen=True)
class AttackKind:
    """module, name: where its class lies. positional: fields of Belongings that come first. needs: further ones -> the class's own name.

    takes: which of config, round_fit, seed_count, labels and device the class knows. options: what a caller may set besides. parts: modules
    that it is made of besides its own.
    """

    module: str
    name: str
    positional: tuple[str, ...] = ()
    needs: tuple[tuple[str, str], ...] = ()
    takes: tuple[str, ...] = ("config", "labels")
    options: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()

    @property
    def belongings(self) -> tuple[str, ...]:
        """Fields of Belongings without which it cannot be run."""
        return (*self.positional, *(field for field, _ in self.needs))

    @property
    def sources(self) -> tuple[str, ...]:
        return (*TRAINED, self.module, *self.parts)


_GROWN = ("step", "reservoir", "reservoir_after", "seed_count", "disguise")
_GAME = ("attacks.data_free", "networks.dfme_generator")
ATTACK_KINDS: dict[str, AttackKind] = {
    "noise": AttackKind("attacks.noise", "NoiseQueries", options=("kind",)),
    "knockoff": AttackKind("attacks.knockoff", "KnockoffNets", ("proxy",), options=("disguise",)),
    "knockoff-adaptive": AttackKind("attacks.knockoff_adaptive", "AdaptiveKnockoff", ("proxy",), options=("coarse_nodes", "window"), parts=("attacks.bandit",)),
    "copycat": AttackKind("attacks.copycat", "Copycat", ("proxy",), takes=("config",), parts=("attacks.knockoff",)),
    "jbda": AttackKind("attacks.jbda", "JBDA", ("seeds",), takes=("config", "round_fit", "seed_count", "labels"),
                       options=("direction", "of", "flip_every", *_GROWN)),
    "jbda-tr": AttackKind("attacks.jbda", "TargetedJBDA", ("seeds",), takes=("config", "round_fit", "seed_count", "labels"), options=_GROWN),
    "dfme": AttackKind("attacks.dfme", "DFME", takes=("labels", "device"), options=("probe_step", "probes", "batch_size", "keep"), parts=_GAME),
    "maze": AttackKind("attacks.maze", "MAZE", takes=("labels", "device"), options=("probe_step", "probes", "batch_size", "keep"), parts=_GAME),
    "active-thief": AttackKind("attacks.active_thief", "ActiveThief", ("proxy",), options=("selection", "rounds", "candidates"),
                               parts=("attacks.selection",)),
    "cloud-leak": AttackKind("attacks.cloud_leak", "CloudLeak", ("proxy",), takes=("config", "round_fit", "labels"),
                             options=("epsilon", "steps", "rounds")),
    "knockoff-filtered": AttackKind("attacks.thieves", "FilteredKnockoff", ("proxy",), (("score", "score"),), parts=("attacks.knockoff",)),
    "knockoff-projected": AttackKind("attacks.thieves", "ProjectedKnockoff", ("proxy",), (("project", "project"),), options=("passes",),
                                     parts=("attacks.knockoff",)),
    "knockoff-mixed": AttackKind("attacks.thieves", "BenignMix", ("proxy",), (("seeds", "benign"),), options=("ratio",),
                                parts=("attacks.knockoff",)),
}  # fmt: skip


def attack_kind(name: str) -> AttackKind:
    """The kind of that name. Raises ConfigurationError for an unknown one."""
    if name not in ATTACK_KINDS:
        raise ConfigurationError(f"attack must be one of {', '.join(ATTACK_KINDS)}, got {name!r}.")
    return ATTACK_KINDS[name]


def make_attack(name: str, belongings: Belongings, budget: int, options: Mapping[str, Any] | None = None) -> Attack:
    """The attack of that name. Raises ConfigurationError for an unknown option or where the thief lacks what it needs."""
    kind, chosen = attack_kind(name), dict(options or {})
    unknown = [option for option in chosen if option not in kind.options]
    if unknown:
        raise ConfigurationError(f"attack {name} takes the options {', '.join(kind.options) or 'none'}, got {', '.join(unknown)}.")
    missing = [field for field in kind.belongings if getattr(belongings, field) is None]
    if missing:
        raise ConfigurationError(f"attack {name} needs {' and '.join(missing)}, got none: give the thief such data.")
    disguise = chosen.pop("disguise", None)
    if disguise is not None:
        chosen["transform"] = _disguise(disguise, belongings.seeds)
    settings = {field: getattr(belongings, field) for field in kind.takes if getattr(belongings, field) is not None}
    settings |= {own: getattr(belongings, field) for field, own in kind.needs}
    made = getattr(import_module(f"sameguard.{kind.module}"), kind.name)
    first = [getattr(belongings, field) for field in kind.positional]
    return made(*first, belongings.substitute, budget, control=belongings.control, **{**settings, **chosen})


def _disguise(name: str, seeds: Split | None) -> Array:
    """What a thief does to its queries before it sends them: blur, median, jpeg, or the grey levels of natural images (levels)."""
    plain = {"blur": blur, "median": median, "jpeg": jpeg}
    if name in plain:
        return plain[name]
    if name != "levels":
        raise ConfigurationError(f"disguise must be blur, median, jpeg or levels, got {name!r}.")
    if seeds is None:
        raise ConfigurationError("disguise levels needs seeds, natural images whose grey levels are copied, got none.")
    from sameguard.attacks.thieves import match_levels

    natural = seeds.inputs
    return lambda queries: match_levels(queries, natural)
