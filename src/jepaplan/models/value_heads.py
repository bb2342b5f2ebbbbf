"""Small heads on frozen or growing latents: a quasimetric on a projection, and the inverse dynamics.

`QuasimetricHead`: projector, then IQE, as in Wang et al., "Optimal Goal-Reaching Reinforcement Learning via
Quasimetric Learning", arXiv:2304.01203. `InverseDynamics`: the action that led from one latent to the next,
PLDM (arXiv:2502.14819).
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepaplan.models.quasimetric import IQE
from jepaplan.types import InputError


@dataclass(frozen=True, kw_only=True)
class QuasimetricHeadConfig:
    """Shape of a `QuasimetricHead`."""

    hidden: int = 512  # width of the projector's hidden layers
    layers: int = 1  # hidden layers of the projector
    width: int = 512  # what IQE sees: components x intervals
    components: int = 32
    norm: bool = True  # LayerNorm before each hidden activation

    def __post_init__(self) -> None:
        if min(self.hidden, self.width, self.components) < 1 or self.layers < 0:
            raise InputError(
                "a quasimetric head needs positive hidden, width and components, and layers >= 0; got "
                f"hidden={self.hidden}, "
                f"width={self.width}, components={self.components}, layers={self.layers}"
            )


class QuasimetricHead(nn.Module):
    """Steps to go between raw latents; a quasimetric of any function of points is a quasimetric."""

    def __init__(self, latent_width: int, config: QuasimetricHeadConfig | None = None) -> None:
        super().__init__()
        config = config or QuasimetricHeadConfig()
        widths = (latent_width, *(config.hidden for _ in range(config.layers)))
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), *([nn.LayerNorm(after)] if config.norm else []), nn.ReLU()]
        self.projector = nn.Sequential(*layers, nn.Linear(widths[-1], config.width))
        self.distance = IQE(width=config.width, components=config.components)
        # Stretches all distances: from the unit scale of latents to tens of steps in few updates.
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(
        self, source: Float[Tensor, "*#batch D"], goal: Float[Tensor, "*#batch D"]
    ) -> Float[Tensor, "*batch"]:
        """Distances of broadcastable batches; each side is projected before it is broadcast."""
        return self.between(self.project(source), self.project(goal))

    def pairwise(
        self, sources: Float[Tensor, "B M D"], goals: Float[Tensor, "B N D"]
    ) -> Float[Tensor, "B M N"]:
        """Distances from every source to every goal of the same problem."""
        return self.log_scale.exp() * self.distance.pairwise(self.project(sources), self.project(goals))

    def project(self, latents: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch W"]:
        """What the quasimetric compares."""
        return self.projector(latents)

    def between(
        self, source: Float[Tensor, "*#batch W"], goal: Float[Tensor, "*#batch W"]
    ) -> Float[Tensor, "*batch"]:
        """Distances of projected latents."""
        return self.log_scale.exp() * self.distance(source, goal)


class InverseDynamics(nn.Module):
    """The normalised action between two successive latents."""

    def __init__(self, latent_width: int, action_dim: int, hidden: int = 512) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * latent_width, hidden), nn.ReLU(), nn.Linear(hidden, action_dim)
        )

    def forward(
        self, latent: Float[Tensor, "*batch D"], next_latent: Float[Tensor, "*batch D"]
    ) -> Float[Tensor, "*batch A"]:
        """Predicted actions."""
        return self.layers(torch.cat([latent, next_latent], dim=-1))
