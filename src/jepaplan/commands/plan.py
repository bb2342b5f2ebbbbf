"""`jepaplan plan RUN --start START.png --goal GOAL.png`: ranked candidates for one decision, ties named.

The goal may be a place, a box or a ball instead, or what a value without goals says; places can be avoided.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from jaxtyping import Float
from torch import Tensor

from jepaplan.commands.console import RESULTS, table
from jepaplan.commands.search_options import SearchOptions, changed
from jepaplan.control.goals import Standing
from jepaplan.control.receding_horizon import RecedingHorizon
from jepaplan.control.record import Decision
from jepaplan.costs.steps import StepDistance
from jepaplan.data.episodes import open_episodes
from jepaplan.data.frames import picture_to_frame
from jepaplan.recipes.aims import Aim, avoiding, ball_aim, box_aim, picture_aim, place_aim, value_alone_aim
from jepaplan.recipes.run import LoadedRun, find_recording, load_run
from jepaplan.recipes.state_probe import StateProbe, kept_state_probe
from jepaplan.recipes.system import build_controller, felt_by, samples_of
from jepaplan.types import InputError, Observation, SeedTree

AVOID_WEIGHT = 10.0


@dataclass(frozen=True, kw_only=True)
class Options(SearchOptions):
    """A run, a picture in the format that `jepaplan inspect --frames` writes, and one goal."""

    run: tyro.conf.Positional[Path]
    """Folder of a finished run."""
    start: Path
    """PNG of what is observed now."""
    goal: Path | None = None
    """PNG of what is wanted."""
    goal_state: tuple[float, ...] = ()
    """Or where to be: X Y in pixels of the picture, along a straight line that sees no walls. A probe reads
    places off latents; it is fitted now, to the states of the run's recording."""
    goal_low: tuple[float, ...] = ()
    """Or between two corners: the lower one (inf and -inf leave a side open)."""
    goal_high: tuple[float, ...] = ()
    """The upper one."""
    goal_centre: tuple[float, ...] = ()
    """Or within a radius of a place: the place."""
    goal_radius: float | None = None
    """The radius."""
    value_alone: str | None = None
    """Or what a value head that knows no goals says: the stage that trained it."""
    avoid: tyro.conf.UseAppendAction[tuple[tuple[float, ...], ...]] = ()
    """Keep out of a disc: X Y RADIUS, read by the same probe; as often as there are discs. Looked at where
    imagined steps end, not between."""
    avoid_weight: float | None = None
    """What each imagined step inside costs, for every pixel of depth squared; without it, 10."""
    data: Path | None = None
    """The recording with states for the probe; without it, the one inside the run."""
    felt: tuple[float, ...] = ()
    """What is felt now beside the picture (the maze: two numbers of velocity), in the world's units."""
    goal_felt: tuple[float, ...] = ()
    """The same in the goal's picture; none: zeros, such as a goal at rest."""
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
    run = changed(load_run(options.run), options)
    found = decide(run, options)
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
        return 0
    rows = [
        [
            f"{rank}{' (tied)' if candidate['tied'] and found['tied'] > 1 else ''}",
            f"{candidate['cost']:.3f}",
            _in_words(candidate["distance_at_end"]),
            *([] if candidate["clearance"] is None else [f"{candidate['clearance']:.2f}"]),
            ", ".join(f"{number:+.2f}" for number in candidate["first_action"]),
        ]
        for rank, candidate in enumerate(found["candidates"], start=1)
    ]
    clearance = ["clearance"] if options.avoid else []
    columns = ["candidate", "cost", "distance at its end", *clearance, "first action"]
    RESULTS.print(table(f"candidates of {found['considered']}, cheapest first", columns, rows))
    RESULTS.print(
        f"distance from start to goal: {_in_words(found['distance'])}; {ties_in_words(found['tied'])} "
        f"(within {found['tie_tolerance']:.3g}); {found['evaluations']:,} model calls in "
        f"{found['seconds'] * 1e3:.0f} ms",
        highlight=False,
        soft_wrap=True,
    )
    for line in measured_in_words(found):
        RESULTS.print(line, highlight=False, soft_wrap=True, markup=False)
    action = ", ".join(f"{number:+.2f}" for number in found["action"])
    RESULTS.print(f"action to execute now, in the environment's units: {action}", highlight=False)
    return 0


def _in_words(distance: float | None) -> str:
    return "unknown to a value of actions" if distance is None else f"{distance:.2f}"


def measured_in_words(found: dict[str, Any]) -> list[str]:
    """What distances are measured in, what does not count, and how well places are read."""
    lines = [f"distances are in {found['unit']}"]
    lines += [found["note"]] if found["note"] else []
    probe = found["probe"]
    if probe is not None:
        lines.append(
            f"places are read by a probe that is off by {probe['mean']:.2f} {probe['unit']} on average, and "
            f"by more than {probe['worst_twentieth']:.2f} in one of twenty frames; judged by "
            f"{probe['frames']:,} that it did not learn from"
        )
    return lines


def ties_in_words(tied: int) -> str:
    """How many candidates, the best among them, cannot be told apart."""
    return (
        "no other candidate is as good as the best" if tied == 1 else f"the best {tied} candidates are tied"
    )


@torch.no_grad()
def decide(run: LoadedRun, options: Options) -> dict[str, Any]:
    """One decision, as plain numbers."""
    model = run.system.world_model
    start, aim = observe(run, options.start, ("--felt", options.felt)), aim_of(run, options)
    if options.budget_ms is not None:
        # what a machine does only the first time would be taken for its speed
        act(run, options, start, aim)
    action, decision = act(run, options, start, aim)
    samples = samples_of(run.experiment.planner) if options.budget_ms is None else None
    latent, distance = model.encode(start.frames, start.proprioception), aim.distance
    now: float | None = None
    at_end: list[float | None] = [None] * decision.costs.shape[1]
    clearance: list[float | None] = [None] * decision.costs.shape[1]
    looked_at = max(options.candidates, RecedingHorizon.kept_candidates)
    paths = model.rollout(latent, decision.candidates[:, :looked_at])
    if not isinstance(distance, StepDistance):  # a value of actions says nothing about a latent alone
        wanted, _ = aim.goal.encode(model).current(latent, Standing.begin(1), 0)
        now, at_end = float(distance(latent, wanted)), distance(paths[:, :, -1], wanted[:, None])[0].tolist()
    if aim.clearance is not None:  # from the first step on: where a path begins is no choice
        clearance = aim.clearance(paths[:, :, 1:]).amin(dim=-1)[0].tolist()
    return {
        "distance": now,
        "unit": aim.unit,
        "note": aim.note,
        "probe": None if aim.probe is None else asdict(aim.probe.error) | {"unit": aim.probe.unit},
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
                "clearance": clearance[rank],
                "tied": bool(decision.tied[0, rank]),
                "first_action": first_action(run, decision, rank),
            }
            for rank in range(min(options.candidates, decision.costs.shape[1]))
        ],
    }


def act(
    run: LoadedRun, options: Options, start: Observation, aim: Aim
) -> tuple[Float[Tensor, " A_env"], Decision]:
    """What to do at `start`, and what was considered."""
    prior = run.system.action_prior(aim.experiment.control)
    controller = build_controller(
        aim.experiment,
        run.system.world_model,
        aim.distance,
        milliseconds=options.budget_ms,
        prior=prior,
        also=aim.also,
    )
    # how many there will be is known beforehand only of a search that takes its time
    considered = 0 if options.budget_ms is None else samples_of(run.experiment.planner) or 0
    controller.kept_candidates = max(options.candidates, considered, controller.kept_candidates)
    controller.reset(aim.goal, SeedTree(options.seed).torch("plan"))
    action = controller.act(start)[0]
    assert controller.last is not None
    return action, controller.last


def aim_of(run: LoadedRun, options: Options) -> Aim:
    """What is wanted, which was said in one way."""
    box, ball = "--goal-low X Y --goal-high X Y", "--goal-centre X Y --goal-radius R"
    ways = {
        "--goal GOAL.png": options.goal is not None,
        "--goal-state X Y": bool(options.goal_state),
        box: bool(options.goal_low or options.goal_high),
        ball: bool(options.goal_centre) or options.goal_radius is not None,
        "--value-alone STAGE": options.value_alone is not None,
    }
    said = [way for way, there in ways.items() if there]
    if len(said) != 1:
        raise InputError(
            f"a plan has one goal; got {' and '.join(said) or 'none'}. Write one of: {'; '.join(ways)}"
        )
    if options.goal_felt and options.goal is None:
        raise InputError("--goal-felt belongs to --goal, a picture; leave it out")
    if options.avoid_weight is not None and not options.avoid:
        raise InputError("--avoid-weight belongs to --avoid X Y RADIUS; write both, or leave it out")
    placed = options.goal is None and options.value_alone is None
    if options.data is not None and not (placed or options.avoid):
        raise InputError("--data is where places are learned from, and this plan has none; leave it out")
    if options.value is not None and options.goal is None:
        raise InputError(
            f"--value {options.value} counts the steps to a picture, and this goal is none; leave it out, or "
            "write --goal GOAL.png"
        )
    if said == [ball] and (options.goal_radius is None or not options.goal_centre):
        raise InputError(f"a ball has a centre and a radius; write {ball}")
    if said == [box] and not (options.goal_low and options.goal_high):
        raise InputError(f"a box has two corners; write {box}")
    if not placed and not options.avoid:
        return unplaced_aim(run, options)
    probe = kept_state_probe(run, open_episodes(recording_of(run, options)))
    aim = placed_aim(run, probe, options) if placed else unplaced_aim(run, options)
    if not options.avoid:
        return aim
    weight = AVOID_WEIGHT if options.avoid_weight is None else options.avoid_weight
    return avoiding(aim, probe, options.avoid, weight)


def unplaced_aim(run: LoadedRun, options: Options) -> Aim:
    """A picture, or what a value says."""
    if options.value_alone is not None:
        return value_alone_aim(run, options.value_alone)
    assert options.goal is not None
    felt = options.goal_felt or (0.0,) * felt_by(run.experiment.encoder)
    return picture_aim(run, observe(run, options.goal, ("--goal-felt", felt)))


def placed_aim(run: LoadedRun, probe: StateProbe, options: Options) -> Aim:
    """A place, a box or a ball."""
    if options.goal_state:
        return place_aim(run, probe, options.goal_state)
    if options.goal_radius is None:
        return box_aim(run, probe, options.goal_low, options.goal_high)
    return ball_aim(run, probe, options.goal_centre, options.goal_radius)


def recording_of(run: LoadedRun, options: Options) -> Path:
    """The recording that says where things are in pictures."""
    found = find_recording(run, options.data)
    if found is None:
        raise InputError(
            f"{run.path} has no recording of its own to learn places from; write --data FILE, the recording "
            "that it was trained on"
        )
    return found


def observe(run: LoadedRun, picture: Path, felt: tuple[str, tuple[float, ...]]) -> Observation:
    """What is seen, and felt where the run feels: an option and its numbers."""
    config, (option, given) = run.experiment.encoder, felt
    numbers = felt_by(config)
    if len(given) != numbers:
        write = f"{option} {' '.join(['0.0'] * numbers)}" if numbers else f"no {option}"
        raise InputError(
            f"{option} was given {len(given)} numbers, and the encoder of {run.path} takes {numbers} "
            f"beside a picture. Write {write}"
        )
    frames = picture_to_frame(picture, config.image_channels, config.image_size)[None]
    return Observation(frames, torch.tensor([given]) if numbers else None)


def first_action(run: LoadedRun, decision: Decision, rank: int) -> list[float]:
    """The first action of a candidate, in the environment's units."""
    return run.system.world_model.action_units.inverse(decision.candidates[0, rank, 0]).tolist()
