"""What happens to a suspicious query."""

from sameguard.policies.base import Action, Allow, Policy, Refuse
from sameguard.policies.reject import Reject

__all__ = ["Action", "Allow", "Policy", "Refuse", "Reject"]
