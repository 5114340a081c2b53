"""The plain convolutional autoencoder of the literature: 16-8-8 channels, 28 → 14 → 7 → 4, a code of 8×4×4."""

from torch import Tensor, nn

from training.errors import TrainingError
from training.networks import encoded
from training.networks.encoded import Encoded

SIDE = 28


class Encoder(encoded.Encoder):
    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        height, width, channels = shape
        if (height, width) != (SIDE, SIDE):
            raise TrainingError(f"network conv-seed takes {SIDE}×{SIDE} images, not {height}×{width}: set [input] so")
        self.latent, self.maps = 8 * 4 * 4, [(16, 14, 14), (8, 7, 7), (8, 4, 4)]
        self.stages = nn.ModuleList([_stage(channels, 16), _stage(16, 8), _stage(8, 8)])

    def blocks(self) -> list[nn.Module]:
        return list(self.stages)

    def forward(self, image: Tensor) -> Encoded:
        maps = []
        for stage in self.stages:
            image = stage(image)
            maps.append(image)
        return Encoded(image.flatten(1), maps)


class Decoder(nn.Module):
    """The encoder mirrored; the last but one convolution is unpadded, 16 → 14, which brings 4×4 back to 28×28."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Unflatten(1, (8, 4, 4)),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),  # (N, 8, 8, 8)
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),  # (N, 8, 16, 16)
            nn.Conv2d(8, 16, 3),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),  # (N, 16, 28, 28)
            nn.Conv2d(16, shape[2], 3, padding=1),
        )

    def forward(self, code: Tensor) -> Tensor:
        return self.layers(code)  # type: ignore[no-any-return]


def _stage(given: int, made: int) -> nn.Module:
    """Pooling keeps the odd edge: 7 → 4."""
    return nn.Sequential(nn.Conv2d(given, made, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True))
