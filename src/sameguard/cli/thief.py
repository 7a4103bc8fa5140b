"""What a thief of `sameguard attack` brings along: the attack itself, its network, its own copy of the detector. From words to objects."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from sameguard.cli.sources import import_object
from sameguard.endpoint import MeteredEndpoint
from sameguard.errors import ConfigurationError
from sameguard.victim import BlackBox

if TYPE_CHECKING:
    from sameguard.attacks import Extraction
    from sameguard.evaluation.attack_offers import Offer
    from sameguard.evaluation.substitutes import Substitute

FLAGS = {"proxy": "--proxy NAME|PATH", "seeds": "--seeds NAME|PATH", "score": "--copy ARTIFACT", "project": "--copy ARTIFACT"}


def chosen_offer(name: str) -> "Offer":
    """A registered attack, or the user's own, package.module:Class. Raises ConfigurationError where it is neither."""
    known = _attack_offers()
    return known.own_offer(import_object(name, "attack"), name) if ":" in name else known.offer(name)


def check_needs(offer: "Offer", options: dict[str, Any], given: dict[str, Any]) -> None:
    """Raises ConfigurationError, naming the option to add, where the thief lacks what the attack needs. given: option -> value."""
    lacking = [need for need in offer.needs if given[FLAGS[need].split()[0]] is None]
    if lacking:
        add = " and ".join(needed_flags(tuple(lacking)))
        raise ConfigurationError(f"attack {offer.name} needs {' and '.join(lacking)}, got none: add {add}.")
    if options.get("disguise") == "levels" and given["--seeds"] is None:
        raise ConfigurationError(
            f"disguise levels needs seeds, natural images whose grey levels are copied, got none: add {FLAGS['seeds']}."
        )


def chosen_substitute(spec: str | None, victim: BlackBox) -> "Substitute":
    """What --substitute names; the victim's architecture, where it can be seen, without it."""
    from sameguard.evaluation.substitutes import named_substitute, own_substitute, substitute_for

    if spec is None:
        return substitute_for(victim)
    if ":" in spec:
        return own_substitute(import_object(spec, "substitute"), spec, victim.classes)
    return named_substitute(spec, victim.contract, victim.classes)


def own_detector(needs: tuple[str, ...], artefact: Path | None, victim: BlackBox) -> dict[str, Any]:
    """`score` and `project`, as far as they are needed, from the thief's copy of the artefact.

    Raises ConfigurationError where it is of other inputs or classes than the victim, NotFittedError where a score needs calibration.
    """
    wanted = {"score", "project"} & set(needs)
    if not wanted or artefact is None:
        return {}
    from sameguard.evaluation.own_copy import own_picture, own_score
    from sameguard.runtime import Scorer

    scorer = Scorer(artefact)
    if (scorer.contract.shape, scorer.classes) != (victim.contract.shape, victim.classes):
        raise ConfigurationError(
            f"--copy must be of the victim's inputs {victim.contract.shape} and {victim.classes} classes, got {scorer.contract.shape} and "
            f"{scorer.classes}: give the artefact of this victim."
        )
    makers = {"score": own_score, "project": own_picture}
    return {name: makers[name](scorer) for name in sorted(wanted)}


def trainings(epochs: int) -> dict[str, Any]:
    """How a substitute is trained at the end, and between the rounds of an attack that has rounds."""
    from sameguard.training import FitConfig

    config = FitConfig(epochs=epochs, batch_size=64, learning_rate=1e-3, weight_decay=1e-4, precision="fp32")
    return {"config": config, "round_fit": config.with_(epochs=max(1, epochs // 6))}


def stolen(
    offer: "Offer", belongings: dict[str, Any], options: dict[str, Any], progress: Any, endpoint: MeteredEndpoint, seed: int
) -> "Extraction":
    """The attack, built and run. Raises ConfigurationError where an attack of the user's own returns anything else than an Extraction."""
    from sameguard.attacks import Extraction
    from sameguard.evaluation.attack_kinds import Belongings
    from sameguard.training import RunControl

    thief = offer.make(Belongings(**belongings, control=RunControl(progress=progress)), endpoint.remaining, options)
    found = thief.run(endpoint, seed)
    if not isinstance(found, Extraction):
        raise ConfigurationError(f"attack {offer.name} must return an Extraction from run, got {type(found).__name__}.")
    return found


def print_offers(wanted: bool) -> bool:
    """Where it is wanted, lists every attack with what it needs and takes, and ends the command."""
    if not wanted:
        return wanted
    known = _attack_offers()
    attacks = Table("attack", "needs", "takes, with --set NAME=VALUE")
    for one in known.offers():
        attacks.add_row(
            one.name,
            "\n".join(flag.split()[0] for flag in needed_flags(one.needs)),
            ", ".join(option.shown for option in one.options.values()),
        )
    attacks.add_row("package.module:Class", "what its signature says", "the same")
    options = Table("option", "value", "meaning")
    for name, rule in sorted({option.name: option.rule for one in known.offers() for option in one.options.values()}.items()):
        options.add_row(name, rule, known.MEANINGS[name])
    Console().print(attacks, options)
    raise typer.Exit


def needed_flags(needs: tuple[str, ...]) -> list[str]:
    """The options that give an attack what it needs."""
    return list(dict.fromkeys(FLAGS[need] for need in needs))


def _attack_offers() -> Any:
    try:
        from sameguard.evaluation import attack_offers
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"attack trains a substitute and needs {error.name}: pip install 'sameguard[train]'.") from error
    return attack_offers
