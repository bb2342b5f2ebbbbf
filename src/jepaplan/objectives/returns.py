"""What a state has earned when all is over: returns, and the targets from which values learn them.

Sutton and Barto, "Reinforcement Learning: An Introduction", 2018, chapters 6 and 12; the recursion of the
lambda-return as in Hafner et al., "Dream to Control", arXiv:1912.01603:

    G_t = r_t + gamma (1 - d_t) ((1 - lambda) V(s_{t+1}) + lambda G_{t+1}),      G_{T-1} with V(s_T) for both

    paper     here
    r_t       rewards       of the action that leads from t to t+1
    d_t       terminal      nothing is earned after that action; the end of a recording is not such an end
    V         following     values of the next states, often with a last axis of ensemble members
    gamma     discount
    lambda    trace_decay   0: one step, then the value; 1: all that was seen, then the value

A goal costs one per step until it is reached, so n steps are worth -(1 - gamma^n) / (1 - gamma), minus n
without discount (`value_of_steps`). A state is at the goal before it acts: there r = 0 and d = 1.
"""

import math

import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

from jepaplan.types import InputError


def value_of_steps(steps: Real[Tensor, "*batch"], discount: float) -> Float[Tensor, "*batch"]:
    """The value of being so many steps from the goal."""
    steps = steps if steps.is_floating_point() else steps.float()
    if discount == 1:
        return -steps
    # expm1 keeps the digits of few steps under a discount near 1.
    return torch.expm1(steps * math.log(discount)) / (1 - discount)


def steps_of_value(values: Float[Tensor, "*batch"], discount: float) -> Float[Tensor, "*batch"]:
    """The steps that a value stands for; infinite at and below the value of never."""
    if discount == 1:
        return -values
    return torch.log1p(((1 - discount) * values).clamp(min=-1)) / math.log(discount)


def rewards_until(reached: Bool[Tensor, "*batch frames"]) -> tuple[Tensor, Tensor]:
    """Rewards and ends of the transitions between frames: -1 per step, nothing more once reached."""
    here = reached[..., :-1]
    return -(~here).float(), here


def lambda_returns(
    rewards: Float[Tensor, "B T"],
    terminal: Bool[Tensor, "B T"],
    following: Float[Tensor, "B T *members"],
    *,
    discount: float,
    trace_decay: float,
) -> Float[Tensor, "B T *members"]:
    """G_t of every transition of every segment."""
    extra = (...,) + (None,) * (following.ndim - 2)
    rewards, kept = rewards[extra], discount * (~terminal).to(rewards.dtype)[extra]
    returns = following[:, -1]
    found: list[Tensor] = []
    for step in reversed(range(following.shape[1])):
        after = torch.lerp(following[:, step], returns, trace_decay)
        returns = rewards[:, step] + kept[:, step] * after
        found.append(returns)
    return torch.stack(found[::-1], dim=1)


def returns_to_go(
    rewards: Float[Tensor, " K"],
    terminal: Bool[Tensor, " K"],
    lengths: Int[Tensor, " E"],
    *,
    discount: float,
    tail: float = 0.0,
) -> Float[Tensor, " K"]:
    """Monte-Carlo returns of the flat actions of all episodes: what was earned from each to its end.

    `tail` is the value of what an unfinished episode would still have earned: -1 / (1 - discount) if it would
    never have arrived, 0 to leave out what nobody saw.
    """
    if int(lengths.sum()) != len(rewards):
        raise InputError(f"episodes of {int(lengths.sum())} actions need as many rewards; got {len(rewards)}")
    first = lengths.cumsum(0) - lengths
    running = torch.full((len(lengths),), tail, dtype=rewards.dtype)
    returns, kept = torch.empty_like(rewards), discount * (~terminal).to(rewards.dtype)
    for step in reversed(range(int(lengths.max()))):
        acting = lengths > step
        rows = first[acting] + step
        returns[rows] = rewards[rows] + kept[rows] * running[acting]
        running[acting] = returns[rows]
    return returns


def balanced_pairs(
    lengths: Int[Tensor, " E"], count: int, generator: torch.Generator, longest: int | None = None
) -> tuple[Int[Tensor, " count"], Int[Tensor, " count"]]:
    """Frames (earlier, later) of one episode each, all numbers of steps between them equally likely.

    All pairs of an episode, equally likely, are mostly short; short ones do not teach what far is
    (arXiv:2605.22164). `lengths` counts the actions of episodes whose frames lie one after the other; pairs
    are at most `longest` steps apart. Of the episodes that are long enough, each is equally likely.
    """
    most = int(lengths.max())
    longest = most if longest is None else min(longest, most)
    if longest < 1:
        raise InputError(f"pairs are a step or more apart; got longest={longest}")
    by_length = lengths.argsort(descending=True)
    steps = torch.randint(1, longest + 1, (count,), generator=generator)
    draw = torch.rand(2, count, generator=generator, dtype=torch.float64)
    long_enough = len(lengths) - torch.searchsorted(lengths.sort().values, steps)
    episode = by_length[(draw[0] * long_enough).long()]
    starts = (lengths + 1).cumsum(0) - lengths - 1
    earlier = starts[episode] + (draw[1] * (lengths[episode] - steps + 1)).long()
    return earlier, earlier + steps
