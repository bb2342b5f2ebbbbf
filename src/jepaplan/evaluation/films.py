"""Episodes as films: at every step the dot, the path so far, and the fan of candidates that were considered.

A film is numbers; the page draws them, so that a reader can stop, step and go back. Candidates are drawn
where the model believes they lead (`imagination`), or where they truly lead if nothing decodes its latents.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepaplan.evaluation.episodes import NEVER, Fan, Outcomes
from jepaplan.evaluation.pictures import framed, goal_mark, polyline, scenery_shapes, start_mark, view_of
from jepaplan.evaluation.references import TrueDynamics, encode_states
from jepaplan.interfaces import ActionUnits, World, WorldModel
from jepaplan.types import InputError

Imagine = Callable[[Float[Tensor, "1 W"], Float[Tensor, "1 S H A"]], Float[Tensor, "1 S H+1 2"]]


@dataclass(frozen=True, kw_only=True)
class Film:
    """One episode, ready to be shown."""

    title: str
    words: str  # what happened
    fan_words: str  # what the fan shows
    still: str  # SVG of the whole path, for readers without scripts and for the first glance
    data: str  # JSON: what the page needs to draw each step


def true_course(world: World, action_units: ActionUnits) -> Imagine:
    """Where actions truly lead."""
    model = TrueDynamics(world, action_units)
    return lambda state, actions: world.positions(model.rollout(state, actions))


def imagination(world: World, world_model: WorldModel, probe: nn.Module) -> Imagine:
    """Where the model believes that actions lead, decoded by the position probe."""

    @torch.no_grad()
    def imagine(state: Float[Tensor, "1 W"], actions: Float[Tensor, "1 S H A"]) -> Float[Tensor, "1 S H+1 2"]:
        latent = encode_states(world, world_model.encode, state)
        return probe(world_model.rollout(latent, actions))

    return imagine


def film(
    world: World,
    outcomes: Outcomes,
    number: int,
    imagine: Imagine,
    words: tuple[str, str],
    candidates: int = 12,
) -> Film:
    """Instance `number` of `outcomes` as a film; `words` are its title and what the fan shows."""
    fans = outcomes.fans.get(number, ())
    if not fans:
        raise InputError(
            f"no decisions were kept for instance {number}; run the episodes with "
            f"`EpisodeOptions(keep=({number},), ...)` and a controller that records its decisions"
        )
    steps = int(outcomes.steps_to_success[number])
    last = steps if steps != NEVER else outcomes.paths.shape[1] - 1
    path = outcomes.paths[number, : last + 1]
    patches = world.scenery(outcomes.instances.starts[number])
    rooms = scenery_shapes(patches) + goal_mark(*outcomes.goals[number].tolist())
    frames = [_frame(fan, imagine, candidates) for fan in fans]
    document = {
        "path": _rounded(path),
        "fans": frames,
        "terms": sorted(fans[0].predicted),
    }
    return Film(
        title=words[0],
        words=_happened(outcomes, number),
        fan_words=words[1],
        still=framed(
            f'<g class="rooms">{rooms}</g>'
            f'<g class="still">{polyline(path)}{start_mark(*path[0].tolist())}</g>'
            '<g class="fan"></g><g class="past"></g><g class="plan"></g><g class="dot"></g>',
            f"{words[0]}: {_happened(outcomes, number)}",
            view_of(world, patches),
        ),
        data=json.dumps(document, separators=(",", ":")),
    )


def _frame(fan: Fan, imagine: Imagine, candidates: int) -> dict[str, object]:
    actions = torch.cat([fan.plan[None], fan.candidates[:candidates]])[None]
    courses = imagine(fan.state[None], actions)[0]
    return {
        "step": fan.step,
        "plan": _rounded(courses[0]),
        "fan": [_rounded(course) for course in courses[1:]],
        "cost": {name: float(f"{share:.4g}") for name, share in fan.predicted.items()},
        "tied": int(fan.tied.sum()),
    }


def _happened(outcomes: Outcomes, number: int) -> str:
    steps, distance = int(outcomes.steps_to_success[number]), float(outcomes.final_distance[number])
    if steps != NEVER:
        return f"instance {number}, at the goal after {steps} steps"
    return f"instance {number}, {distance:.1f} pixels from the goal after {outcomes.paths.shape[1] - 1} steps"


def _rounded(points: Float[Tensor, "K 2"]) -> list[list[float]]:
    """A tenth of a pixel is finer than any screen shows, and keeps the page small."""
    return [[round(x, 1), round(y, 1)] for x, y in points.tolist()]
