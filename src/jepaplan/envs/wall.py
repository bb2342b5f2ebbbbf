"""Two rooms and a door, thousands of worlds at once: one collision rule, one picture, one success.

Wall world of Sobal et al. (PLDM, arXiv:2502.14819), in the random-layout form on which Destrade et al.
(arXiv:2601.00844) report WS (small steps) and WB (big steps). Positions are (x = column, y = row) in pixels,
the origin is the centre of the top left pixel, an action is a displacement in pixels.

Departs from PLDM: recording and evaluation share one rule. A move whose straight segment touches a border
line, the wall outside its door or a jamb does not happen; `bounce_std > 0` gives the noisy bounce of its
evaluation instead, and `slips` sends a share of the steps in a random direction. Pictures have 64 x 64
pixels, as the papers say, not the 65 x 65 of the code.

The true state is (x, y, wall_x, door_y). `WallWorld` is an `interfaces.World` of such states; below that it
speaks of positions in layouts, for whoever draws and walks.
"""

import math

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from jepaplan.envs.drawing import add_dots, distinct, draw_walls
from jepaplan.envs.segments import crosses_rectangle, entry_fraction
from jepaplan.envs.wall_config import (
    WALL_BIG,
    WALL_BIG_BOUNCE,
    WALL_BIG_FIXED,
    WALL_BIG_SLIPS,
    WALL_SMALL,
    WALL_SMALL_FIXED,
    WallConfig,
    WallLayouts,
)
from jepaplan.envs.wall_paths import Solids, door_corners, shortest_path, wall_solids
from jepaplan.types import InputError, Observation, Patch

TOUCH = 1e-11  # pixels; wider than float64 rounding, so that a move is never free by a rounding error
CLEARANCE = 0.3  # pixels between a bounced dot and what it bounced off
INSET = 1e-3  # pixels by which a sampled position keeps away from every wall


CONFIGS = {
    config.name: config
    for config in (
        WALL_SMALL,
        WALL_BIG,
        WALL_SMALL_FIXED,
        WALL_BIG_FIXED,
        WALL_BIG_BOUNCE,
        WALL_BIG_SLIPS,
    )
}
_HEADINGS = 16  # of typical actions


class WallWorld:
    """Physics, picture and task of one `WallConfig`. Holds no state: states come in and go out."""

    action_dim = 2
    state_width = 4  # x, y, wall_x, door_y
    cost_unit = "pixels"

    def __init__(self, config: WallConfig = WALL_SMALL) -> None:
        self.config = config
        self.name = config.name
        self.episode_steps = config.episode_steps
        self.image: tuple[int, int, int] = (2, config.size, config.size)

    # ---- the world by its state ------------------------------------------------------------------------

    def step(
        self,
        state: Float[Tensor, "B 4"],
        actions: Float[Tensor, "B 2"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B 4"]:
        """Move the dots. Without a generator nothing is noise: no step slips, and a bounce stays in place."""
        positions, layouts = self.split_state(state)
        if generator is None:
            target = (positions + actions).to(positions.dtype)
            stays = self.touches(positions, target, layouts)[:, None]
            return self.state(torch.where(stays, positions, target), layouts)
        return self.state(self.move(positions, actions, layouts, generator), layouts)

    def observe(self, state: Float[Tensor, "B 4"]) -> Observation:
        """Pictures; a dot has no body to feel."""
        return Observation(self.render(*self.split_state(state)))

    def reached(self, state: Float[Tensor, "B 4"], goal: Float[Tensor, "B 4"]) -> Bool[Tensor, " B"]:
        """Reached when the mean of the squared x and y errors is below 1: within 1.41 pixels of the goal."""
        return (state[:, :2] - goal[:, :2]).square().mean(-1) < 1.0

    def cost_to_go(self, state: Float[Tensor, "B 4"], goal: Float[Tensor, "B 4"]) -> Float[Tensor, " B"]:
        """The geodesic in pixels; on one side of the wall it is the straight line, which is quicker."""
        lengths = (state[:, :2] - goal[:, :2]).norm(dim=-1)
        offsets = torch.stack([state[:, 0], goal[:, 0]]) - state[:, 2]
        half = self.config.wall_half_width
        around = ~((offsets <= -half).all(0) | (offsets >= half).all(0))
        start, layouts = self.split_state(state[around])
        lengths[around] = self.geodesic(start, goal[around, :2], layouts)
        return lengths

    def is_possible(self, state: Float[Tensor, "B 4"]) -> Bool[Tensor, " B"]:
        """True where the dot is strictly inside the box and off the wall."""
        return self.is_free(*self.split_state(state))

    def sample_tasks(
        self, count: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "B 4"], Float[Tensor, "B 4"]]:
        """Fresh layouts, a start in one room and a goal in the other."""
        layouts = self.sample_layouts(count, generator)
        start, goal = self.sample_opposite(layouts, generator)
        return self.state(start, layouts), self.state(goal, layouts)

    def sample_states(self, like: Float[Tensor, "B 4"], generator: torch.Generator) -> Float[Tensor, "B 4"]:
        """Other places in the same layouts, uniform over the free space."""
        _, layouts = self.split_state(like)
        return self.state(self.sample_positions(layouts, generator), layouts)

    def apart(self, state: Float[Tensor, "B 4"], goal: Float[Tensor, "B 4"]) -> Bool[Tensor, " B"]:
        """In different rooms: left and right of the middle of the wall."""
        return (state[:, 0] < state[:, 2]) != (goal[:, 0] < state[:, 2])

    def typical_actions(self) -> Float[Tensor, "K 2"]:
        """Sixteen headings at the shortest, the mean and the longest recorded step."""
        angles = torch.arange(_HEADINGS) * (2 * math.pi / _HEADINGS)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        lengths = torch.tensor([self.config.step_min, self.config.step_mean, self.config.step_max])
        return (lengths[:, None, None] * directions).flatten(0, 1)

    def positions(self, state: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 2"]:
        """The dot."""
        return state[..., :2]

    def scenery(self, state: Float[Tensor, " 4"]) -> tuple[Patch, ...]:
        """The border line, and the wall above and below the door."""
        low, high, half = self.config.low, self.config.high, self.config.wall_half_width
        wall_x, door_y = float(state[2]), float(state[3])
        top, bottom = door_y - self.config.door_half_width, door_y + self.config.door_half_width
        return (
            Patch("border", (low, low), (high, high)),
            Patch("wall", (wall_x - half, low), (wall_x + half, top)),
            Patch("wall", (wall_x - half, bottom), (wall_x + half, high)),
        )

    # ---- what probes ask beyond that: `evaluation.surveys.Surveyed` ------------------------------------

    def fresh_layouts(self, count: int, generator: torch.Generator) -> Float[Tensor, "B 4"]:
        """States that say where wall and door are; their dots are nowhere yet."""
        layouts = self.sample_layouts(count, generator)
        return self.state(torch.full((count, 2), torch.nan, device=generator.device), layouts)

    def placed(self, state: Float[Tensor, "B 4"], positions: Float[Tensor, "B 2"]) -> Float[Tensor, "B 4"]:
        """The same layouts, the dots at `positions`; those in the wall, where no path begins, at its face."""
        config, (_, layouts) = self.config, self.split_state(state)
        inside = positions.clamp(config.low + 0.01, config.high - 0.01)
        offset = inside[:, 0] - layouts.wall_x
        in_wall = (offset.abs() < config.wall_half_width) & (
            (inside[:, 1] - layouts.door_y).abs() > config.door_half_width
        )
        face = layouts.wall_x + torch.where(offset < 0, -config.wall_half_width, config.wall_half_width)
        x = torch.where(in_wall, face, inside[:, 0])
        return torch.cat([torch.stack([x, inside[:, 1]], dim=-1), state[:, 2:]], dim=-1)

    def passed(self, state: Float[Tensor, "B 4"], goal: Float[Tensor, "B 4"]) -> Bool[Tensor, " B"]:
        """Beyond the wall, on the goal's side; not in the door any more."""
        right = goal[:, 0] > state[:, 2]
        offset = torch.where(right, state[:, 0] - state[:, 2], state[:, 2] - state[:, 0])
        return offset > self.config.wall_half_width

    # ---- positions in layouts --------------------------------------------------------------------------

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

    def sample_opposite(
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

    def move(
        self,
        positions: Float[Tensor, "B 2"],
        actions: Float[Tensor, "B 2"],
        layouts: WallLayouts,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B 2"]:
        """Where dots are after `actions`, displacements of any size. Blocked moves stay in place."""
        noisy = self.config.bounce_std > 0 or self.config.slips > 0
        if noisy and generator is None:
            raise InputError(
                f"this world has noise (bounce_std={self.config.bounce_std}, slips={self.config.slips}); "
                "write `move(positions, actions, layouts, generator)` with a torch.Generator"
            )
        if generator is not None and self.config.slips > 0:
            actions = self._slip(actions, generator)
        target = (positions + actions).to(positions.dtype)
        blocked = self.touches(positions, target, layouts)[:, None]
        if generator is None or self.config.bounce_std == 0:
            return torch.where(blocked, positions, target)
        return torch.where(blocked, self._bounce(positions, target, layouts, generator), target)

    def render(self, positions: Float[Tensor, "B 2"], layouts: WallLayouts) -> UInt8[Tensor, "B 2 size size"]:
        """Pictures: channel 0 the dot, channel 1 the walls."""
        config = self.config
        wall_x, door_y, number = distinct(layouts.wall_x, layouts.door_y)
        empty = draw_walls(wall_x, door_y, config.size, config.border, self._half_widths)
        return add_dots(empty.index_select(0, number), positions, config.dot_std)

    def geodesic(
        self, positions: Float[Tensor, "B 2"], goals: Float[Tensor, "B 2"], layouts: WallLayouts
    ) -> Float[Tensor, " B"]:
        """Exact length of the shortest path, in pixels; infinite from or to the inside of the wall.

        The path may slide along walls and turn on the four corners of the door, so it is the infimum over
        legal paths.
        """
        corners = door_corners(layouts.wall_x, layouts.door_y, self._half_widths)
        length = shortest_path(positions.double(), goals.double(), corners, self._solids(layouts))
        return length.to(positions.dtype)

    def state(self, positions: Float[Tensor, "B 2"], layouts: WallLayouts) -> Float[Tensor, "B 4"]:
        """The true state (x, y, wall_x, door_y)."""
        place = torch.stack([layouts.wall_x, layouts.door_y], dim=-1)
        return torch.cat([positions, place.to(positions)], dim=-1)

    def split_state(self, state: Float[Tensor, "B 4"]) -> tuple[Float[Tensor, "B 2"], WallLayouts]:
        """Undo `state`."""
        return state[:, :2], WallLayouts(state[:, 2], state[:, 3])

    @property
    def _half_widths(self) -> tuple[int, int]:
        return self.config.wall_half_width, self.config.door_half_width

    def _solids(self, layouts: WallLayouts) -> Solids:
        return wall_solids(layouts.wall_x, layouts.door_y, self._half_widths, self.config.size)

    def _slip(self, actions: Float[Tensor, "B 2"], generator: torch.Generator) -> Float[Tensor, "B 2"]:
        """Some actions turned by any angle."""
        draw = torch.rand(len(actions), 2, generator=generator, device=generator.device).to(actions)
        angle = torch.where(draw[:, 0] < self.config.slips, 2 * math.pi * draw[:, 1], 0)
        cos, sin = angle.cos(), angle.sin()
        x, y = actions.unbind(-1)
        return torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)

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


def wall_world(name: str) -> WallWorld:
    """The two rooms of that name."""
    return WallWorld(CONFIGS[name])
