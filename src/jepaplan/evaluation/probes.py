"""What the latents are good for: how imagination drifts, and whether distance means distance.

Measured on layouts and paths drawn afresh, with the true states that training never sees.

    rollout errors      the imagined latent after n steps against the encoded truth, beside "nothing moves"
    rank correlation    Spearman's, of the learned distance with the geodesic, where the straight way is the
                        way and where it is not
    value diagnosis     what the best of many states by the distance truly costs, and what its numbers mean
    greedy descent      take the move whose true outcome is nearest to the goal: does that find the way?
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepaplan.data.walks import Walks, find_walker
from jepaplan.envs.wall import WallWorld
from jepaplan.evaluation.references import GeodesicDistance, encode_states
from jepaplan.evaluation.statistics import SuccessRate, bootstrap_interval, spearman
from jepaplan.evaluation.surveys import Surveyed, fresh_layouts, passed, placed
from jepaplan.evaluation.tasks import Instances
from jepaplan.evaluation.value_diagnostics import ValueDiagnosis, diagnose
from jepaplan.interfaces import Distance, World, WorldModel


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

    pairs: str  # "same room" and "other room", or "straight way" and "way round"
    mean: float
    low: float
    high: float
    layouts: int


@dataclass(frozen=True, kw_only=True)
class Descent:
    """One-step greedy descent under the true dynamics."""

    way_found: SuccessRate  # at some time nothing lay between the state and the goal any more
    reached: SuccessRate
    paths: Float[Tensor, "B frames 2"]


def fresh_walks(world: World, count: int, steps: int, generator: torch.Generator) -> Walks:
    """Walks without an aim, of any length, in freshly drawn layouts."""
    return find_walker(world.name, free=True)(world, count, steps, generator)


def fresh_states(world: World, count: int, generator: torch.Generator) -> Float[Tensor, "B W"]:
    """States anywhere in freshly drawn layouts."""
    return world.sample_states(fresh_layouts(world, count, generator), generator)


@torch.no_grad()
def rollout_errors(
    world: World,
    world_model: WorldModel,
    probe: nn.Module,
    walks: Walks,
    steps: Sequence[int] = (1, 15, 50, 96),
    moves_from: int = 0,
) -> tuple[RolloutError, ...]:
    """Imagine along the actions of `walks`; compare with the world at those `steps` that fit.

    Latents are compared from number `moves_from` on, the first that an action may change.
    """

    def apart(one: Tensor, other: Tensor) -> float:
        return float((one - other)[:, moves_from:].norm(dim=-1).mean())

    length = walks.actions.shape[1]
    first = encode_states(world, world_model.encode, walks.states[:, 0])
    # frames of different paths: how far apart latents are that have nothing to do with each other
    typical = max(apart(first, first.roll(1, dims=0)), 1e-12)
    imagined, errors = first, list[RolloutError]()
    actions = world_model.action_units.normalise(walks.actions)
    for number in range(1, length + 1):
        imagined = world_model.step(imagined, actions[:, number - 1])
        if number not in steps:
            continue
        place = world.positions(walks.states[:, number])
        true = encode_states(world, world_model.encode, walks.states[:, number])
        errors.append(
            RolloutError(
                steps=number,
                pixels=float((probe(imagined) - place).norm(dim=-1).mean()),
                still_pixels=float((probe(first) - place).norm(dim=-1).mean()),
                latent=apart(imagined, true) / typical,
                still_latent=apart(first, true) / typical,
            )
        )
    return tuple(errors)


@torch.no_grad()
def rank_correlations(
    world: World,
    distance: Distance,
    generator: torch.Generator,
    layouts: int = 50,
    pairs: int = 64,
    goals: int | None = None,
) -> tuple[RankCorrelation, ...]:
    """Correlations of pairs that are not `apart` and of those that are, layout by layout.

    With `goals` so many different ones in a layout, for distances that have to prepare for each; without it
    every pair has its own.

    No task has its goal in another layout. Pairs without a way are left out, and so is a kind of pair that a
    world does not have. `distance` compares states; wrap a learned one in `RenderedDistance`.
    """
    geodesic, found = GeodesicDistance(world), {False: list[float](), True: list[float]()}
    for _ in range(layouts):
        like = fresh_layouts(world, 1, generator).repeat(8 * pairs, 1)
        source, goal = (world.sample_states(like, generator) for _ in range(2))
        if goals is not None:
            goal = goal[torch.arange(len(goal)) % goals]
        apart = world.apart(source, goal)
        for kind, ranks in found.items():
            chosen = (apart == kind).nonzero()[:pairs, 0]
            true = geodesic(source[chosen], goal[chosen])
            chosen, true = chosen[true.isfinite()], true[true.isfinite()]
            if len(chosen) > 2:
                rank = spearman(distance(source[chosen], goal[chosen]), true)
                # a distance that never changes ranks nothing
                ranks.append(0.0 if math.isnan(rank) else rank)
    near, far = ("same room", "other room") if isinstance(world, WallWorld) else ("straight way", "way round")
    return tuple(
        _summary(name, found[kind], generator) for kind, name in ((False, near), (True, far)) if found[kind]
    )


@torch.no_grad()
def value_diagnosis(
    world: World, distance: Distance, generator: torch.Generator, layouts: int = 20, candidates: int = 32
) -> ValueDiagnosis:
    """How well `distance` chooses among `candidates` states, for one goal in each of so many layouts.

    Its unit and the world's may differ: calibration says what a number is worth, not whether it is off.
    """
    geodesic = GeodesicDistance(world)
    predicted, true = list[Tensor](), list[Tensor]()
    for _ in range(layouts):
        like = fresh_layouts(world, 1, generator).repeat(candidates + 1, 1)
        states = world.sample_states(like, generator)
        predicted.append(distance(states[1:], states[:1]).cpu())
        true.append(geodesic(states[1:], states[:1]).cpu())
    return diagnose(torch.stack(predicted), torch.stack(true), generator, bins=4)


@torch.no_grad()
def greedy_descent(
    world: World, instances: Instances, distance: Distance, steps: int | None = None
) -> Descent:
    """Try the world's typical actions with its true dynamics; take the one that ends nearest."""
    actions = world.typical_actions()
    goals, state, places = instances.goals, instances.starts, [world.positions(instances.starts)]
    way_found, reached = passed(world, state, goals), world.reached(state, goals)
    for _ in range(steps or world.episode_steps):
        outcomes = world.step(
            state.repeat_interleave(len(actions), dim=0), actions.repeat(len(state), 1)
        ).unflatten(0, (len(state), len(actions)))
        best = distance(outcomes, goals[:, None]).argmin(dim=1)
        moved = outcomes[torch.arange(len(best)), best]
        state = torch.where(reached[:, None], state, moved)
        way_found = way_found | passed(world, state, goals)
        reached = reached | world.reached(state, goals)
        places.append(world.positions(state))
    return Descent(
        way_found=SuccessRate(int(way_found.sum()), len(way_found)),
        reached=SuccessRate(int(reached.sum()), len(reached)),
        paths=torch.stack(places, dim=1),
    )


@torch.no_grad()
def distance_map(
    world: World, distance: Distance, goal: Float[Tensor, " W"], stride: int = 1
) -> Float[Tensor, "rows columns"]:
    """Distance to `goal` from every `stride`-th pixel of its layout; nan if blocked or without a way."""
    _, height, width = world.image
    rows, columns = torch.meshgrid(
        torch.arange(0, height, stride).float(), torch.arange(0, width, stride).float(), indexing="ij"
    )
    places = torch.stack([columns, rows], dim=-1).flatten(0, 1).to(goal)
    states = placed(world, goal.expand(len(places), -1), places)
    # Sampled states are near their pixel, not on it.
    off = (world.positions(states) - places).abs().amax(-1)
    free = world.is_possible(states) & (off <= (0 if isinstance(world, Surveyed) else stride))
    values = torch.full((len(places),), math.nan)
    values[free] = distance(states[free], goal[None]).float()
    return values.masked_fill(values.isinf(), math.nan).view(rows.shape)


def _summary(pairs: str, values: list[float], generator: torch.Generator) -> RankCorrelation:
    correlations = torch.tensor(values)
    low, high = bootstrap_interval(correlations, generator)
    mean = float(correlations.mean())
    return RankCorrelation(pairs=pairs, mean=mean, low=low, high=high, layouts=len(values))
