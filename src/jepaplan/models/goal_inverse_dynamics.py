"""Which action a recording took at a latent, given the latent that it reached some steps later.

Maximum likelihood on goals in hindsight, as in Ghosh et al., "Learning to Reach Goals via Iterated Supervised
Learning", arXiv:1912.06088, without their iterations: the recording stays what it is.

    paper                here
    pi(a | s, g, h)      N(mean, exp(log_std)^2), component by component; the steps h to go are not told
    s, g                 latent, goal

Where steps are independent and k of them add up to g - z, the answer is (g - z) / k with the deviation
sqrt(1 - 1 / k): towards the goal, and the less sure the farther it is. Between two ways it answers with
their mean and a large deviation: it proposes, and a cost decides.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepaplan.models.affine import Affine
from jepaplan.types import InputError


@dataclass(frozen=True, kw_only=True)
class GoalInverseDynamicsConfig:
    """Shape of a `GoalInverseDynamics`."""

    hidden: int = 256  # width of the hidden layers
    layers: int = 2  # hidden layers
    norm: bool = True  # LayerNorm before each hidden activation
    std_min: float = 0.05  # in normalised action units; above 0, so that no action is impossible
    std_max: float = 1.5  # somewhat above 1, the deviation of all recorded actions

    def __post_init__(self) -> None:
        if min(self.hidden, self.layers) < 1:
            raise InputError(
                "goal-conditioned inverse dynamics need hidden >= 1 and layers >= 1; got "
                f"hidden={self.hidden}, layers={self.layers}"
            )
        if not 0 < self.std_min < self.std_max < math.inf:
            raise InputError(
                "the deviation is bounded by 0 < std_min < std_max, in normalised action units; got "
                f"std_min={self.std_min}, std_max={self.std_max}. Write std_min=0.05, std_max=1.5"
            )


class GoalInverseDynamics(nn.Module):
    """The next normalised action as a Gaussian, from a latent and the latent that is wanted.

    Of the goal only the numbers from `moves_from` on are read, and those as what they differ by: before them
    lies a map, which is the latent's own.
    """

    def __init__(
        self,
        latent_width: int,
        action_dim: int,
        config: GoalInverseDynamicsConfig | None = None,
        moves_from: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.moves_from = config or GoalInverseDynamicsConfig(), moves_from
        widths = (2 * latent_width - moves_from, *(self.config.hidden for _ in range(self.config.layers)))
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [Affine(before, after), *([nn.LayerNorm(after)] if self.config.norm else []), nn.ReLU()]
        self.layers = nn.Sequential(*layers, Affine(widths[-1], 2 * action_dim))

    def forward(
        self, latent: Float[Tensor, "*#batch D"], goal: Float[Tensor, "*#batch D"]
    ) -> tuple[Float[Tensor, "*batch A"], Float[Tensor, "*batch A"]]:
        """Mean and logarithm of the standard deviation, which lies between those of the configuration."""
        latent, goal = torch.broadcast_tensors(latent, goal)
        gap = goal[..., self.moves_from :] - latent[..., self.moves_from :]
        mean, free = self.layers(torch.cat([latent, gap], dim=-1)).chunk(2, dim=-1)
        low, high = math.log(self.config.std_min), math.log(self.config.std_max)
        # a sigmoid and no clamp: at the bounds there is still a gradient that leads back
        return mean, low + (high - low) * torch.sigmoid(free)
