"""ResNet-18. With the ImageNet stem (7x7, stride 2, pooling) it is the paper's CIFAR-10 victim of about 83 %; with a 3x3 stem, a good one."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

Images = Float[Tensor, "batch channels height width"]


class ResNet18(nn.Module):
    """Logits (batch, classes) of images (batch, channels, height, width)."""

    def __init__(self, classes: int = 10, *, channels: int = 3, stem: Literal["imagenet", "cifar"] = "imagenet") -> None:
        super().__init__()
        if stem == "imagenet":
            self.stem = nn.Sequential(nn.Conv2d(channels, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        else:
            self.stem = nn.Sequential(nn.Conv2d(channels, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        stages = []
        for inputs, outputs, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
            stages += [_BasicBlock(inputs, outputs, stride), _BasicBlock(outputs, outputs, 1)]
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(512, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Images) -> Float[Tensor, "batch classes"]:
        return self.head(self.stages(self.stem(images)).mean(dim=(2, 3)))


class _BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.second, self.second_norm = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, features: Images) -> Float[Tensor, "batch outputs rows columns"]:
        relu = nn.functional.relu
        inner = self.second_norm(self.second(relu(self.first_norm(self.first(features)))))
        return relu(inner + self.shortcut(features))
