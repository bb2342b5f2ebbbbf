"""Five kinds of rooms in which the straight line to the goal fails, and one in which it does not.

What each room asks for is named in `tile_rooms_maps`; layouts and their numbers come from
`tile_rooms_layouts`, shortest paths from `tile_rooms_geodesics`. A dot moves through 8 x 8 tiles of 8 pixels;
positions are (x = column, y = row) in pixels, the origin is the centre of the top left pixel, and an action
is a displacement in pixels, with the big steps of the wall worlds (WB of arXiv:2601.00844).

    state    (x, y, layout), or (x, y, key_held, first_open, second_open, layout) where there is a key
    mode     the flags as one number (`tile_rooms_layouts`): 0 none, then the number of the flag that is set
    move     what it touches decides: `tile_rooms_physics`
"""

import difflib
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from jepaplan.envs.drawing import add_dots
from jepaplan.envs.tile_rooms_geodesics import shortest_between_corners, shortest_paths
from jepaplan.envs.tile_rooms_layouts import (
    HIGH,
    LOW,
    SIZE,
    TILE,
    TILES,
    Map,
    TileLayouts,
    build_layouts,
)
from jepaplan.envs.tile_rooms_maps import MAPS
from jepaplan.envs.tile_rooms_physics import is_free, move, pass_gates
from jepaplan.envs.tile_rooms_pictures import empty_pictures, patches
from jepaplan.types import InputError, Observation, Patch

INSET = 1e-3  # pixels by which a sampled position keeps away from the edges of its tile
TASK_INSET = 2.0  # the same for starts and goals of tasks
DETOUR = 1e-6  # pixels; a shortest path longer than the straight line by more is not straight
ATTEMPTS = 200  # rounds of drawing tasks before giving up
KEY_FLAGS = ("key_held", "first_open", "second_open")
EPISODE_STEPS = {"OpenRoom": 64, "BreakingKeys": 100, "Detour": 100}  # control steps; 80 in the others


@dataclass(frozen=True, kw_only=True)
class TileConfig:
    """Maps, task and step law of one world of tiles. Lengths are pixels."""

    name: str
    maps: tuple[Map, ...]
    episode_steps: int = 80  # control steps given to reach a goal
    least_distance: float = 12.0  # between the start and the goal of a task, along the straight line
    straight_tasks: bool = False  # whether a task may be one that the straight line solves
    dot_std: float = 1.3  # of the Gaussian dot
    step_mean: float = 2.0  # of the truncated normal law of a recorded step's length
    step_std: float = 0.8
    step_min: float = 0.4
    step_max: float = 3.6
    heading_concentration: float = 5.0  # kappa of the von Mises turn of a recorded walk

    def __post_init__(self) -> None:
        """Refuse worlds that cannot be walked; the maps are checked where layouts are built."""
        if not 0 < self.step_min < self.step_max or self.step_std <= 0:
            raise InputError(
                f"steps need 0 < step_min < step_max and step_std > 0; got step_min={self.step_min}, "
                f"step_max={self.step_max}, step_std={self.step_std}"
            )
        if min(self.dot_std, self.heading_concentration, self.episode_steps) <= 0:
            raise InputError(
                f"dot_std, heading_concentration and episode_steps must be positive; got {self.dot_std}, "
                f"{self.heading_concentration}, {self.episode_steps}"
            )
        if not 0 <= self.least_distance < HIGH - LOW:
            raise InputError(
                f"least_distance is in pixels, at least 0 and less than the room's {HIGH - LOW:g}; "
                f"got {self.least_distance}"
            )


@dataclass(frozen=True)
class _Built:
    """What follows from the maps of a world, on one device."""

    layouts: TileLayouts
    between: Float[Tensor, "L MC MC"]
    pictures: UInt8[Tensor, "LM 3 64 64"]


@lru_cache(maxsize=32)
def _build(maps: tuple[Map, ...], device: str) -> _Built:
    layouts = build_layouts(maps, device)
    return _Built(layouts, shortest_between_corners(layouts), empty_pictures(layouts).flatten(0, 1))


class TileWorld:
    """Physics, picture and task of one `TileConfig`; an `interfaces.World`. Holds no state."""

    cost_unit = "pixels"

    def __init__(self, config: TileConfig) -> None:
        self.config, self.name, self.episode_steps = config, config.name, config.episode_steps
        self.image, self.action_dim = (3, SIZE, SIZE), 2
        self.flag_names = KEY_FLAGS if self.layouts("cpu").passages else ()
        self.state_names = ("x", "y", *self.flag_names, "layout")
        self.state_width = len(self.state_names)

    def layouts(self, device: torch.device | str) -> TileLayouts:
        """The layouts that layout numbers count."""
        return _build(self.config.maps, str(device)).layouts

    def step(
        self,
        state: Float[Tensor, "B W"],
        actions: Float[Tensor, "B 2"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B W"]:
        """The states after `actions`, displacements of any size. Nothing is random."""
        place, mode, number = self.split(state)
        target = (place + actions).to(state.dtype)
        segment = (place.double(), target.double())
        ends, after, happens = move(self.layouts(state.device), number, mode, segment)
        return torch.where(happens[:, None], self.join(ends.to(state.dtype), after, number), state)

    def observe(self, state: Float[Tensor, "B W"]) -> Observation:
        """Pictures: the dot; walls; pits, one-way doors, keys and locked doors."""
        place, mode, number = self.split(state)
        built = _build(self.config.maps, str(state.device))
        modes = built.layouts.occurs.shape[1]
        frames = built.pictures.index_select(0, number * modes + mode)
        return Observation(add_dots(frames, place, self.config.dot_std))

    def reached(self, state: Float[Tensor, "B W"], goal: Float[Tensor, "B W"]) -> Bool[Tensor, " B"]:
        """Reached when the mean of the squared x and y errors is below 1: within 1.41 pixels of the goal.

        Key and doors do not count.
        """
        return (state[:, :2] - goal[:, :2]).square().mean(-1) < 1.0

    def cost_to_go(self, state: Float[Tensor, "B W"], goal: Float[Tensor, "B W"]) -> Float[Tensor, " B"]:
        """Exact length of the shortest path to the goal's place, in pixels; infinite if there is none."""
        place, mode, number = self.split(state)
        built = _build(self.config.maps, str(state.device))
        start = place.double()
        # A dot that lies on the key, which no move leaves there, is one that is about to hold it.
        mode = pass_gates(built.layouts, number, mode, (start, start))
        length = shortest_paths(built.layouts, built.between, number, (start, mode), goal[:, :2].double())
        elsewhere = state[:, -1] != goal[:, -1]
        return length.masked_fill(elsewhere, torch.inf).to(state.dtype)

    def is_possible(self, state: Float[Tensor, "B W"]) -> Bool[Tensor, " B"]:
        """False for states that no walk can be in: in a wall, on a pit's slope, on an untouched key ...

        Flags are 0 or 1 and at most one is 1; a dot in a pit is in the middle of one of its tiles.
        """
        layouts = self.layouts(state.device)
        flags, layout = state[:, 2:-1], state[:, -1]
        known = (layout >= 0) & (layout < layouts.count) & (layout == layout.floor())
        known &= ((flags == 0) | (flags == 1)).all(-1) & (flags.sum(-1) <= 1) & state.isfinite().all(-1)
        place, mode, number = self.split(torch.where(known[:, None], state, torch.zeros_like(state)))
        return known & is_free(layouts, number, mode, place.double())

    def sample_tasks(
        self, count: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "B W"], Float[Tensor, "B W"]]:
        """Starts and goals of the kind that the world is made for, solvable within `episode_steps`."""
        device = generator.device
        layouts = self.layouts(device)
        numbers = torch.randint(layouts.count, (count,), generator=generator, device=device)
        return self.tasks_in(numbers, generator)

    def tasks_in(
        self, numbers: Int[Tensor, " B"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "B W"], Float[Tensor, "B W"]]:
        """One task in each layout of `numbers`."""
        config, layouts = self.config, self.layouts(generator.device)
        zones = (
            layouts.occurs & layouts.starts[:, None],
            layouts.occurs & layouts.goals[:, None],
        )
        zones[0][:, 1:] = False  # the key lies where it was, the doors are closed
        start = torch.zeros(len(numbers), self.state_width, device=numbers.device)
        goal, missing = start.clone(), torch.arange(len(numbers), device=numbers.device)
        for _ in range(ATTEMPTS):
            if not len(missing):
                return start, goal
            here = numbers[missing]
            first, last = (self._draw(zone[here], here, TASK_INSET, generator) for zone in zones)
            cost = self.cost_to_go(first, last)
            good = cost < 0.8 * config.step_mean * config.episode_steps
            good &= (first[:, :2] - last[:, :2]).norm(dim=-1) >= config.least_distance
            good &= config.straight_tasks | self.apart(first, last)
            start[missing[good]], goal[missing[good]] = first[good], last[good]
            missing = missing[~good]
        raise InputError(
            f"no task found in layout {int(numbers[missing[0]])} of {config.name} after {ATTEMPTS} draws; "
            f"give more episode_steps ({config.episode_steps}) or a smaller least_distance "
            f"({config.least_distance})"
        )

    def sample_states(self, like: Float[Tensor, "B W"], generator: torch.Generator) -> Float[Tensor, "B W"]:
        """Other states in the same layouts: modes that can occur alike often, then free tiles alike often.

        Pits are left out, and so are places that cannot be walked to in a mode.
        """
        number = self.split(like)[2].to(generator.device)
        occurs = self.layouts(generator.device).occurs[number]
        return self._draw(occurs, number, INSET, generator).to(like)

    def apart(self, state: Float[Tensor, "B W"], goal: Float[Tensor, "B W"]) -> Bool[Tensor, " B"]:
        """True where the straight segment is blocked or ruinous: no shortest path, or a longer one."""
        state, goal = state.double(), goal.double()
        straight = (state[:, :2] - goal[:, :2]).norm(dim=-1)
        return self.cost_to_go(state, goal) > straight + DETOUR

    def typical_actions(self) -> Float[Tensor, "48 2"]:
        """16 directions at the shortest, the mean and the longest recorded length."""
        angle = torch.arange(16) * (2 * math.pi / 16)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
        length = torch.tensor([self.config.step_min, self.config.step_mean, self.config.step_max])
        return (length[:, None, None] * direction).flatten(0, 1)

    def positions(self, state: Float[Tensor, "*batch W"]) -> Float[Tensor, "*batch 2"]:
        """Where the dot is."""
        return state[..., :2]

    def scenery(self, state: Float[Tensor, " W"]) -> tuple[Patch, ...]:
        """The frame and every tile that is not free; an open door and a key that is gone are not there."""
        _, mode, number = self.split(state[None])
        return patches(self.layouts("cpu").maps[int(number)], int(mode))

    def split(
        self, state: Float[Tensor, "B W"]
    ) -> tuple[Float[Tensor, "B 2"], Int[Tensor, " B"], Int[Tensor, " B"]]:
        """Place, mode and layout number. Of several flags the last counts: doors stay open."""
        mode = torch.zeros(len(state), dtype=torch.long, device=state.device)
        for flag in range(len(self.flag_names)):
            mode = torch.where(state[:, 2 + flag] > 0.5, flag + 1, mode)
        last = self.layouts(state.device).count - 1
        return state[:, :2], mode, state[:, -1].nan_to_num().long().clamp(0, last)

    def join(
        self, place: Float[Tensor, "B 2"], mode: Int[Tensor, " B"], number: Int[Tensor, " B"]
    ) -> Float[Tensor, "B W"]:
        """Undo `split`."""
        flag = torch.arange(1, len(self.flag_names) + 1, device=place.device)
        flags = (mode[:, None] == flag).to(place)
        return torch.cat([place, flags, number[:, None].to(place)], dim=-1)

    def _draw(
        self,
        allowed: Bool[Tensor, "B M 64"],
        number: Int[Tensor, " B"],
        inset: float,
        generator: torch.Generator,
    ) -> Float[Tensor, "B W"]:
        """A mode with allowed tiles, one of them, and a place in it at least `inset` from its edges."""
        if not len(number):
            return torch.zeros(0, self.state_width, device=number.device)
        mode = torch.multinomial(allowed.any(-1).float(), 1, generator=generator)[:, 0]
        tiles = allowed[torch.arange(len(mode), device=mode.device), mode].float()
        tile = torch.multinomial(tiles, 1, generator=generator)[:, 0]
        within = torch.rand(len(mode), 2, generator=generator, device=generator.device)
        corner = torch.stack([tile % TILES, tile // TILES], dim=-1) * TILE - 0.5
        low, high = (corner + inset).clamp(min=LOW + inset), (corner + TILE - inset).clamp(max=HIGH - inset)
        return self.join(low + (high - low) * within, mode, number)


WORLDS: dict[str, TileConfig] = {
    name: TileConfig(
        name=name,
        maps=maps,
        episode_steps=EPISODE_STEPS.get(name, 80),
        straight_tasks=name == "OpenRoom",
    )
    for name, maps in MAPS.items()
}


def tile_world(name: str) -> TileWorld:
    """The world of that name: OpenRoom, DeadEnd, OneWayDoor, Pits, BreakingKeys or Detour."""
    if name not in WORLDS:
        near = difflib.get_close_matches(name, WORLDS, 1, 0)[0]
        raise InputError(
            f"there is no world of tiles named {name!r}; did you mean {near!r}? There are {', '.join(WORLDS)}"
        )
    return TileWorld(WORLDS[name])
