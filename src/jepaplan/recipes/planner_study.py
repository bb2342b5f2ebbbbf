"""Every planner with every cost, at equal budgets of predictor calls, where value guidance should matter.

    world          why it is here
    OpenRoom       nothing in the way: guidance must cost nothing
    Detour         the way leads away from the goal first
    DeadEnd        traps of shape: near the goal, and no way on
    OneWayDoor, Pits, BreakingKeys    steps that cannot be undone
    WallBig        the two rooms of arXiv:2601.00844

    cost              what is summed along an imagined path z_1..z_H
    goal distance     mean squares of latents at every step: nothing was learned of distance
    terminal value    the learned value at z_H alone
    sum of values     the learned value at every step

All planners look `HORIZON` steps ahead and may ask the predictor about `BUDGET` times per replan; a gradient
counts three times. They share bounds and warm start. One world model and value per world and seed serve all.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from jepaplan.planners.beam import BeamSearch
from jepaplan.planners.cem import CEM
from jepaplan.planners.collocation import Collocation
from jepaplan.planners.descent import Adam, Descent
from jepaplan.planners.gradient import GradientDescent
from jepaplan.planners.hybrid import GradientCEM
from jepaplan.planners.icem import ICEM
from jepaplan.planners.mppi import MPPI
from jepaplan.planners.proposals import NormBound
from jepaplan.planners.shooting import RandomShooting
from jepaplan.planners.tree import TreeSearch
from jepaplan.planners.tree_rules import GumbelHalving
from jepaplan.recipes.costs import CostConfig
from jepaplan.recipes.experiment import ControlConfig, Experiment, PlannerConfig
from jepaplan.recipes.reproduction import Claim, Evaluation, Reproduction, Training
from jepaplan.recipes.tile_rooms import ROOMS, tile_room
from jepaplan.recipes.wall import wall_big_paths

HORIZON = 12
BUDGET = 128 * HORIZON
_BOUNDS = NormBound(max_norm=1.8)
_STEPS = Adam(learning_rate=0.2)

PLANNERS: Mapping[str, PlannerConfig] = {
    "random shooting": RandomShooting(samples=128, horizon=HORIZON, bounds=_BOUNDS),
    "MPPI": MPPI(samples=128, horizon=HORIZON, temperature=0.05, bounds=_BOUNDS),
    "CEM": CEM(samples=32, elites=6, iterations=4, horizon=HORIZON, bounds=_BOUNDS),
    "iCEM": ICEM(samples=42, elites=6, iterations=4, horizon=HORIZON, bounds=_BOUNDS),
    "gradient descent": GradientDescent(
        starts=6, horizon=HORIZON, descent=Descent(steps=6, optimiser=_STEPS), bounds=_BOUNDS
    ),
    "CEM with gradients": GradientCEM(
        samples=14,
        elites=4,
        iterations=3,
        horizon=HORIZON,
        descent=Descent(steps=2, optimiser=_STEPS),
        bounds=_BOUNDS,
    ),
    "collocation": Collocation(
        starts=3, horizon=HORIZON, steps=12, synchronise_every=6, shooting=None, bounds=_BOUNDS
    ),
    "beam search": BeamSearch(width=8, branches=16, horizon=HORIZON, bounds=_BOUNDS),
    "tree search": TreeSearch(simulations=BUDGET, leaves=32, horizon=HORIZON, bounds=_BOUNDS),
    "tree search, Gumbel root": TreeSearch(
        simulations=BUDGET,
        leaves=32,
        horizon=HORIZON,
        rule=GumbelHalving(considered_actions=16, noise_scale=0.0),
        bounds=_BOUNDS,
    ),
}
COSTS: Mapping[str, tuple[bool, Literal["sum", "terminal"]]] = {
    "goal distance": (False, "sum"),
    "terminal value": (True, "terminal"),
    "sum of values": (True, "sum"),
}


def planners(scale: Literal["cpu", "full"]) -> Reproduction:
    """The study; at full scale more instances and a replan at every step."""
    experiments = [*(tile_room(room) for room in ROOMS), wall_big_paths()]
    return Reproduction(
        name="planners",
        title="Every planner, every value",
        introduction=(
            "Seven worlds by ten planners by three costs: `recipes/planner_study.py` says what each is. All "
            f"planners may ask the predictor about {BUDGET:,} times per replan, at most."
        ),
        trainings=tuple(_training(experiment, scale) for experiment in experiments),
        claims=tuple(
            Claim(
                words=f"{planner}: sum of values above goal distance",
                better=f"{planner}, sum of values",
                worse=f"{planner}, goal distance",
            )
            for planner in PLANNERS
        ),
    )


def _training(experiment: Experiment, scale: Literal["cpu", "full"]) -> Training:
    world = experiment.recording.world
    control = ControlConfig(replan_every=2 if scale == "cpu" else 1)
    cells = tuple(
        Evaluation(
            name=f"{planner}, {cost}".replace(", ", "-").replace(" ", "_"),
            method=planner,
            variant=cost,
            task=world,
            instances=f"{world}-final",
            experiment=replace(experiment, planner=search, cost=CostConfig(over=over), control=control),
            guided=guided,
            episodes=30 if scale == "cpu" else None,
        )
        for planner, search in PLANNERS.items()
        for cost, (guided, over) in COSTS.items()
    )
    return Training(name=experiment.recipe, experiment=experiment, evaluations=cells)
