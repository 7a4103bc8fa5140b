"""The generator of data-free extraction (DFME, Truong et al., CVPR 2021; algorithms.md 3.3): latent vectors to images before the squashing.

Its output is what goes *into* tanh: forward differences are taken there, and the attack squashes afterwards.
"""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from sameguard.errors import ConfigurationError


class DFMEGenerator(nn.Module):
    """Latents (batch, latent) to pre-tanh images (batch, channels, side, side); the side is a multiple of 4, at least 8."""

    def __init__(self, latent: int, channels: int, side: int) -> None:
        super().__init__()
        check_side(side)
        self.first = nn.Linear(latent, 128 * (side // 4) ** 2)
        self.quarter = side // 4
        blocks: list[nn.Module] = [nn.BatchNorm2d(128)]
        for wide, narrow in pairwise((128, 128, 64)):
            blocks += [
                nn.Upsample(scale_factor=2), nn.Conv2d(wide, narrow, 3, padding=1), nn.BatchNorm2d(narrow), nn.LeakyReLU(0.2),
            ]  # fmt: skip
        self.blocks = nn.Sequential(*blocks, nn.Conv2d(64, channels, 3, padding=1), nn.BatchNorm2d(channels, affine=False))

    def forward(self, latents: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch channels height width"]:
        small = self.first(latents).reshape(len(latents), 128, self.quarter, self.quarter)
        return self.blocks(small)


def check_side(side: int) -> None:
    """Raises ConfigurationError where the generator cannot make images of that side."""
    if side < 8 or side % 4:
        raise ConfigurationError(f"generator images must have a side of at least 8 that is a multiple of 4, got {side}.")
