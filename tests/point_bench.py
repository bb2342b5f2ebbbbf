"""A workshop whose latents are points in the plane, for stages that learn from encoded recordings."""

from dataclasses import dataclass, field

import torch
from torch import nn

from jepaplan.data.episodes import Episodes
from jepaplan.data.normalise import ActionNormaliser
from jepaplan.types import SeedTree


class Drift(nn.Module):
    """The next latent is this one plus the action, times `gain`."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.action_units = ActionNormaliser.identity(2)

    def unroll(self, latent, actions):
        return torch.cat([latent[:, None], self.gain * actions], dim=1).cumsum(1)


@dataclass
class Bench:
    """What `recipes.stages.Workshop` is, with points for latents."""

    system: nn.Module
    episodes: Episodes
    points: torch.Tensor
    trained_episodes: int
    seeds: SeedTree = field(default_factory=lambda: SeedTree(0))

    def latents(self):
        return self.points
