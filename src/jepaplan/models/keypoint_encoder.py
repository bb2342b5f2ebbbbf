"""A small encoder for CPUs that reads what moves as points and what stays as a picture.

The feature points are those of Finn et al., "Deep Spatial Autoencoders for Visuomotor Learning",
arXiv:1509.06113, section V. The split of the latent is ours (docs/decisions/0006-scene-and-state.md):

    latent = [scene | state]
    scene    reads the flattened map and the points: what one recording keeps and others don't (walls, doors)
    state    reads the points only: where things are, to a fraction of a pixel

A state that could read the flattened map spends its variance on the scene, because the scene is the easier
way to be spread out; measured in docs/lab_notes.md.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepaplan.models.affine import Affine
from jepaplan.models.encoders import expectation_and_level, sharpened
from jepaplan.types import InputError

_POINT_SCALE = 2.0  # coordinates in [-1, 1] have a standard deviation near one half
_LEVEL_SCALE = 0.1  # log of the summed activations, brought near unit scale


@dataclass(frozen=True, kw_only=True)
class KeypointConfig:
    """Shape of a `KeypointEncoder`."""

    image_channels: int = 2
    image_size: int = 64  # pixels per side, square, a multiple of 4
    scene_width: int = 16  # numbers of the latent that describe the scene
    state_width: int = 48  # numbers of the latent that describe the state
    channels: int = 32  # of both convolutions
    keypoints: int = 32  # maps of which the expected coordinates are read
    scene_channels: int = 8  # of the flattened map
    hidden: int = 256  # width of each readout's hidden layer
    sharpness: float = 10.0  # at the start; multiplies the maps before the softmax, and is learned

    def __post_init__(self) -> None:
        numbers = (self.image_channels, self.channels, self.keypoints, self.scene_channels, self.hidden)
        if min(*numbers, self.state_width) < 1 or self.scene_width < 0 or self.sharpness <= 0:
            raise InputError(
                "a keypoint encoder needs positive channels, keypoints, hidden, state_width and sharpness, "
                f"and scene_width >= 0; got {self}"
            )
        if self.image_size < 8 or self.image_size % 4:
            raise InputError(
                "a keypoint encoder takes images whose side is a multiple of 4, at least 8; "
                f"got {self.image_size}"
            )


class KeypointEncoder(nn.Module):
    """One strided and one plain convolution, points of each map, and a readout each for scene and state."""

    def __init__(self, config: KeypointConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or KeypointConfig()
        self.body = nn.Sequential(
            # Patches overlap by half: one large convolution is faster on a CPU than two small strided ones.
            nn.Conv2d(config.image_channels, config.channels, 8, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(config.channels, config.channels, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.maps = nn.Conv2d(config.channels, config.keypoints, 1)
        self.log_sharpness = nn.Parameter(torch.tensor(config.sharpness).log())
        points = 3 * config.keypoints
        self.state = _readout(points, config.hidden, config.state_width)
        if config.scene_width:
            side = config.image_size // 4
            self.flat = nn.Sequential(
                nn.Conv2d(config.channels, config.scene_channels, 1), nn.ReLU(inplace=True)
            )
            self.scene = _readout(points + config.scene_channels * side**2, config.hidden, config.scene_width)

    @property
    def latent_width(self) -> int:
        """Width D of the latents."""
        return self.config.scene_width + self.config.state_width

    def forward(
        self,
        pixels: Float[Tensor, "B C height width"],
        proprioception: Float[Tensor, "B P"] | None = None,
    ) -> Float[Tensor, "B D"]:
        """Latents of normalised images."""
        if proprioception is not None:
            raise InputError(
                "the keypoint encoder takes images only; for proprioception use the compact or the IMPALA "
                "encoder with proprioception_dim set"
            )
        features = self.body(pixels)
        # Where a map's shape is nowhere to be seen its point is meaningless; the level tells.
        found, levels = expectation_and_level(sharpened(self.maps, features, self.log_sharpness.exp()))
        points = torch.cat([found.flatten(1) * _POINT_SCALE, levels * _LEVEL_SCALE], dim=1)
        if not self.config.scene_width:
            return self.state(points)
        scene = self.scene(torch.cat([points, self.flat(features).flatten(1)], dim=1))
        return torch.cat([scene, self.state(points)], dim=1)


def _readout(features: int, hidden: int, width: int) -> nn.Module:
    return nn.Sequential(Affine(features, hidden), nn.ReLU(inplace=True), Affine(hidden, width))
