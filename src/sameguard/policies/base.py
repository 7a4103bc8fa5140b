"""Policies turn scores into actions, and actions are data: whoever serves the query interprets them.

In process the guard computes what a challenge would cost; over HTTP it is issued. A new defence is a new action and a new policy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from sameguard.errors import ConfigurationError
from sameguard.shapes import Scores


@dataclass(frozen=True)
class Allow:
    """The victim's answer is handed out."""

    severity: ClassVar[float] = 0.0


@dataclass(frozen=True)
class Coarsen:
    """A poorer answer is handed out. decimals: 1 to 6, to which probabilities are rounded; None leaves the top class alone."""

    decimals: int | None = None

    def __post_init__(self) -> None:
        if self.decimals is not None and not 1 <= self.decimals <= 6:
            raise ConfigurationError(
                f"decimals of a coarsened answer must be 1 to 6, got {self.decimals}: pass None for the top class alone."
            )

    @property
    def severity(self) -> float:
        """In [1, 2): the fewer decimals, the more severe."""
        return 1.5 if self.decimals is None else 1.0 + 1.0 / (2.0 + self.decimals)


@dataclass(frozen=True)
class Challenge:
    """The victim's answer is handed out to who proves the work. level: from 1. work: mean number of tries, see `Pricing`."""

    level: int
    work: int

    @property
    def severity(self) -> float:
        """In [2, 3): the higher level is the more severe."""
        return 2.0 + self.level / (1.0 + self.level)


@dataclass(frozen=True)
class TooCostly:
    """No answer to this batch, whose summed work passes what one request may cost, or which has no one price: fewer rows at once have."""

    severity: ClassVar[float] = 3.0


@dataclass(frozen=True)
class Refuse:
    """No answer."""

    severity: ClassVar[float] = 4.0


Action = Allow | Coarsen | Challenge | TooCostly | Refuse


@runtime_checkable
class Policy(Protocol):
    """One action per row. A higher score never gets a milder action; NaN gets the strictest.

    A row that stage A does not allow is settled by that action: it is not judged again on the victim's answer. A policy that charges has
    `largest_work`, the mean tries that one request may cost.
    """

    def decide_stage_a(self, stage_a_scores: Scores) -> list[Action]: ...

    def decide(self, scores: Scores) -> list[Action]: ...


def action_of_batch(actions: Sequence[Action], largest_work: int | None = None) -> Action:
    """The one action of a whole request: that of its most severe row, for the summed work of all its challenged rows.

    One proof for 256 bad rows would be a discount, and so would a sum clipped at the cap: beyond `largest_work` it is TooCostly. So is a batch
    with rows to be coarsened beside rows to be paid for: a payment buys the whole answer, and would buy theirs as well.
    """
    worst = max(actions, key=lambda action: action.severity)
    if not isinstance(worst, Challenge):
        return worst
    if any(isinstance(action, Coarsen) for action in actions):
        return TooCostly()
    work = sum(action.work for action in actions if isinstance(action, Challenge))
    return Challenge(worst.level, work) if largest_work is None or work <= largest_work else TooCostly()
