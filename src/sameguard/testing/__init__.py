"""Contracts shipped for plug-ins: one check for each kind of part. Tests import them, nothing else does.

Each is loaded when first used: an attack is tried with torch, while policies, replay stores and detectors are checked without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sameguard.testing.attacks import check_attack
    from sameguard.testing.detectors import check_detector
    from sameguard.testing.policies import check_policy
    from sameguard.testing.replay_stores import check_replay_store

_MODULES = {"check_attack": "attacks", "check_detector": "detectors", "check_policy": "policies", "check_replay_store": "replay_stores"}

__all__ = ["check_attack", "check_detector", "check_policy", "check_replay_store"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'sameguard.testing' has no attribute {name!r}")
    try:
        return getattr(import_module(f"sameguard.testing.{_MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"sameguard.testing.{name} needs {error.name}, which is not installed: pip install 'sameguard[train]'."
        ) from error
