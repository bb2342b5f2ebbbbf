"""The point maze: a ball with inertia, commanded velocities, walls it has never met; thousands at once.

Maze world of PLDM (arXiv:2502.14819) with the velocity commands of Destrade et al. (arXiv:2601.00844): five
mazes to record in, forty others to plan in, starts and goals at least three cells apart, 200 steps.
`MazeHard` takes the five to seven cells of PLDM's own trials. Lengths are metres; a cell is one metre wide.

    paper                    here
    velocity command         action            metres per second, cut to a norm of `highest_speed`
    proprioception           velocity          metres per second
    cells apart              cell_distances    steps from cell to cell on the grid
    geodesic                 cost_to_go        metres, exact, for the ball's centre

Departs from the papers, which do not say how force follows from a command: the force that reaches the command
at the end of the control step, cut to the motors' 100 newtons per axis as in gymnasium-robotics, so the ball
keeps its inertia: one action changes a velocity by at most 0.95 per axis. `force_limit=None` lifts the cut.
"""

import difflib
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jepaplan.envs.maze_drawing import SIZE, draw, to_pixels
from jepaplan.envs.maze_geodesic import clearance, in_sight, pressed_out, shortest_path
from jepaplan.envs.maze_layouts import (
    ALL_OPEN,
    CELLS,
    SIDE,
    cell_centre,
    cell_distances,
    in_open_cell,
    is_layout,
    maze_sets,
    open_cells,
)
from jepaplan.envs.maze_physics import HIGHEST_SPEED, RADIUS, push, pushing_force
from jepaplan.types import InputError, Observation, Patch

PRESSED = 0.07  # metres; the simulator's walls give way a little, so a ball may be this much too close
SPREAD = 0.79  # of a cell: what a sampled place may use, so that the ball touches nothing
CENTRAL = 0.5  # of a cell: where a task's ends lie
DIRECTIONS, SPEEDS = 16, (1.25, 2.5, 3.75)  # of the typical actions


@dataclass(frozen=True, kw_only=True)
class MazeConfig:
    """Task and motor of a point maze. Lengths are metres."""

    name: str = "Maze"
    episode_steps: int = 200  # control steps given to reach a goal
    nearest_cells: int = 3  # least and largest distance of a task's cells, in steps on the grid
    farthest_cells: int = CELLS
    goal_radius: float = 0.5
    highest_speed: float = HIGHEST_SPEED  # of a command, metres per second
    force_limit: float | None = 100.0  # newtons per axis; None reaches every command in one action
    simulation_steps: int = 4  # of 0.01 seconds, per action

    def __post_init__(self) -> None:
        """Refuse mazes without tasks or motion."""
        if not 0 <= self.nearest_cells <= self.farthest_cells:
            raise InputError(
                f"need 0 <= nearest_cells <= farthest_cells; got {self.nearest_cells}, {self.farthest_cells}"
            )
        if min(self.episode_steps, self.simulation_steps) < 1 or self.goal_radius <= 0:
            raise InputError(
                "episode_steps and simulation_steps must be at least 1, goal_radius positive; "
                f"got {self.episode_steps}, {self.simulation_steps}, {self.goal_radius}"
            )
        unmoved = self.force_limit is not None and self.force_limit <= 0
        if not 0 < self.highest_speed <= HIGHEST_SPEED or unmoved:
            raise InputError(
                f"need 0 < highest_speed <= {HIGHEST_SPEED:g} and force_limit positive or None; "
                f"got {self.highest_speed}, {self.force_limit}"
            )


MAZE = MazeConfig()
MAZE_HARD = replace(MAZE, name="MazeHard", nearest_cells=5, farthest_cells=7)
CONFIGS = {config.name: config for config in (MAZE, MAZE_HARD)}


def maze_world(name: str) -> "MazeWorld":
    """The maze world of that name."""
    if name not in CONFIGS:
        near = difflib.get_close_matches(name, CONFIGS, 1, 0)[0]
        raise InputError(f"no maze is named {name!r}; did you mean {near!r}? There are {', '.join(CONFIGS)}")
    return MazeWorld(CONFIGS[name])


class MazeWorld:
    """Physics, picture and task of one `MazeConfig`; a `World`. Holds no state: rows come in and go out.

    A row is (x, y, vx, vy, layout), the layout as the whole number of `maze_layouts`. Pictures, tasks and
    paths need nothing else; only `step` needs MuJoCo.
    """

    image = (3, SIZE, SIZE)
    action_dim = 2
    state_width = 5
    cost_unit = "metres"

    def __init__(self, config: MazeConfig = MAZE) -> None:
        self.config = config
        self.name = config.name
        self.episode_steps = config.episode_steps

    def step(
        self,
        state: Float[Tensor, "B 5"],
        actions: Float[Tensor, "B 2"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B 5"]:
        """The states one action later: 0.04 seconds under the force that the wanted velocity asks for.

        A command beyond the highest speed keeps its direction; one that is not a number means standing still.
        Impossible states stay as they are. Nothing here is random: the generator is not used.
        """
        config = self.config
        command = actions.double().nan_to_num(0.0, 1e30, -1e30)
        command = command / (command.norm(dim=-1, keepdim=True) / config.highest_speed).clamp(min=1)
        free = in_open_cell(state[:, :2], state[:, 4])[0] & state.isfinite().all(-1)
        body = state[free].double().cpu().numpy()
        velocity = body[:, 2:4].clip(-HIGHEST_SPEED, HIGHEST_SPEED)
        force = pushing_force(
            velocity, command[free].cpu().numpy(), config.simulation_steps, config.force_limit
        )
        pushed = push(body[:, :4], force, body[:, 4].astype(np.int64), config.simulation_steps)
        pushed[:, 2:] = pushed[:, 2:].clip(-HIGHEST_SPEED, HIGHEST_SPEED)  # as the next step would do first
        moved = state.clone()
        moved[free, :4] = torch.from_numpy(pushed).to(moved)
        return moved

    def observe(self, state: Float[Tensor, "B 5"]) -> Observation:
        """Pictures from above and velocities, which no picture shows."""
        layouts = torch.where(is_layout(state[:, 4]), state[:, 4], 0).long()
        return Observation(draw(layouts, state[:, :2]), state[:, 2:4].clone())

    def reached(self, state: Float[Tensor, "B 5"], goal: Float[Tensor, "B 5"]) -> Bool[Tensor, " B"]:
        """Reached when the ball's centre is within half a metre (half a cell) of the goal, at any speed."""
        return (state[:, :2] - goal[:, :2]).norm(dim=-1) < self.config.goal_radius

    def cost_to_go(self, state: Float[Tensor, "B 5"], goal: Float[Tensor, "B 5"]) -> Float[Tensor, " B"]:
        """Metres of the ball's exact shortest path to the goal's centre, whatever its velocity."""
        same = state[:, 4] == goal[:, 4]
        return shortest_path(state[:, :2], goal[:, :2], state[:, 4]).masked_fill(~same, torch.inf)

    def is_possible(self, state: Float[Tensor, "B 5"]) -> Bool[Tensor, " B"]:
        """In an open cell of a maze, hardly pressed into a wall, no axis faster than the highest speed."""
        known = in_open_cell(state[:, :2], state[:, 4])[0]
        layouts = torch.where(known, state[:, 4], ALL_OPEN)
        roomy = clearance(state[:, :2], layouts) >= RADIUS - PRESSED
        slow = (state[:, 2:4].abs() <= HIGHEST_SPEED * (1 + 1e-6)).all(-1)
        return known & roomy & slow & state.isfinite().all(-1)

    def sample_tasks(
        self, count: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "B 5"], Float[Tensor, "B 5"]]:
        """Ends in the central halves of cells as far apart as the configuration says, at rest.

        Only held-out mazes, in turns: `count` tasks use each of the 40 equally often, as far as they go.
        """
        pairs = {layout: self._pairs(layout) for layout in maze_sets().held_out}
        mazes = [layout for layout, ends in pairs.items() if len(ends)]
        if not mazes:
            raise InputError(
                f"no held-out maze has cells {self.config.nearest_cells} to {self.config.farthest_cells} "
                f"steps apart; the longest path has 7"
            )
        layouts = _in_turns(torch.tensor(mazes), count, generator)
        draw = torch.rand(count, 5, generator=generator)
        numbers = layouts.tolist()
        chosen = [
            pairs[number][int(part * len(pairs[number]))]
            for number, part in zip(numbers, draw[:, 0].tolist(), strict=True)
        ]
        cells = torch.stack(chosen) if chosen else torch.zeros(0, 2, dtype=torch.long)
        start = cell_centre(cells[:, 0]) + CENTRAL * (draw[:, 1:3] - 0.5)
        goal = cell_centre(cells[:, 1]) + CENTRAL * (draw[:, 3:] - 0.5)
        return _at_rest(start, layouts), _at_rest(goal, layouts)

    def sample_states(self, like: Float[Tensor, "B 5"], generator: torch.Generator) -> Float[Tensor, "B 5"]:
        """At rest, uniform over the open cells of the same maze, off the walls by the ball's radius."""
        draw = torch.rand(len(like), 3, generator=generator, device=generator.device).to(like.device)
        layouts = like[:, 4]
        free = open_cells(layouts).flatten(1)
        wanted = (draw[:, 0] * free.sum(-1)).floor()[:, None]
        cells = ((free.long().cumsum(-1) - 1 == wanted) & free).long().argmax(-1)
        places = cell_centre(cells) + SPREAD * (draw[:, 1:] - 0.5)
        return _at_rest(places, layouts).to(like)

    def sample_recording(self, count: int, generator: torch.Generator) -> Float[Tensor, "B 5"]:
        """First states of recordings: training mazes in turns, any place, any direction, speeds up to 5."""
        layouts = _in_turns(torch.tensor(maze_sets().training), count, generator)
        still = self.sample_states(_at_rest(torch.zeros(count, 2), layouts), generator)
        return torch.cat([still[:, :2], self.sample_commands(count, generator), still[:, 4:]], dim=-1)

    def sample_commands(self, count: int, generator: torch.Generator) -> Float[Tensor, "B 2"]:
        """Velocities of uniform direction and uniform size up to the highest speed."""
        draw = torch.rand(count, 2, generator=generator, device=generator.device)
        angle, size = 2 * math.pi * draw[:, 0], self.config.highest_speed * draw[:, 1]
        return torch.stack([size * angle.cos(), size * angle.sin()], dim=-1)

    def apart(self, state: Float[Tensor, "B 5"], goal: Float[Tensor, "B 5"]) -> Bool[Tensor, " B"]:
        """True where the ball cannot pass along the straight line."""
        layouts = state[:, 4]
        possible = (layouts == goal[:, 4]) & in_open_cell(state[:, :2], layouts)[0]
        possible &= in_open_cell(goal[:, :2], layouts)[0]
        known = torch.where(possible, layouts, ALL_OPEN)
        start, end = (pressed_out(place[:, :2], known) for place in (state, goal))
        return ~(in_sight(start, end, known) & possible)

    def typical_actions(self) -> Float[Tensor, "K 2"]:
        """Velocities at a quarter, a half and three quarters of the highest speed, in sixteen directions."""
        angle = 2 * math.pi * torch.arange(DIRECTIONS) / DIRECTIONS
        ring = torch.stack([angle.cos(), angle.sin()], dim=-1)
        return torch.cat([self.config.highest_speed / HIGHEST_SPEED * speed * ring for speed in SPEEDS])

    def positions(self, state: Float[Tensor, "*batch 5"]) -> Float[Tensor, "*batch 2"]:
        """Where the ball is, in pixels."""
        return to_pixels(state[..., :2])

    def scenery(self, state: Float[Tensor, " 5"]) -> tuple[Patch, ...]:
        """The walls row by row, neighbours joined, cut at the picture's edge."""
        free = torch.nn.functional.pad(open_cells(state[4]), (1, 1, 1, 1))
        patches: list[Patch] = []
        for row, line in enumerate(free.tolist()):
            text = "".join("." if cell else "#" for cell in line) + "."
            start = 0
            for column, cell in enumerate(text):
                if cell == ".":
                    if column > start:
                        patches.append(_wall(row - 1, start - 1, column - 1))
                    start = column + 1
        return tuple(patches)

    def _pairs(self, layout: int) -> Tensor:
        """Cells of starts and goals that are as far apart as they should be."""
        steps = cell_distances(layout)
        config = self.config
        return (
            (steps >= config.nearest_cells) & (steps <= config.farthest_cells) & steps.isfinite()
        ).nonzero()


def _in_turns(layouts: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` layouts in random order, each before any comes again."""
    rounds = -(-count // len(layouts))
    orders = [torch.randperm(len(layouts), generator=generator) for _ in range(rounds)]
    return layouts[torch.cat([*orders, torch.zeros(0, dtype=torch.long)])[:count]]


def _at_rest(places: Float[Tensor, "B 2"], layouts: Tensor) -> Float[Tensor, "B 5"]:
    """States without velocity."""
    return torch.cat([places, torch.zeros_like(places), layouts[:, None].to(places)], dim=-1)


def _wall(row: int, first: int, end: int) -> Patch:
    """Cells `first` to `end` - 1 of a row (-1 is the ring) as a rectangle in pixels."""
    half = SIDE / 2
    corners = torch.tensor([[first - half, half - row], [end - half, half - row - 1]])
    low, high = to_pixels(corners).clamp(-0.5, SIZE - 0.5).tolist()
    return Patch("wall", (low[0], low[1]), (high[0], high[1]))
