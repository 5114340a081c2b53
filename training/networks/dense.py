"""The plain dense autoencoder of the literature: 784-512-32-512-784 where images are 28×28 and grey."""

import math

from torch import Tensor, nn

from training.networks import encoded
from training.networks.encoded import Encoded


class Encoder(encoded.Encoder):
    def __init__(
        self, shape: tuple[int, int, int], hidden: int, latent: int, variational: bool, activation: str = "linear"
    ) -> None:
        super().__init__()
        self.latent, self.maps = latent, [(hidden,)]
        self.activation = encoded.ACTIVATIONS[activation]
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), hidden), nn.ReLU())
        self.code = nn.Linear(hidden, latent)
        self.log_variance = nn.Linear(hidden, latent) if variational else None

    def blocks(self) -> list[nn.Module]:
        return [self.hidden, *(part for part in (self.code, self.log_variance) if part is not None)]

    def forward(self, image: Tensor) -> Encoded:
        hidden = self.hidden(image)
        spread = None if self.log_variance is None else self.log_variance(hidden)
        return Encoded(self.activation(self.code(hidden)), [hidden], spread)


class Decoder(nn.Module):
    def __init__(self, shape: tuple[int, int, int], hidden: int, latent: int) -> None:
        super().__init__()
        height, width, channels = shape
        self.layers = nn.Sequential(
            nn.Linear(latent, hidden),
            nn.ReLU(),
            nn.Linear(hidden, math.prod(shape)),
            nn.Unflatten(1, (channels, height, width)),
        )

    def forward(self, code: Tensor) -> Tensor:
        return self.layers(code)  # type: ignore[no-any-return]
