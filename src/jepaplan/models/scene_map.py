"""An encoder for pictures in which one thing moves: a map of what stays, and where the thing is.

The point is the feature point of Finn et al., "Deep Spatial Autoencoders for Visuomotor Learning",
arXiv:1509.06113, section V, averaged over some maps and corrected by a linear layer. Keeping the rest as a
map is ours (docs/decisions/0017-local-world-model.md):

    latent = [map | point | felt]
    map      `map_channels` numbers for each 4 x 4 pixels, each read from a neighbourhood of 16 pixels
    point    x and y of what moves; about 15 pixels are 1 (`LocalPredictor.places` has pixels)
    felt     proprioception, normalised, as it comes

A flat scene has to be learned layout by layout; a map is made of neighbourhoods, and those of a layout never
seen are those that were seen. Where the thing is in the picture is learned from what changes
(`objectives/moving_point.py`).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepaplan.models.affine import Affine
from jepaplan.models.encoders import expectation_and_level, sharpened
from jepaplan.types import InputError

CELL = 4  # pixels per side of a cell of the map
POINT_SCALE = 2.0  # coordinates in [-1, 1] have a standard deviation near one half
_LEVEL_SCALE = 0.1  # log of the summed activations, brought near unit scale
_MAP_SCALE = 10.0  # untrained maps vary by a twentieth


@dataclass(frozen=True, kw_only=True)
class SceneMapConfig:
    """Shape of a `SceneMapEncoder`."""

    image_channels: int = 2
    image_size: int = 64  # pixels per side, square, a multiple of 4
    proprioception_dim: int = 0  # numbers appended to the latent
    map_channels: int = 4  # numbers of the map for each cell
    channels: int = 32  # of both convolutions
    keypoints: int = 16  # maps of which the expected coordinates are read
    sharpness: float = 10.0  # at the start; multiplies the maps before the softmax, and is learned

    def __post_init__(self) -> None:
        counts = (self.image_channels, self.map_channels, self.channels, self.keypoints)
        if min(counts) < 1 or self.proprioception_dim < 0 or self.sharpness <= 0:
            raise InputError(
                "a scene map encoder needs positive channels, map_channels, keypoints and sharpness, and "
                f"proprioception_dim >= 0; got {self}"
            )
        if self.image_size < 2 * CELL or self.image_size % CELL:
            raise InputError(
                f"a scene map encoder takes images whose side is a multiple of {CELL}, at least {2 * CELL}; "
                f"got {self.image_size}"
            )

    @property
    def side(self) -> int:
        """Cells per side of the map."""
        return self.image_size // CELL

    @property
    def map_width(self) -> int:
        """Numbers of the map: those of the latent that no action changes."""
        return self.map_channels * self.side**2

    @property
    def latent_width(self) -> int:
        """Width D of the latents."""
        return self.map_width + 2 + self.proprioception_dim


class SceneMapEncoder(nn.Module):
    """One strided and one plain convolution; of their features a map, and the point of what moves."""

    def __init__(self, config: SceneMapConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SceneMapConfig()
        self.body = nn.Sequential(
            nn.Conv2d(config.image_channels, config.channels, 2 * CELL, stride=CELL, padding=CELL // 2),
            nn.ReLU(inplace=True),
            nn.Conv2d(config.channels, config.channels, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.attention = nn.Conv2d(config.channels, config.keypoints, 1)
        self.log_sharpness = nn.Parameter(torch.tensor(config.sharpness).log())
        self.map = nn.Conv2d(config.channels, config.map_channels, 1)
        # Begins as the mean of the keypoints, then corrects what a softmax over coarse cells bends.
        self.correction = Affine(3 * config.keypoints, 2)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    @property
    def latent_width(self) -> int:
        """Width D of the latents."""
        return self.config.latent_width

    def forward(
        self,
        pixels: Float[Tensor, "B C height width"],
        proprioception: Float[Tensor, "B P"] | None = None,
    ) -> Float[Tensor, "B D"]:
        """Latents of normalised images."""
        return self.attend(pixels, proprioception)[0]

    def attend(
        self,
        pixels: Float[Tensor, "B C height width"],
        proprioception: Float[Tensor, "B P"] | None = None,
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B K cells"]]:
        """Latents, and the logarithms (up to a constant) of where each keypoint looks, row by row."""
        given = 0 if proprioception is None else proprioception.shape[-1]
        if given != self.config.proprioception_dim:
            raise InputError(
                f"got {given} proprioceptive numbers per frame; this encoder was built with "
                f"proprioception_dim={self.config.proprioception_dim}"
            )
        features = self.body(pixels)
        looks = sharpened(self.attention, features, self.log_sharpness.exp())
        found, levels = expectation_and_level(looks)
        corrected = self.correction(torch.cat([found.flatten(1), levels * _LEVEL_SCALE], dim=1))
        parts = [self.map(features).flatten(1) * _MAP_SCALE, (found.mean(1) + corrected) * POINT_SCALE]
        if proprioception is not None:
            parts.append(proprioception.to(parts[0].dtype))
        return torch.cat(parts, dim=1), looks.flatten(2)
