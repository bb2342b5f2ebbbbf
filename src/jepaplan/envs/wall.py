"""Two rooms and a door, thousands of worlds at once: one collision rule, one picture, one success.

Wall world of Sobal et al. (PLDM, arXiv:2502.14819), in the random-layout form on which Destrade et al.
(arXiv:2601.00844) report WS (small steps) and WB (big steps). Positions are (x = column, y = row) in pixels,
the origin is the centre of the top left pixel, an action is a displacement in pixels.

    paper        here
    WS, WB       WALL_SMALL, WALL_BIG
    norm         step_mean, step_std, step_min, step_max    of a recorded action, pixels
    kappa        heading_concentration                      of the von Mises turn from step to step

Departs from PLDM: recording and evaluation share one rule. A move whose straight segment touches a border
line, the wall outside its door or a jamb does not happen; `bounce_std > 0` gives the noisy bounce of its
evaluation instead. Pictures have 64 x 64 pixels, as the papers say, not the 65 x 65 of the code.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor

from jepaplan.envs.drawing import add_dots, distinct, draw_walls
from jepaplan.envs.segments import crosses_rectangle, entry_fraction
from jepaplan.types import InputError

TOUCH = 1e-11  # pixels; wider than float64 rounding, so that a move is never free by a rounding error
GRAZE = -1e-9  # a shortest path may slide along a wall and turn at its corners
CLEARANCE = 0.3  # pixels between a bounced dot and what it bounced off
INSET = 1e-3  # pixels by which a sampled position keeps away from every wall


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


class WallWorld:
    """Physics, picture and task of one `WallConfig`. Holds no state: positions come in and go out."""

    def __init__(self, config: WallConfig = WALL_SMALL) -> None:
        self.config = config

    def sample_layouts(self, count: int, generator: torch.Generator) -> WallLayouts:
        """Random walls and doors, or `count` copies of the fixed one."""
        config, device = self.config, generator.device
        if config.layout == "fixed":
            fixed = torch.ones(count, device=device)
            return WallLayouts(fixed * config.fixed_wall_x, fixed * config.fixed_door_y)

        def integers(margin: int) -> Float[Tensor, " B"]:
            last = config.size - margin
            return torch.randint(margin, last, (count,), generator=generator, device=device).float()

        return WallLayouts(integers(config.wall_margin), integers(config.door_margin))

    def sample_positions(self, layouts: WallLayouts, generator: torch.Generator) -> Float[Tensor, "B 2"]:
        """Free positions, uniform over the box; those in the wall move to a room drawn by a coin."""
        low, high = self.config.low + INSET, self.config.high - INSET
        draw = torch.rand(len(layouts.wall_x), 4, generator=generator, device=generator.device)
        positions = low + (high - low) * draw[:, :2]
        face = self.config.wall_half_width + INSET
        left, right = layouts.wall_x - face, layouts.wall_x + face
        moved = torch.where(
            draw[:, 2] < 0.5, low + (left - low) * draw[:, 3], right + (high - right) * draw[:, 3]
        )
        x = torch.where(self.is_free(positions, layouts), positions[:, 0], moved)
        return torch.stack([x, positions[:, 1]], dim=-1)

    def sample_tasks(
        self, layouts: WallLayouts, generator: torch.Generator
    ) -> tuple[Float[Tensor, "B 2"], Float[Tensor, "B 2"]]:
        """A start in one room and a goal in the other, both at least two dot widths from every wall."""
        inset = 2 * self.config.dot_std
        low, high = self.config.low + inset, self.config.high - inset
        face = self.config.wall_half_width + inset
        draw = torch.rand(len(layouts.wall_x), 5, generator=generator, device=generator.device)
        left_x = low + (layouts.wall_x - face - low) * draw[:, 0]
        right_x = layouts.wall_x + face + (high - layouts.wall_x - face) * draw[:, 1]
        left = torch.stack([left_x, low + (high - low) * draw[:, 2]], dim=-1)
        right = torch.stack([right_x, low + (high - low) * draw[:, 3]], dim=-1)
        swap = draw[:, 4:] < 0.5
        return torch.where(swap, right, left), torch.where(swap, left, right)

    def is_free(self, positions: Float[Tensor, "B 2"], layouts: WallLayouts) -> Bool[Tensor, " B"]:
        """True strictly inside the box and off the wall: where a dot can be."""
        return ~self.touches(positions, positions, layouts)

    def touches(
        self, start: Float[Tensor, "B 2"], end: Float[Tensor, "B 2"], layouts: WallLayouts
    ) -> Bool[Tensor, " B"]:
        """True where the segment touches a border line, the wall or a jamb, or is not a number."""
        first, last = start.double(), end.double()
        low, high = self.config.low, self.config.high
        in_box = ((first > low) & (first < high) & (last > low) & (last < high)).all(-1)
        centre, half = self._solids(layouts)
        blocked = crosses_rectangle(first[:, None], last[:, None], centre, half, TOUCH).any(-1)
        return blocked | ~in_box

    def step(
        self,
        positions: Float[Tensor, "B 2"],
        actions: Float[Tensor, "B 2"],
        layouts: WallLayouts,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B 2"]:
        """Where dots are after `actions`, displacements of any size. Blocked moves stay in place."""
        target = (positions + actions).to(positions.dtype)
        blocked = self.touches(positions, target, layouts)[:, None]
        if self.config.bounce_std == 0:
            return torch.where(blocked, positions, target)
        if generator is None:
            raise InputError(
                f"this world bounces with noise (bounce_std={self.config.bounce_std}); "
                "write `step(positions, actions, layouts, generator)` with a torch.Generator"
            )
        return torch.where(blocked, self._bounce(positions, target, layouts, generator), target)

    def render(self, positions: Float[Tensor, "B 2"], layouts: WallLayouts) -> UInt8[Tensor, "B 2 size size"]:
        """Pictures: channel 0 the dot, channel 1 the walls."""
        config = self.config
        wall_x, door_y, number = distinct(layouts.wall_x, layouts.door_y)
        half_widths = (config.wall_half_width, config.door_half_width)
        empty = draw_walls(wall_x, door_y, config.size, config.border, half_widths)
        return add_dots(empty.index_select(0, number), positions, config.dot_std)

    def reached(self, positions: Float[Tensor, "B 2"], goals: Float[Tensor, "B 2"]) -> Bool[Tensor, " B"]:
        """Reached when the mean of the squared x and y errors is below 1: within 1.41 pixels of the goal."""
        return (positions - goals).square().mean(-1) < 1.0

    def geodesic(
        self, positions: Float[Tensor, "B 2"], goals: Float[Tensor, "B 2"], layouts: WallLayouts
    ) -> Float[Tensor, " B"]:
        """Exact length of the shortest path, in pixels; infinite from or to the inside of the wall.

        The path may slide along walls and turn on the four corners of the door, so it is the infimum over
        legal paths. It turns at most twice: the free space has no holes and the door is convex.
        """
        start, end = positions.double(), goals.double()
        reach = torch.tensor([self.config.wall_half_width, self.config.door_half_width], device=start.device)
        signs = torch.tensor([[-1, -1], [-1, 1], [1, -1], [1, 1]], device=start.device)
        corners = torch.stack([layouts.wall_x, layouts.door_y], dim=-1).double()[:, None] + signs * reach
        to_corner = self._sight_line(start[:, None], corners, layouts)
        from_corner = self._sight_line(end[:, None], corners, layouts)
        between = torch.cdist(corners, corners, compute_mode="donot_use_mm_for_euclid_dist")
        around = (to_corner[:, :, None] + between + from_corner[:, None, :]).amin((1, 2))
        straight = self._sight_line(start[:, None], end[:, None], layouts)[:, 0]
        return torch.minimum(straight, around).to(positions.dtype)

    def state(self, positions: Float[Tensor, "B 2"], layouts: WallLayouts) -> Float[Tensor, "B 4"]:
        """The true state (x, y, wall_x, door_y), for recording and probes."""
        place = torch.stack([layouts.wall_x, layouts.door_y], dim=-1)
        return torch.cat([positions, place.to(positions)], dim=-1)

    def split_state(self, state: Float[Tensor, "B 4"]) -> tuple[Float[Tensor, "B 2"], WallLayouts]:
        """Undo `state`."""
        return state[:, :2], WallLayouts(state[:, 2], state[:, 3])

    def _solids(self, layouts: WallLayouts) -> tuple[Float[Tensor, "B 2 2"], Float[Tensor, "B 2 2"]]:
        """Centres and half extents of the wall above and below the door, reaching out of the picture."""
        x, y = layouts.wall_x.double(), layouts.door_y.double()
        far, door = float(self.config.size), self.config.door_half_width
        above, below = (y - door - far) / 2, (y + door + 2 * far) / 2
        centre = torch.stack([torch.stack([x, above], -1), torch.stack([x, below], -1)], dim=1)
        width = torch.full_like(x, self.config.wall_half_width)
        tall = [torch.stack([width, y - door - above], -1), torch.stack([width, below - y - door], -1)]
        return centre, torch.stack(tall, dim=1)

    def _sight_line(
        self, start: Float[Tensor, "B S 2"], end: Float[Tensor, "B K 2"], layouts: WallLayouts
    ) -> Float[Tensor, "B K"]:
        """Length of each segment (S is 1 or K), infinite where the inside of the wall is in the way."""
        centre, half = self._solids(layouts)
        hidden = crosses_rectangle(
            start[:, :, None], end[:, :, None], centre[:, None], half[:, None], GRAZE
        ).any(-1)
        return (end - start).norm(dim=-1).masked_fill(hidden, torch.inf)

    def _bounce(
        self,
        positions: Float[Tensor, "B 2"],
        target: Float[Tensor, "B 2"],
        layouts: WallLayouts,
        generator: torch.Generator,
    ) -> Float[Tensor, "B 2"]:
        """First contact plus noise that points away from what was hit; in place if that touches a wall."""
        low, high = self.config.low + CLEARANCE, self.config.high - CLEARANCE
        start, end = positions.double(), target.double().nan_to_num().clamp(-1e6, 1e6)
        move = torch.where(end == start, torch.full_like(start, 1e-12), end - start)
        to_border = (torch.where(move > 0, self.config.high, self.config.low) - start) / move
        centre, half = self._solids(layouts)
        to_wall, through_x = entry_fraction(start[:, None], end[:, None], centre, half)
        times = torch.cat([to_border.amin(-1, keepdim=True), to_wall], dim=1)
        sideways = torch.cat([to_border[:, :1] <= to_border[:, 1:], through_x], dim=1)
        first, which = times.min(dim=1, keepdim=True)
        noise = torch.randn(positions.shape, generator=generator, device=generator.device).to(start)
        noise = noise * self.config.bounce_std
        normal = torch.cat([sideways.gather(1, which), ~sideways.gather(1, which)], dim=1)
        away = -move.sign() * noise.abs().clamp(min=CLEARANCE)
        landing = start + first.clamp(max=1) * move + torch.where(normal, away, noise)
        landing = landing.clamp(low, high).to(positions.dtype)
        return torch.where(self.touches(positions, landing, layouts)[:, None], positions, landing)
