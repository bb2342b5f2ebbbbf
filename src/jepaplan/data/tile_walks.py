"""Walks through the tile rooms: most of them free, the others loosely led to a goal.

Headings turn by von Mises angles and lengths follow a truncated normal law, as in the wall sets (PLDM,
arXiv:2502.14819). Free walks alone hardly ever fetch a key and open a door, so the others take, at each
step, the best of a few such moves by the true cost-to-go: led walks still bump into walls and take wrong
turns, but they arrive.

    free walks    start anywhere, in any mode that can occur; a step that would end in a pit for ever is drawn
                  anew nearly always, so that most of a recording is not a picture of a dot in a pit
    led walks     half of them start as tasks do; a walk that has arrived, or cannot any more, gets a new goal
    eventful      in place of led walks where there is a key: of many such walks those in which most keys are
                  taken and doors opened. Without choice that is one step in a hundred, too few to learn

Departs from the wall sets: after a bump the heading is now and then drawn anew. Not always: bumps are what a
world model learns walls from (docs/lab_notes.md).
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jepaplan.data.step_laws import heading_turns, truncated_normal
from jepaplan.data.walks import Walks
from jepaplan.envs.tile_rooms import TileWorld
from jepaplan.types import InputError

LED = 0.4  # share of the walks that are led to goals
EVENTFUL = 0.7  # the same where there is a key: of walks with events
DRAWN = 6  # led walks of which one is kept for its events
TASKS = 0.5  # share of the led walks that begin as tasks do
CHOICES = 4  # moves of which a led walk takes the best: half of them turn a little, half go anywhere
DARING = 0.2  # share of the steps into a pit that a free walk takes
GIVING_UP = 0.25  # share of the bumps after which a walk turns


def tile_walks(world: TileWorld, count: int, steps: int, generator: torch.Generator) -> Walks:
    """`count` walks of `steps` actions in random layouts and random order, some of them led to goals."""
    _check(count, steps)
    led = round((EVENTFUL if world.flag_names else LED) * count)
    walk = eventful_walks if world.flag_names else led_walks
    parts = [walk(world, led, steps, generator), free_tile_walks(world, count - led, steps, generator)]
    both = Walks(torch.cat([part.states for part in parts]), torch.cat([part.actions for part in parts]))
    return both.select(torch.randperm(count, generator=generator))


def free_tile_walks(world: TileWorld, count: int, steps: int, generator: torch.Generator) -> Walks:
    """Walks that aim at nothing."""
    _check(count, steps)
    state = _anywhere(world, count, generator)
    heading = _any_heading((count,), generator)
    states, actions = [state], []
    for _ in range(steps):
        moves = _moves(world, heading, 2, generator)
        first, second = (world.step(state, move) for move in moves.unbind(1))
        shy = torch.rand(count, generator=generator) >= DARING
        again = (_in_pit(world, first) & shy)[:, None]
        action, after = torch.where(again, moves[:, 1], moves[:, 0]), torch.where(again, second, first)
        heading = _next_heading(state, action, after, generator)
        state = after
        states.append(state)
        actions.append(action)
    return Walks(torch.stack(states, dim=1), torch.stack(actions, dim=1))


def led_walks(world: TileWorld, count: int, steps: int, generator: torch.Generator) -> Walks:
    """Walks that take the best of a few random moves towards one goal after another."""
    _check(count, steps)
    state, goal = world.sample_tasks(count, generator)
    elsewhere = (torch.rand(count, generator=generator) >= TASKS)[:, None]
    state = torch.where(elsewhere, world.sample_states(state, generator), state)
    goal = torch.where(elsewhere, world.sample_states(state, generator), goal)
    heading = _any_heading((count,), generator)
    row, states, actions = torch.arange(count), [state], []
    for _ in range(steps):
        moves = _moves(world, heading, CHOICES, generator)
        after = world.step(state.repeat_interleave(CHOICES, 0), moves.flatten(0, 1))
        cost = world.cost_to_go(after, goal.repeat_interleave(CHOICES, 0)).view(count, CHOICES)
        least, best = cost.min(dim=1)
        action, after = moves[row, best], after.view(count, CHOICES, -1)[row, best]
        heading = _next_heading(state, action, after, generator)
        state = after
        finished = (world.reached(state, goal) | least.isinf())[:, None]
        goal = torch.where(finished, world.sample_states(goal, generator), goal)
        states.append(state)
        actions.append(action)
    return Walks(torch.stack(states, dim=1), torch.stack(actions, dim=1))


def eventful_walks(world: TileWorld, count: int, steps: int, generator: torch.Generator) -> Walks:
    """Of many led walks those in which most keys are taken and doors opened."""
    walks = led_walks(world, DRAWN * count, steps, generator)
    mode = world.split(walks.states.flatten(0, 1))[1].view(walks.states.shape[:2])
    events = (mode[:, 1:] != mode[:, :-1]).sum(dim=1)
    return walks.select(events.argsort(descending=True, stable=True)[:count])


def _moves(
    world: TileWorld, heading: Float[Tensor, " B"], choices: int, generator: torch.Generator
) -> Float[Tensor, "B choices 2"]:
    """Displacements: the first half turn a little from `heading`, the others go anywhere."""
    config, shape = world.config, (len(heading), choices)
    angle = heading[:, None] + heading_turns(shape, config.heading_concentration, generator)
    anywhere = _any_heading(shape, generator)
    angle = torch.where(torch.arange(choices) < choices / 2, angle, anywhere)
    law = (config.step_mean, config.step_std, config.step_min, config.step_max)
    length = truncated_normal(shape, law, generator)
    return torch.stack([length * angle.cos(), length * angle.sin()], dim=-1)


def _any_heading(shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "*shape"]:
    return 2 * math.pi * torch.rand(shape, generator=generator)


def _next_heading(
    before: Float[Tensor, "B W"],
    action: Float[Tensor, "B 2"],
    after: Float[Tensor, "B W"],
    generator: torch.Generator,
) -> Float[Tensor, " B"]:
    """The direction of the last move; after a bump now and then any direction."""
    gives_up = torch.rand(len(action), generator=generator) < GIVING_UP
    turns = (before == after).all(-1) & gives_up
    heading = torch.atan2(action[:, 1], action[:, 0])
    return torch.where(turns, _any_heading((len(action),), generator), heading)


def _in_pit(world: TileWorld, state: Float[Tensor, "B W"]) -> Bool[Tensor, " B"]:
    """True where the dot is in a pit."""
    place, _, number = world.split(state)
    return (world.layouts(state.device).pits.centre[number] == place[:, None]).all(-1).any(-1)


def _anywhere(world: TileWorld, count: int, generator: torch.Generator) -> Float[Tensor, "B W"]:
    """States in random layouts."""
    return world.sample_states(world.sample_tasks(count, generator)[0], generator)


def _check(count: int, steps: int) -> None:
    if count < 0 or steps < 1:
        raise InputError(f"need count >= 0 walks of steps >= 1 actions; got {count} and {steps}")
