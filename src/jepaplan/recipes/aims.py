"""What a decision is made for: a goal, the distance that reads it, and what that is measured in.

    wanted                  goal                 distance                       measured in
    to see a picture        PictureGoal          the one the run plans with     steps, or latent units
    to be at a place        GivenGoal            StateDistance                  pixels, along a straight line
    to be in a box, a ball  box_goal, ball_goal  BoxDistance, BallDistance      the same; 0 inside
    what a value says       ValueAlone           RemainingCost(WithoutGoal(V))  what V expects to pay

Places are read off latents by a probe. A value compares latents, and a prior too, so both are left out of a
plan to a place: what lies between is not seen from there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from jepaplan.control.goals import GivenGoal, Goal, PictureGoal, ValueAlone, ball_goal, box_goal
from jepaplan.costs.compose import WeightedSum
from jepaplan.costs.obstacles import BallsClearance, ObstacleClearance
from jepaplan.costs.probes import BallDistance, BoxDistance, StateDistance
from jepaplan.costs.steps import StepDistance
from jepaplan.interfaces import Distance
from jepaplan.models.value_heads import ReadValue
from jepaplan.recipes.experiment import Experiment
from jepaplan.recipes.run import LoadedRun
from jepaplan.recipes.state_probe import StateProbe
from jepaplan.recipes.system import baseline_distance
from jepaplan.recipes.value_learning import ValueLearning, head_key, heads_of
from jepaplan.types import InputError, Observation


@dataclass(frozen=True, kw_only=True)
class Aim:
    """A goal for one problem, and what it is pursued with."""

    goal: Goal
    distance: Distance | StepDistance
    experiment: Experiment  # the run's, with the cost and the control that suit the goal
    unit: str  # of the distance, in words
    note: str = ""  # what of the run does not count for this goal; "": all does
    probe: StateProbe | None = None
    clearance: BallsClearance | None = None  # from what plans should keep away from
    also: WeightedSum | None = None  # what is to be paid beside the run's cost


def avoiding(aim: Aim, probe: StateProbe, balls: Sequence[tuple[float, ...]], weight: float) -> Aim:
    """The same, keeping out of balls: their centres, and last their radii."""
    wrong = [
        ball
        for ball in balls
        if len(ball) != probe.width + 1 or not all(map(math.isfinite, ball)) or ball[-1] <= 0
    ]
    if wrong:
        raise InputError(
            f"--avoid takes {probe.width + 1} numbers, a place and a positive radius, in {probe.unit}; got "
            f"{list(wrong[0])}. Recordings lie between {_rounded(probe.low)} and {_rounded(probe.high)}"
        )
    if not 0 < weight < math.inf:
        raise InputError(f"--avoid-weight is a positive number; got {weight:g}")
    rows = torch.tensor(balls)
    clearance = BallsClearance(probe.read, rows[:, :-1], rows[:, -1])
    return replace(
        aim, probe=probe, clearance=clearance, also=weight * ObstacleClearance(clearance=clearance)
    )


def picture_aim(run: LoadedRun, goal: Observation) -> Aim:
    """To see this."""
    experiment = run.experiment
    if not experiment.learns_value:
        kind = "squared " if experiment.baseline_distance == "mean_square" else ""
        return Aim(
            goal=PictureGoal(goal),
            distance=baseline_distance(experiment),
            experiment=replace(experiment, cost=experiment.cost.without_value()),
            unit=f"{kind}latent units",
        )
    head = experiment.cost.value
    ignored = head is not None and not _head(run, head).takes_goals
    return Aim(
        goal=PictureGoal(goal),
        distance=run.system.steps_to_go(experiment.cost),
        experiment=experiment,
        unit=_unit_of_value(experiment),
        note=f"value head {head!r} knows no goals: the picture does not count" if ignored else "",
    )


def value_alone_aim(run: LoadedRun, stage: str) -> Aim:
    """What the value head of that stage says, one that knows no goals."""
    alone = [name for name in run.system.values if not _head(run, name).takes_goals]
    if stage not in alone:
        raise InputError(
            f"--value-alone {stage} names no value head without goals; this run has "
            f"{', '.join(alone) or 'none'}. Such a head learns with head.goal=False, from rewards or success"
        )
    cost = run.experiment.cost
    if cost.value != stage:  # how another head is read says nothing of this one
        cost = replace(cost, value=stage, reading=None)
    experiment = replace(run.experiment, cost=cost, control=replace(run.experiment.control, prior=None))
    return Aim(
        goal=ValueAlone(1),
        distance=run.system.steps_to_go(cost),
        experiment=experiment,
        unit=_unit_of_value(experiment),
    )


def place_aim(run: LoadedRun, probe: StateProbe, state: tuple[float, ...]) -> Aim:
    """To be there."""
    wanted = _numbers(probe, "--goal-state", state)
    return _stated(run, probe, (GivenGoal(wanted), StateDistance(probe.read)), (wanted, wanted))


def box_aim(run: LoadedRun, probe: StateProbe, low: tuple[float, ...], high: tuple[float, ...]) -> Aim:
    """To be between two corners."""
    corners = _numbers(probe, "--goal-low", low), _numbers(probe, "--goal-high", high)
    return _stated(run, probe, (box_goal(*corners), BoxDistance(probe.read)), corners)


def ball_aim(run: LoadedRun, probe: StateProbe, centre: tuple[float, ...], radius: float) -> Aim:
    """To be within a radius of a place."""
    middle = _numbers(probe, "--goal-centre", centre)
    if not 0 <= radius < math.inf:
        raise InputError(f"--goal-radius is a length, 0 or more; got {radius}")
    goal = ball_goal(middle, torch.tensor([radius]))
    return _stated(run, probe, (goal, BallDistance(probe.read)), (middle - radius, middle + radius))


def _stated(
    run: LoadedRun,
    probe: StateProbe,
    wish: tuple[Goal, Distance],
    reach: tuple[Float[Tensor, "1 W"], Float[Tensor, "1 W"]],
) -> Aim:
    """An aim of places between two corners, which must not all lie outside of what was recorded."""
    low, high = reach
    if bool((low > probe.high).any() or (high < probe.low).any()):
        raise InputError(
            f"the goal lies between {low[0].tolist()} and {high[0].tolist()}, where nothing was recorded: "
            f"recordings lie between {_rounded(probe.low)} and {_rounded(probe.high)}, in {probe.unit}"
        )
    experiment, control = run.experiment, run.experiment.control
    unused = [
        name
        for name, used in (
            ("the learned value", experiment.learns_value),
            ("the action prior", control.prior is not None),
        )
        if used
    ]
    goal, distance = wish
    return Aim(
        goal=goal,
        distance=distance,
        experiment=replace(
            experiment, cost=experiment.cost.without_value(), control=replace(control, prior=None)
        ),
        unit=f"{probe.unit}, along a straight line",
        note=f"{' and '.join(unused)} cannot read places and {'does' if len(unused) == 1 else 'do'} not count"
        if unused
        else "",
        probe=probe,
    )


def _numbers(probe: StateProbe, option: str, given: tuple[float, ...]) -> Float[Tensor, "1 W"]:
    if len(given) != probe.width or any(math.isnan(number) for number in given):
        raise InputError(
            f"{option} takes {probe.width} numbers, in {probe.unit}; got {list(given)}. Recordings lie "
            f"between {_rounded(probe.low)} and {_rounded(probe.high)}"
        )
    return torch.tensor([given])


def _rounded(state: Float[Tensor, " W"]) -> list[float]:
    return [round(number, 2) for number in state.tolist()]


def _head(run: LoadedRun, name: str) -> ReadValue:
    return cast(ReadValue, run.system.values[name])


def _unit_of_value(experiment: Experiment) -> str:
    """What the learned value counts."""
    name = experiment.cost.value
    if name is None:
        ways = experiment.distance.kind == "imagined_ways"
        return "steps along imagined ways" if ways else "steps, as the learned distance counts them"
    head = next(one for one in heads_of(experiment.stages) if head_key(one.name) == name)
    if not isinstance(head, ValueLearning):
        return f"steps, as value head {name!r} counts them"
    what = {"goal": "steps", "success": "steps to success", "recorded": "minus recorded rewards to come"}
    discounted = f", discounted by {head.discount:g}" if head.discount < 1 else ""
    return f"{what[head.reward]}, as value head {name!r} counts them{discounted}"
