"""Conv3, the paper's MNIST victim: three unpadded 3x3 convolutions, no BatchNorm, no dropout (algorithms.md 2.7)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Conv3(nn.Module):
    """Logits (batch, classes) of images (batch, channels, side, side) in [0, 1]; 28 pixels by default, at least 16."""

    def __init__(self, classes: int = 10, *, channels: int = 1, side: int = 28) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3), nn.ReLU(),
            nn.Conv2d(64, 128, 3), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        left = ((side - 2) // 2 - 4) // 2  # pixels on a side after the second pooling: 4 at 28
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(128 * left * left, 512), nn.ReLU(), nn.Linear(512, classes))

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.head(self.features(images))


class SmallConv(nn.Module):
    """Logits of very small images (8x8 digits): two padded 3x3 convolutions, one pooling, a hidden layer."""

    def __init__(self, classes: int = 10, *, channels: int = 1, side: int = 8, width: int = 32) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(2 * width * (side // 2) ** 2, 128), nn.ReLU(), nn.Linear(128, classes))

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.head(self.features(images))


class MLP(nn.Module):
    """Logits of vectors (batch, features): two hidden layers after a LayerNorm-free standardisation set by `set_normalisation`."""

    def __init__(self, features: int, classes: int, *, width: int = 256) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.layers = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes))

    def set_normalisation(self, inputs: Float[Tensor, "batch features"]) -> None:
        """Standardises features by training inputs, so that their units do not matter."""
        std, mean = torch.std_mean(inputs.double(), dim=0, correction=0)
        self.shift.copy_(mean)
        self.scale.copy_(std.clamp_min(1e-6))

    def forward(self, inputs: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        return self.layers((inputs - self.shift) / self.scale)
