"""A victim from a torch module. The only victim wrapper that needs torch."""

import numpy as np
import torch
from torch import nn

from sameguard.contract import InputContract
from sameguard.errors import ConfigurationError
from sameguard.victim import BlackBox, Output


class TorchVictim(BlackBox):
    """A BlackBox around a torch module that maps (batch, *raw_shape) to (batch, classes); eval mode, no gradients, fp32.

    module: kept as `.module`, so that an owner may pass it on for structure sharing; scoring never touches it.
    """

    def __init__(
        self,
        module: nn.Module,
        contract: InputContract,
        *,
        classes: int,
        output: Output = "logits",
        batch_size: int = 256,
        name: str = "victim",
    ) -> None:
        if not isinstance(module, nn.Module):
            raise ConfigurationError(f"TorchVictim needs a torch.nn.Module, got {type(module).__name__}: use BlackBox for other callables.")
        self.module = module.eval()
        super().__init__(self._predict, contract, classes=classes, output=output, batch_size=batch_size, name=name)

    @torch.no_grad()
    def _predict(self, raw: np.ndarray) -> np.ndarray:
        self.module.eval()  # whoever trained on meanwhile must not change what the API answers
        parameter = next(self.module.parameters(), None)
        batch = torch.from_numpy(np.array(raw))
        return self.module(batch if parameter is None else batch.to(parameter.device)).cpu().numpy()
