"""The contract of a policy, tried on yours: `check_policy(policy, scores)`.

Shipped for plug-ins: it raises AssertionError with the rule that was broken. Left out: whether the cut-offs are well chosen.
"""

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import numpy as np

from sameguard.policies.base import Action, Allow, Policy
from sameguard.testing.rules import require, required

EXTREMES = (-1e300, -1e6, -1.0, -1e-9, 0.0, 1e-9, 1.0, 1e6, 1e300)


def check_policy(policy: Any, scores: np.ndarray) -> None:
    """Raises AssertionError where `decide` or `decide_stage_a` breaks the contract of `policies.Policy`.

    One action for each row, with a severity; a higher score never gets a milder action; NaN gets the strictest of all and is never allowed;
    a row's action does not depend on the others, nor on how often it is asked; scores are left as they were. scores: some of those that the
    policy will meet, (n,), so that its cut-offs lie among them.
    """
    require(isinstance(policy, Policy), f"a policy must have decide and decide_stage_a, got {type(policy).__name__} without them.")
    finite = np.sort(np.concatenate([np.asarray(scores, np.float64), EXTREMES]))
    ladder = np.concatenate([[-np.inf], finite, [np.inf]])
    for name in ("decide", "decide_stage_a"):
        _check_stage(name, _deciding(name, getattr(policy, name)), ladder)


def _deciding(name: str, decide: Callable[[np.ndarray], Sequence[Action]]) -> Callable[[np.ndarray], list[Any]]:
    """The same, as a list, on scores that it has to take: any, NaN and infinity too, and none."""

    def asked(scores: np.ndarray) -> list[Any]:
        with required(f"{name} must give an action for any score, NaN, infinity and an empty batch included"):
            return list(decide(scores))

    return asked


def _check_stage(name: str, decide: Callable[[np.ndarray], list[Any]], ladder: np.ndarray) -> None:
    asked = ladder.copy()
    actions = decide(asked)
    require(np.array_equal(asked, ladder), f"{name} must not change the scores, got changed ones: work on a copy.")
    require(len(actions) == len(ladder), f"{name} must give one action for each of {len(ladder)} rows, got {len(actions)}.")
    nan_actions = decide(np.array([np.nan]))
    require(len(nan_actions) == 1, f"{name} must give one action for one row, got {len(nan_actions)}.")
    (nan_action,) = nan_actions
    with required(f"each action of {name} must have a severity, a number"):
        severities = [getattr(action, "severity", None) for action in (*actions, nan_action)]
    require(all(isinstance(one, Real) for one in severities), f"each action of {name} must have a severity, a number, got one without.")
    for before, after, low, high in zip(actions, actions[1:], ladder, ladder[1:], strict=False):
        require(
            before.severity <= after.severity,
            f"a higher score must never get a milder action, got {before} at {low:g} and {after} at {high:g} from {name}.",
        )
    require(
        nan_action.severity >= max(action.severity for action in actions) and not isinstance(nan_action, Allow),
        f"NaN must get the strictest action and never be allowed, got {nan_action} from {name}, which has {actions[-1]} at infinity.",
    )
    order = np.random.default_rng(0).permutation(len(ladder))
    require(decide(ladder[order]) == [actions[row] for row in order], f"reordered rows must get their own actions again from {name}.")
    alone = [decide(ladder[row : row + 1]) for row in range(len(ladder))]
    require(alone == [[action] for action in actions], f"a row must get the same action from {name} alone as in a batch.")
    beside_nan = decide(np.append(ladder, np.nan))
    require(beside_nan == [*actions, nan_action], f"a NaN beside it must not change a row's action from {name}.")
    require(decide(np.empty(0)) == [], f"an empty batch must get no actions from {name}.")
