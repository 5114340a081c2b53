"""ResNet-18 and -50 (He et al. 2015) with torchvision's state-dict names, so that its weight files load."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.networks import encoded

# What torchvision's weights were trained on.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}


class Basic(nn.Module):
    expansion = 1

    def __init__(self, given: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(given, planes, 3, stride, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False), nn.BatchNorm2d(planes)
        self.downsample = _shortcut(given, planes * self.expansion, stride)

    def forward(self, image: Tensor) -> Tensor:
        changed = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(image)))))
        return F.relu(changed + (image if self.downsample is None else self.downsample(image)))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, given: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(given, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, planes * 4, 1, bias=False), nn.BatchNorm2d(planes * 4)
        self.downsample = _shortcut(given, planes * self.expansion, stride)

    def forward(self, image: Tensor) -> Tensor:
        changed = F.relu(self.bn1(self.conv1(image)))
        changed = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(changed)))))
        return F.relu(changed + (image if self.downsample is None else self.downsample(image)))


def _shortcut(given: int, made: int, stride: int) -> nn.Module | None:
    if given == made and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(given, made, 1, stride, bias=False), nn.BatchNorm2d(made))


class Encoder(encoded.Backbone):
    """The stage maps are those of layer1 to layer4."""

    mean: Tensor
    std: Tensor

    def __init__(self, kind: str, shape: tuple[int, int, int]) -> None:
        super().__init__()
        block: type[Basic] | type[Bottleneck] = Basic if kind == "resnet18" else Bottleneck
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        given, self.maps = 64, list[tuple[int, ...]]()
        high, wide = (math.ceil(math.ceil(side / 2) / 2) for side in shape[:2])
        for index, depth in enumerate(DEPTHS[kind]):
            planes, stride = 64 * 2**index, 1 if index == 0 else 2
            blocks = [
                block(given if i == 0 else planes * block.expansion, planes, stride if i == 0 else 1)
                for i in range(depth)
            ]
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
            given = planes * block.expansion
            high, wide = (math.ceil(side / stride) for side in (high, wide))
            self.maps.append((given, high, wide))
        self.latent = given
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def cut(self, count: int) -> None:
        for number in range(count, len(self.maps)):
            delattr(self, f"layer{number + 1}")
        super().cut(count)

    def blocks(self) -> list[nn.Module]:
        layers = (self.get_submodule(f"layer{number + 1}") for number in range(len(self.maps)))
        return [nn.ModuleList([self.conv1, self.bn1]), *layers]

    def prepared(self, image: Tensor) -> Tensor:
        return (image.expand(-1, 3, -1, -1) - self.mean) / self.std  # grey becomes the same thrice

    def step(self, number: int, image: Tensor) -> Tensor:
        if number == 0:
            return self.maxpool(F.relu(self.bn1(self.conv1(image))))  # type: ignore[no-any-return]
        return self.get_submodule(f"layer{number}")(image)  # type: ignore[no-any-return]
