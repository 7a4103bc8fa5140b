"""The contract of a policy, tried on yours: `check_policy(policy, scores)`.

Shipped for plug-ins: it raises AssertionError with the rule that was broken. Left out: whether the cut-offs are well chosen.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sameguard.policies.base import Action, Allow, Policy

EXTREMES = (-1e300, -1e6, -1.0, -1e-9, 0.0, 1e-9, 1.0, 1e6, 1e300)


def check_policy(policy: Any, scores: np.ndarray) -> None:
    """Raises AssertionError where `decide` or `decide_stage_a` breaks the contract of `policies.Policy`.

    One action for each row, with a severity; a higher score never gets a milder action; NaN gets the strictest of all and is never allowed;
    a row's action does not depend on the others, nor on how often it is asked; scores are left as they were. scores: some of those that the
    policy will meet, (n,), so that its cut-offs lie among them.
    """
    if not isinstance(policy, Policy):
        raise AssertionError(f"a policy must have decide and decide_stage_a, got {type(policy).__name__} without them.")
    finite = np.sort(np.concatenate([np.asarray(scores, np.float64), EXTREMES]))
    ladder = np.concatenate([[-np.inf], finite, [np.inf]])
    for name in ("decide", "decide_stage_a"):
        _check_stage(name, getattr(policy, name), ladder)


def _check_stage(name: str, decide: Callable[[np.ndarray], Sequence[Action]], ladder: np.ndarray) -> None:
    asked = ladder.copy()
    actions = list(decide(asked))
    _require(np.array_equal(asked, ladder), f"{name} must not change the scores, got changed ones: work on a copy.")
    _require(len(actions) == len(ladder), f"{name} must give one action for each of {len(ladder)} rows, got {len(actions)}.")
    _require(all(hasattr(action, "severity") for action in actions), f"each action of {name} must have a severity, got one without.")
    for before, after, low, high in zip(actions, actions[1:], ladder, ladder[1:], strict=False):
        _require(
            before.severity <= after.severity,
            f"a higher score must never get a milder action, got {before} at {low:g} and {after} at {high:g} from {name}.",
        )
    (nan_action,) = decide(np.array([np.nan]))
    _require(
        nan_action.severity >= max(action.severity for action in actions) and not isinstance(nan_action, Allow),
        f"NaN must get the strictest action and never be allowed, got {nan_action} from {name}, which has {actions[-1]} at infinity.",
    )
    order = np.random.default_rng(0).permutation(len(ladder))
    _require(
        list(decide(ladder[order])) == [actions[row] for row in order], f"reordered rows must get their own actions again from {name}."
    )
    alone = [next(iter(decide(ladder[row : row + 1]))) for row in range(len(ladder))]
    _require(alone == actions, f"a row must get the same action from {name} alone as in a batch.")
    beside_nan = list(decide(np.append(ladder, np.nan)))
    _require(beside_nan == [*actions, nan_action], f"a NaN beside it must not change a row's action from {name}.")
    _require(len(list(decide(np.empty(0)))) == 0, f"an empty batch must get no actions from {name}.")


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise AssertionError(rule)
