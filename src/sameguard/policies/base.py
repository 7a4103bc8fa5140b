"""Policies turn scores into actions, and actions are data: whoever serves the query interprets them."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from sameguard.shapes import Scores


@dataclass(frozen=True)
class Allow:
    """The victim's answer is handed out."""

    severity: int = 0


@dataclass(frozen=True)
class Refuse:
    """No answer."""

    severity: int = 3


Action = Allow | Refuse


@runtime_checkable
class Policy(Protocol):
    """One action per row. A higher score never gets a milder action; NaN gets the strictest."""

    def decide_stage_a(self, stage_a_scores: Scores) -> list[Action]: ...

    def decide(self, scores: Scores) -> list[Action]: ...
