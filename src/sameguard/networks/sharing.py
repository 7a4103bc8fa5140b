"""Structure sharing between victim and auxiliary: the paper's memory saving, as we read it (algorithms.md 2.7).

The auxiliary uses the victim's own convolution and matrix weights, frozen, and has its own norm parameters, biases and head. Both
modules stay complete on their own; the shared tensors exist once in memory, and the victim's answers stay bit-identical.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from sameguard.errors import ConfigurationError


def share_trunk(victim: nn.Module) -> nn.Module:
    """An auxiliary model that shares the victim's trunk: every weight of two or more axes, but for the last linear layer's.

    Raises ConfigurationError where the victim has no trunk to share.
    """
    auxiliary = copy.deepcopy(victim).requires_grad_(True)
    linears = [name for name, module in victim.named_modules() if isinstance(module, nn.Linear)]
    head = linears[-1] if linears else None
    shared = 0
    for name, module in victim.named_modules():
        if name == head:
            continue
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim >= 2:
                setattr(auxiliary.get_submodule(name), parameter_name, parameter)
                shared += 1
    if not shared:
        raise ConfigurationError("structure sharing needs a victim with weights before its last linear layer, got none: use share='none'.")
    return auxiliary


def memory_bytes(*modules: nn.Module) -> int:
    """Bytes of all parameters and buffers of the modules together, each tensor counted once."""
    tensors: dict[int, Tensor] = {}
    for module in modules:
        for tensor in [*module.parameters(), *module.buffers()]:
            tensors[tensor.untyped_storage().data_ptr()] = tensor
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())


@contextmanager
def frozen(shared_with: nn.Module | None) -> Iterator[None]:
    """While the auxiliary trains, the victim's parameters take no gradient; afterwards each is as it was."""
    parameters = [] if shared_with is None else list(shared_with.parameters())
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, required in zip(parameters, before, strict=True):
            parameter.requires_grad_(required)
