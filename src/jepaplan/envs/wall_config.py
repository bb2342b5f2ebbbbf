"""What a two-room world is made of: geometry, drawing and step law, and where its wall and door are.

Figures of Sobal et al. (PLDM, arXiv:2502.14819) and Destrade et al. (arXiv:2601.00844).

    paper        here
    WS, WB       WALL_SMALL, WALL_BIG
    norm         step_mean, step_std, step_min, step_max    of a recorded action, pixels
    kappa        heading_concentration                      of the von Mises turn from step to step
"""

from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Float, Shaped
from torch import Tensor

from jepaplan.types import InputError


@dataclass(frozen=True, kw_only=True)
class WallConfig:
    """Geometry, drawing and step law of a two-room world. Lengths are pixels."""

    name: str = "WallSmall"
    size: int = 64  # height and width of the picture
    dot_std: float = 1.3  # of the Gaussian dot
    wall_half_width: int = 1  # columns on each side of the wall's middle: 3 in all
    door_half_width: int = 4  # rows on each side of the door's middle: 9 in all
    border: int = 4  # border lines at `border` and `size - 1 - border`; the dot lives strictly between them
    wall_margin: int = 20  # a random wall is at an integer in [wall_margin, size - wall_margin)
    door_margin: int = 10  # a random door is at an integer in [door_margin, size - door_margin)
    layout: Literal["random", "fixed"] = "random"
    fixed_wall_x: float = 32.0
    fixed_door_y: float = 10.0
    step_mean: float = 1.0  # of the truncated normal law of a recorded step's length
    step_std: float = 0.4
    step_min: float = 0.2
    step_max: float = 1.8
    heading_concentration: float = 5.0  # kappa; higher walks straighter
    episode_steps: int = 200  # control steps given to reach a goal
    bounce_std: float = 0.0  # 0 stays in place at a wall; 0.5 is the noisy bounce
    slips: float = 0.0  # share of the steps that go as far, but anywhere

    def __post_init__(self) -> None:
        """Refuse worlds that cannot be built or walked."""
        if not 0 < self.step_min < self.step_max or self.step_std <= 0:
            raise InputError(
                f"steps need 0 < step_min < step_max and step_std > 0; got step_min={self.step_min}, "
                f"step_max={self.step_max}, step_std={self.step_std}"
            )
        if (
            min(self.dot_std, self.heading_concentration) <= 0
            or self.bounce_std < 0
            or self.episode_steps < 1
        ):
            raise InputError(
                "dot_std and heading_concentration must be positive, bounce_std at least 0, episode_steps "
                "at least 1; "
                f"got {self.dot_std}, {self.heading_concentration}, {self.bounce_std}, {self.episode_steps}"
            )
        if not 0 <= self.slips < 1:
            raise InputError(f"slips is a share of the steps, in [0, 1); got {self.slips}")
        room = self.wall_margin - self.wall_half_width - self.border
        sill = self.door_margin - self.door_half_width - self.border
        if room < 4 * self.dot_std or sill < 0 or self.size <= 2 * max(self.wall_margin, self.door_margin):
            raise InputError(
                f"size={self.size}, border={self.border}, wall_margin={self.wall_margin}, door_margin="
                f"{self.door_margin} leave no room beside the wall or no place for the door; "
                "the defaults (64, 4, 20, 10) do"
            )

    @property
    def low(self) -> float:
        """The upper and the left border line."""
        return float(self.border)

    @property
    def high(self) -> float:
        """The lower and the right border line."""
        return float(self.size - 1 - self.border)


WALL_SMALL = WallConfig()
WALL_BIG = WallConfig(
    name="WallBig", step_mean=2.0, step_std=0.8, step_min=0.4, step_max=3.6, episode_steps=64
)
WALL_BIG_BOUNCE = replace(WALL_BIG, name="WallBigBounce", bounce_std=0.5)
WALL_BIG_SLIPS = replace(WALL_BIG, name="WallBigSlips", slips=0.25)
WALL_SMALL_FIXED = replace(WALL_SMALL, name="WallSmallFixed", layout="fixed")
WALL_BIG_FIXED = replace(WALL_BIG, name="WallBigFixed", layout="fixed")


@dataclass(frozen=True)
class WallLayouts:
    """Where the wall (column) and the middle of its door (row) are, one per world."""

    wall_x: Float[Tensor, " B"]
    door_y: Float[Tensor, " B"]

    def select(self, index: Shaped[Tensor, " K"]) -> "WallLayouts":
        """The layouts numbered, or marked true, in `index`."""
        return WallLayouts(self.wall_x[index], self.door_y[index])
