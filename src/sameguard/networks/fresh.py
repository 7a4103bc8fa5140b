"""A network of a known architecture with fresh weights, from one that is there: a thief's substitute has the victim's structure, not its knowledge."""

import copy

import torch
from torch import nn

from sameguard.errors import ConfigurationError


def fresh_copy(network: nn.Module) -> nn.Module:
    """The same architecture on the CPU, all weights drawn anew from torch's (seeded) generator and free to learn; the original is untouched.

    Raises ConfigurationError where it cannot be copied, or a matrix of it stays as it was: nothing knows how to draw it anew.
    """
    name = type(network).__name__
    if isinstance(network, torch.jit.ScriptModule):
        raise ConfigurationError(f"network {name} must be built anew, got a scripted one, which cannot be: name an architecture instead.")
    try:
        made = copy.deepcopy(network).cpu()
    except Exception as error:  # whatever the user's own module raises
        raise ConfigurationError(
            f"network {name} must be one that can be copied, got {type(error).__name__}: {error}: name an architecture instead."
        ) from error
    before = {key: value.detach().clone() for key, value in made.named_parameters() if value.ndim >= 2}
    for module in made.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    made.requires_grad_(True)  # a victim in service is often frozen
    if hasattr(made, "reset"):
        made.reset()
    kept = [key for key, value in made.named_parameters() if key in before and torch.equal(value, before[key])]
    if kept:
        raise ConfigurationError(
            f"network {name} must start from fresh weights, got {', '.join(kept)} that no reset_parameters() draws anew: give it a method "
            "reset(), or name an architecture instead."
        )
    return made
