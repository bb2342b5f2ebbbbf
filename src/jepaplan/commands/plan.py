"""`jepaplan plan RUN --start START.png --goal GOAL.png`: ranked candidates for one decision, ties named."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from jaxtyping import Float
from torch import Tensor

from jepaplan.commands.console import RESULTS, table
from jepaplan.control.receding_horizon import RecedingHorizon
from jepaplan.control.record import Decision
from jepaplan.costs.steps import StepDistance
from jepaplan.data.frames import picture_to_frame
from jepaplan.interfaces import Distance
from jepaplan.recipes.run import LoadedRun, load_run
from jepaplan.recipes.system import baseline_distance, build_controller, felt_by, samples_of
from jepaplan.types import InputError, Observation, SeedTree


@dataclass(frozen=True, kw_only=True)
class Options:
    """A run and two pictures in the format that `jepaplan inspect --frames` writes."""

    run: tyro.conf.Positional[Path]
    """Folder of a finished run."""
    start: Path
    """PNG of what is observed now."""
    goal: Path
    """PNG of what is wanted."""
    felt: tuple[float, ...] = ()
    """What is felt now beside the picture (the maze: two numbers of velocity), in the world's units."""
    goal_felt: tuple[float, ...] = ()
    """The same at the goal; none: zeros, such as a goal at rest."""
    candidates: int = 8
    """How many candidates to show, cheapest first."""
    budget_ms: float | None = None
    """Milliseconds for the search, as large as fits and cut short if it must be; a rehearsal comes before it.
    Encoding comes on top; the answer depends on the machine."""
    seed: int = 0
    """Of the planner's noise."""
    json: bool = False
    """Print the ranking as JSON on standard output, and nothing else there."""


def main(arguments: list[str]) -> int:
    """Plan once and print what was considered."""
    options = tyro.cli(Options, prog="jepaplan plan", description=__doc__, args=arguments)
    if options.candidates < 1:
        raise InputError(f"--candidates is how many to show, at least 1; got {options.candidates}")
    run = load_run(options.run)
    found = decide(run, options)
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
        return 0
    rows = [
        [
            f"{rank}{' (tied)' if candidate['tied'] and found['tied'] > 1 else ''}",
            f"{candidate['cost']:.3f}",
            _in_words(candidate["distance_at_end"]),
            ", ".join(f"{number:+.2f}" for number in candidate["first_action"]),
        ]
        for rank, candidate in enumerate(found["candidates"], start=1)
    ]
    columns = ["candidate", "cost", "distance at its end", "first action"]
    RESULTS.print(table(f"candidates of {found['considered']}, cheapest first", columns, rows))
    RESULTS.print(
        f"distance from start to goal: {_in_words(found['distance'])}; {ties_in_words(found['tied'])} "
        f"(within {found['tie_tolerance']:.3g}); {found['evaluations']:,} model calls in "
        f"{found['seconds'] * 1e3:.0f} ms",
        highlight=False,
        soft_wrap=True,
    )
    action = ", ".join(f"{number:+.2f}" for number in found["action"])
    RESULTS.print(f"action to execute now, in the environment's units: {action}", highlight=False)
    return 0


def _in_words(distance: float | None) -> str:
    return "unknown to a value of actions" if distance is None else f"{distance:.2f}"


def ties_in_words(tied: int) -> str:
    """How many candidates, the best among them, cannot be told apart."""
    return (
        "no other candidate is as good as the best" if tied == 1 else f"the best {tied} candidates are tied"
    )


@torch.no_grad()
def decide(run: LoadedRun, options: Options) -> dict[str, Any]:
    """One decision, as plain numbers."""
    model = run.system.world_model
    start, goal = observe(run, options)
    distance = (
        run.system.steps_to_go(run.experiment.cost)
        if run.experiment.learns_value
        else baseline_distance(run.experiment)
    )
    if options.budget_ms is not None:
        # what a machine does only the first time would be taken for its speed
        act(run, options, distance, (start, goal))
    action, decision = act(run, options, distance, (start, goal))
    samples = samples_of(run.experiment.planner) if options.budget_ms is None else None
    latent, wanted = (model.encode(seen.frames, seen.proprioception) for seen in (start, goal))
    now: float | None = None
    at_end: list[float | None] = [None] * decision.costs.shape[1]
    if not isinstance(distance, StepDistance):  # a value of actions says nothing about a latent alone
        looked_at = max(options.candidates, RecedingHorizon.kept_candidates)
        ends = model.rollout(latent, decision.candidates[:, :looked_at])[:, :, -1]
        now, at_end = float(distance(latent, wanted)), distance(ends, wanted[:, None])[0].tolist()
    return {
        "distance": now,
        "action": action.tolist(),
        "considered": samples or decision.costs.shape[1],
        "tied": int(decision.tied.sum()),
        "tie_tolerance": float(decision.tie_tolerance[0]),
        "evaluations": decision.evaluations,
        "seconds": decision.seconds,
        "candidates": [
            {
                "cost": float(decision.costs[0, rank]),
                "distance_at_end": at_end[rank],
                "tied": bool(decision.tied[0, rank]),
                "first_action": first_action(run, decision, rank),
            }
            for rank in range(min(options.candidates, decision.costs.shape[1]))
        ],
    }


def act(
    run: LoadedRun,
    options: Options,
    distance: Distance | StepDistance,
    seen: tuple[Observation, Observation],
) -> tuple[Float[Tensor, " A_env"], Decision]:
    """What to do at the first of two observations to get to the second, and what was considered."""
    prior = run.system.action_prior(run.experiment.control)
    controller = build_controller(
        run.experiment, run.system.world_model, distance, milliseconds=options.budget_ms, prior=prior
    )
    # how many there will be is known beforehand only of a search that takes its time
    considered = 0 if options.budget_ms is None else samples_of(run.experiment.planner) or 0
    controller.kept_candidates = max(options.candidates, considered, controller.kept_candidates)
    start, goal = seen
    controller.reset(goal, SeedTree(options.seed).torch("plan"))
    action = controller.act(start)[0]
    assert controller.last is not None
    return action, controller.last


def observe(run: LoadedRun, options: Options) -> tuple[Observation, Observation]:
    """What is seen, and felt where the run feels, now and at the goal."""
    config = run.experiment.encoder
    pictures = [
        picture_to_frame(path, config.image_channels, config.image_size)[None]
        for path in (options.start, options.goal)
    ]
    numbers = felt_by(config)
    felt = (options.felt, options.goal_felt or (0.0,) * numbers)
    for option, given in zip(("--felt", "--goal-felt"), felt, strict=True):
        if len(given) != numbers:
            write = f"{option} {' '.join(['0.0'] * numbers)}" if numbers else f"no {option}"
            raise InputError(
                f"{option} was given {len(given)} numbers, and the encoder of {run.path} takes {numbers} "
                f"beside a picture. Write {write}"
            )
    start, goal = (
        Observation(frames, torch.tensor([given]) if numbers else None)
        for frames, given in zip(pictures, felt, strict=True)
    )
    return start, goal


def first_action(run: LoadedRun, decision: Decision, rank: int) -> list[float]:
    """The first action of a candidate, in the environment's units."""
    return run.system.world_model.action_units.inverse(decision.candidates[0, rank, 0]).tolist()
