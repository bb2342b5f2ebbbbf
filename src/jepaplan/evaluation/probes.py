"""What the latents are good for: how imagination drifts, and whether distance means distance.

Measured on layouts and paths drawn afresh, with the true states that training never sees.

    rollout errors      the imagined latent after n steps against the encoded truth, beside "nothing moves"
    rank correlation    Spearman's, of the learned distance with the geodesic, in a room and across rooms
    greedy descent      take the move whose true outcome is nearest to the goal: does that find the door?
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from jepaplan.data.wall_walks import free_walks, simulate
from jepaplan.envs.wall import WallLayouts, WallWorld
from jepaplan.evaluation.references import EncodeFrames, GeodesicDistance
from jepaplan.evaluation.statistics import SuccessRate, bootstrap_interval, spearman
from jepaplan.evaluation.tasks import Instances
from jepaplan.interfaces import Distance, WorldModel


@dataclass(frozen=True, kw_only=True)
class Paths:
    """True paths in known layouts, with the actions that made them."""

    layouts: WallLayouts
    actions: Float[Tensor, "B T 2"]  # environment units
    positions: Float[Tensor, "B T+1 2"]


@dataclass(frozen=True, kw_only=True)
class RolloutError:
    """How far imagination is from the truth after `steps` steps; `still_*` predicts no change."""

    steps: int
    pixels: float  # of the decoded position
    still_pixels: float
    latent: float  # Euclidean, divided by the typical distance of two encoded frames
    still_latent: float


@dataclass(frozen=True, kw_only=True)
class RankCorrelation:
    """Average over layouts of the rank correlation of a distance with the geodesic, with a 95 % interval."""

    pairs: str  # "same room" or "other room"
    mean: float
    low: float
    high: float
    layouts: int


@dataclass(frozen=True, kw_only=True)
class Descent:
    """One-step greedy descent under the true dynamics."""

    through_door: SuccessRate  # ended up in the goal's room at some time
    reached: SuccessRate
    paths: Float[Tensor, "B frames 2"]


def fresh_paths(world: WallWorld, count: int, steps: int, generator: torch.Generator) -> Paths:
    """Walks like the recorded ones, of any length, in freshly drawn layouts."""
    layouts = world.sample_layouts(count, generator)
    start, actions = free_walks(world, layouts, steps, generator)
    positions = simulate(world, start, actions, layouts, generator)
    return Paths(layouts=layouts, positions=positions, actions=actions)


@torch.no_grad()
def rollout_errors(
    world: WallWorld,
    world_model: WorldModel,
    probe: nn.Module,
    paths: Paths,
    steps: Sequence[int] = (1, 15, 50, 96),
) -> tuple[RolloutError, ...]:
    """Imagine along the actions of `paths`; compare with the world at those `steps` that fit."""
    length = paths.actions.shape[1]
    first = encode_positions(world, world_model.encode, paths.layouts, paths.positions[:, 0])
    # frames of different paths: how far apart latents are that have nothing to do with each other
    typical = (first - first.roll(1, dims=0)).norm(dim=-1).mean().clamp(min=1e-12)
    imagined, errors = first, list[RolloutError]()
    actions = world_model.action_units.normalise(paths.actions)
    for number in range(1, length + 1):
        imagined = world_model.step(imagined, actions[:, number - 1])
        if number not in steps:
            continue
        place = paths.positions[:, number]
        true = encode_positions(world, world_model.encode, paths.layouts, place)
        errors.append(
            RolloutError(
                steps=number,
                pixels=float((probe(imagined) - place).norm(dim=-1).mean()),
                still_pixels=float((probe(first) - place).norm(dim=-1).mean()),
                latent=float((imagined - true).norm(dim=-1).mean() / typical),
                still_latent=float((first - true).norm(dim=-1).mean() / typical),
            )
        )
    return tuple(errors)


@torch.no_grad()
def rank_correlations(
    world: WallWorld,
    distance: Distance,
    generator: torch.Generator,
    layouts: int = 50,
    pairs: int = 64,
) -> tuple[RankCorrelation, ...]:
    """Correlations within a room and across rooms, layout by layout: no task has its goal in another layout.

    `distance` compares states; wrap a learned one in `RenderedDistance`.
    """
    geodesic, found = GeodesicDistance(world), {True: list[float](), False: list[float]()}
    for _ in range(layouts):
        one = world.sample_layouts(1, generator)
        layout = WallLayouts(one.wall_x.repeat(8 * pairs), one.door_y.repeat(8 * pairs))
        source, goal = (world.state(world.sample_positions(layout, generator), layout) for _ in range(2))
        together = (source[:, 0] < layout.wall_x) == (goal[:, 0] < layout.wall_x)
        for same in (True, False):
            chosen = (together == same).nonzero()[:pairs, 0]
            if len(chosen) > 2:
                rank = spearman(
                    distance(source[chosen], goal[chosen]), geodesic(source[chosen], goal[chosen])
                )
                # a distance that never changes ranks nothing
                found[same].append(0.0 if math.isnan(rank) else rank)
    return tuple(
        _summary(name, found[same], generator) for same, name in ((True, "same room"), (False, "other room"))
    )


@torch.no_grad()
def greedy_descent(
    world: WallWorld,
    instances: Instances,
    distance: Distance,
    steps: int | None = None,
    headings: int = 16,
) -> Descent:
    """Try `headings` directions at three lengths with the true dynamics; take the move that ends nearest."""
    config = world.config
    angles = torch.arange(headings) * (2 * math.pi / headings)
    directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
    lengths = torch.tensor([config.step_min, config.step_mean, config.step_max])
    moves = (lengths[:, None, None] * directions).flatten(0, 1)
    layouts, goals, positions = instances.layouts, instances.goals, instances.starts
    goal_states, paths = world.state(goals, layouts), [instances.starts]
    side = goals[:, 0] > layouts.wall_x
    half = world.config.wall_half_width
    passed, reached = _beyond(positions, side, layouts, half), world.reached(positions, goals)
    for _ in range(steps or config.episode_steps):
        outcomes = _try_moves(world, positions, moves, layouts)
        states = torch.cat([outcomes, goal_states[:, None, 2:].expand(-1, len(moves), -1)], dim=-1)
        best = distance(states, goal_states[:, None]).argmin(dim=1)
        moved = outcomes[torch.arange(len(best)), best]
        positions = torch.where(reached[:, None], positions, moved)
        passed = passed | _beyond(positions, side, layouts, half)
        reached = reached | world.reached(positions, goals)
        paths.append(positions)
    return Descent(
        through_door=SuccessRate(int(passed.sum()), len(passed)),
        reached=SuccessRate(int(reached.sum()), len(reached)),
        paths=torch.stack(paths, dim=1),
    )


@torch.no_grad()
def distance_map(
    world: WallWorld,
    distance: Distance,
    wall: tuple[float, float],
    goal: tuple[float, float],
    stride: int = 1,
) -> Float[Tensor, "rows columns"]:
    """Distance to `goal` from every `stride`-th pixel, layout (wall_x, door_y); nan if blocked."""
    pixel = torch.arange(0, world.config.size, stride).float()
    rows, columns = torch.meshgrid(pixel, pixel, indexing="ij")
    positions = torch.stack([columns, rows], dim=-1).flatten(0, 1)
    layouts = WallLayouts(
        torch.full((len(positions),), float(wall[0])), torch.full((len(positions),), float(wall[1]))
    )
    free = world.is_free(positions, layouts)
    states = world.state(positions, layouts)[free]
    target = torch.tensor([[*goal, *wall]], dtype=states.dtype)
    values = torch.full((len(positions),), math.nan)
    values[free] = distance(states, target).float()
    return values.view(len(pixel), len(pixel))


def encode_positions(
    world: WallWorld, encode: EncodeFrames, layouts: WallLayouts, positions: Float[Tensor, "B 2"]
) -> Float[Tensor, "B D"]:
    """Latents of the pictures of dots at `positions`."""
    return encode(world.render(positions, layouts))


def _try_moves(
    world: WallWorld, positions: Float[Tensor, "B 2"], moves: Float[Tensor, "K 2"], layouts: WallLayouts
) -> Float[Tensor, "B K 2"]:
    count, options = len(positions), len(moves)
    repeated = layouts.select(torch.arange(count).repeat_interleave(options))
    start = positions.repeat_interleave(options, dim=0)
    target = start + moves.repeat(count, 1)
    stays = world.touches(start, target, repeated)[:, None]
    return torch.where(stays, start, target).view(count, options, 2)


def _beyond(
    positions: Float[Tensor, "B 2"], right: Bool[Tensor, " B"], layouts: WallLayouts, half: int
) -> Bool[Tensor, " B"]:
    """True past the wall, in the room named by `right`."""
    offset = torch.where(right, positions[:, 0] - layouts.wall_x, layouts.wall_x - positions[:, 0])
    return offset > half


def _summary(pairs: str, values: list[float], generator: torch.Generator) -> RankCorrelation:
    correlations = torch.tensor(values)
    low, high = bootstrap_interval(correlations, generator)
    mean = float(correlations.mean())
    return RankCorrelation(pairs=pairs, mean=mean, low=low, high=high, layouts=len(values))
