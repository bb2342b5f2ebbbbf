"""A predictor that looks around where the thing is, on the map of its latent, and nowhere else.

    latent = [map | point | felt], of `models/scene_map.py`
    m      window x window places of the map around the point, `spacing` pixels apart, read bilinearly
    next   [map | point + change | felt + change],  change = network(m, felt, action)

The network never hears where the point is, so what it learns of a wall here it knows of walls everywhere.
Beyond the picture the map goes on as at its border.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jepaplan.models.affine import Affine
from jepaplan.models.scene_map import CELL, POINT_SCALE, SceneMapConfig
from jepaplan.types import InputError


@dataclass(frozen=True, kw_only=True)
class LocalPredictorConfig:
    """Shape of a `LocalPredictor`."""

    hidden: int = 256  # width of each hidden layer
    layers: int = 2  # hidden layers
    window: int = 7  # places per side of what is seen of the map, odd
    spacing: float = 2.0  # pixels between them; the window should span a largest step

    def __post_init__(self) -> None:
        if min(self.hidden, self.layers) < 1 or self.window < 1 or self.window % 2 == 0 or self.spacing <= 0:
            raise InputError(
                "a local predictor needs hidden >= 1, layers >= 1, an odd window and a positive spacing; got "
                f"hidden={self.hidden}, layers={self.layers}, window={self.window}, spacing={self.spacing}"
            )


class LocalPredictor(nn.Module):
    """The next latent from this one and an action in normalised units."""

    offsets: Tensor

    def __init__(
        self, scene: SceneMapConfig, action_dim: int, config: LocalPredictorConfig | None = None
    ) -> None:
        super().__init__()
        self.scene, self.action_dim = scene, action_dim
        self.config = config = config or LocalPredictorConfig()
        # Where a point lies on the map: the softmax over coarse cells draws points towards the middle.
        self.place = nn.Linear(2, 2)
        with torch.no_grad():
            self.place.weight.copy_(torch.eye(2) / POINT_SCALE)
            self.place.bias.zero_()
        steps = (torch.arange(config.window) - config.window // 2) * config.spacing / self._pixels
        offsets = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1)
        self.register_buffer("offsets", offsets.view(1, 1, -1, 2), persistent=False)
        seen = scene.map_channels * config.window**2 + scene.proprioception_dim + action_dim
        widths = (seen, *(config.hidden for _ in range(config.layers)))
        hidden: list[nn.Module] = []
        for before, after in pairwise(widths):
            hidden += [Affine(before, after), nn.ReLU(inplace=True)]
        self.hidden = nn.Sequential(*hidden)
        # Begins by standing still, which is nearly right and leaves its units alive.
        self.last = Affine(widths[-1], 2 + scene.proprioception_dim)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    @property
    def moves_from(self) -> int:
        """The first number of the latent that an action may change."""
        return self.scene.map_width

    @property
    def _pixels(self) -> float:
        """Pixels from the middle of the picture to the middle of an outermost cell."""
        return CELL * (self.scene.side - 1) / 2

    def forward(self, latent: Float[Tensor, "B D"], action: Float[Tensor, "B A"]) -> Float[Tensor, "B D"]:
        """The latent one model step later."""
        still, moving = latent[:, : self.moves_from], latent[:, self.moves_from :]
        seen = self._around(still, moving[:, :2])
        change = self.last(self.hidden(torch.cat([seen, moving[:, 2:], action.to(latent.dtype)], dim=1)))
        return torch.cat([still, moving + change], dim=1)

    def places(self, latents: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch 2"]:
        """Where on the picture, in pixels (x = column, y = row), the predictor takes the thing to be."""
        point = latents[..., self.moves_from : self.moves_from + 2]
        return self.place(point) * self._pixels + (self.scene.image_size - 1) / 2

    def _around(self, still: Float[Tensor, "B M"], point: Float[Tensor, "B 2"]) -> Float[Tensor, "B seen"]:
        maps = still.view(-1, self.scene.map_channels, self.scene.side, self.scene.side)
        where = self.place(point).view(-1, 1, 1, 2) + self.offsets.to(point.dtype)
        return F.grid_sample(maps, where, padding_mode="border", align_corners=True).flatten(1)
