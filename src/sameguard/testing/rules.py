"""How a check says which rule was broken: an AssertionError with the rule, whatever the plug-in itself raised."""

from collections.abc import Iterator
from contextlib import contextmanager


class BrokenRuleError(AssertionError):
    """A plug-in breaks its contract; the message is the rule and what was found instead."""


def require(holds: bool, rule: str) -> None:
    """Raises BrokenRuleError with the rule where it does not hold."""
    if not holds:
        raise BrokenRuleError(rule)


@contextmanager
def required(rule: str, *passing: type[Exception]) -> Iterator[None]:
    """Within it, whatever the plug-in raises breaks this rule, its own AssertionError too; `passing` errors and broken rules go through."""
    try:
        yield
    except (BrokenRuleError, *passing):
        raise
    except Exception as error:  # whatever a plug-in raises
        raise BrokenRuleError(f"{rule}, got {type(error).__name__}: {error}") from error
