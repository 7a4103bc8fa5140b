"""The `strong` network: a small residual-free network for 32x32 colour images that trains to 94 % on CIFAR-10 in minutes.

The recipe follows what the public record runs for CIFAR-10 describe (speed.md section 2): a frozen 2x2 whitening convolution, three
blocks that start as partial identities, BatchNorm without scale whose biases learn 64 times faster, and a scaled linear head.
Its logits are flat on purpose (label smoothing in training).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sameguard.training import FitConfig

Images = Float[Tensor, "batch channels height width"]
BIAS_RATE = 64.0
WHITENING_EPSILON = 5e-4
HEAD_SCALE = 1.0 / 9.0


class FastCifar(nn.Module):
    """Logits (batch, classes) of images (batch, channels, side, side), side 24 to 40. `set_normalisation` fits the whitening first."""

    def __init__(self, classes: int = 10, *, channels: int = 3, widths: tuple[int, int, int] = (64, 256, 256)) -> None:
        super().__init__()
        patch_values = 4 * channels
        self.register_buffer("shift", torch.zeros(channels, 1, 1))
        self.register_buffer("scale", torch.ones(channels, 1, 1))
        self.whiten = nn.Conv2d(channels, 2 * patch_values, 2)
        sizes = (2 * patch_values, *widths)
        self.blocks = nn.Sequential(nn.GELU(), *[_Block(sizes[index], sizes[index + 1]) for index in range(3)], nn.AdaptiveMaxPool2d(1))
        self.head = nn.Linear(widths[-1], classes, bias=False)
        self.reset()

    def reset(self) -> None:
        """The start that the recipe asks for, after the layers' own initialisation."""
        nn.init.zeros_(self.whiten.bias)
        for block in self.blocks:
            if isinstance(block, _Block):
                for convolution in (block.first, block.second):  # the first filters pass their input through
                    nn.init.dirac_(convolution.weight[: convolution.weight.shape[1]])
                for norm in (block.first_norm, block.second_norm):
                    norm.weight.requires_grad = False
        self.whiten.weight.requires_grad = False

    def set_normalisation(self, inputs: Images) -> None:
        """Fits channel statistics and the whitening filters (eigenvectors of 2x2 patches and their negatives) to training images."""
        std, mean = torch.std_mean(inputs.double(), dim=(0, 2, 3), correction=0)
        self.shift.copy_(mean.reshape(-1, 1, 1))
        self.scale.copy_(std.clamp_min(1e-3).reshape(-1, 1, 1))
        images = ((inputs - self.shift.cpu()) / self.scale.cpu()).double()
        patches = nn.functional.unfold(images, 2).transpose(1, 2).reshape(-1, 4 * inputs.shape[1])  # patches, C * 2 * 2
        covariance = patches.T @ patches / len(patches)
        values, vectors = torch.linalg.eigh(covariance)
        filters = (vectors / (values + WHITENING_EPSILON).sqrt()).T.flip(0).reshape(-1, inputs.shape[1], 2, 2)
        self.whiten.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, images: Images) -> Float[Tensor, "batch classes"]:
        features = self.blocks(self.whiten((images - self.shift) / self.scale)).flatten(1)
        return self.head(features) * HEAD_SCALE

    def parameter_groups(self, config: FitConfig) -> list[dict[str, Any]]:
        """Biases of BatchNorm learn 64 times faster, with the same decay per step as the rest."""
        norms = [module.bias for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
        chosen = {id(bias) for bias in norms}
        others = [parameter for parameter in self.parameters() if parameter.requires_grad and id(parameter) not in chosen]
        return [
            {"params": norms, "lr_scale": BIAS_RATE, "weight_decay": config.weight_decay / BIAS_RATE},
            {"params": others, "weight_decay": config.weight_decay},
        ]


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.first_norm, self.second_norm = (nn.BatchNorm2d(outputs, eps=1e-12, momentum=0.4) for _ in range(2))

    def forward(self, features: Images) -> Float[Tensor, "batch outputs rows columns"]:
        gelu, pool = nn.functional.gelu, nn.functional.max_pool2d
        features = gelu(self.first_norm(pool(self.first(features), 2)))
        return gelu(self.second_norm(self.second(features)))
