"""Steps to go in the scene at hand: the ways to the goal, imagined once the goal is seen.

A value that is learned must have met scenes like this one. The world model has what it takes to find out
instead, where its latents say in which place the thing is:

    spread       from the goal on, go straight in every direction; an end further than `spacing` from every
                 state is a state itself, and goes on in its turn, until nothing new is reached
    ways         an end beside a state (nearer than `spacing`) is a way to it, of as many steps
    steps        cheapest chains of ways from each state to the goal
    elsewhere    the steps of the nearest state, and what is gained or lost towards its next one

This is value iteration on a sampled, deterministic decision process, run to its end, as
`objectives/imagined_graph.py` has it for learning, and search over states that were met as in Eysenbach et
al., "Search on the Replay Buffer", arXiv:1906.05253, over imagined ones. Here nothing is learned, and nothing
has to generalise but the world model. Imagined steps are believed where the inverse dynamics reads from them
what was done; where steps slip it reads less of every action, so they are compared with the freest steps
from the goal. All states feel what the goal feels: with a goal at rest, every line starts at rest.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from jepaplan.interfaces import WorldModel
from jepaplan.objectives.imagined_states import InverseModel, believed_step, unit_directions
from jepaplan.types import InputError

_REMEMBERED = 1024  # goals


@runtime_checkable
class PlacedWorldModel(WorldModel, Protocol):
    """A world model whose latents are [what stays | point | felt] and that knows where points are.

    `LatentWorldModel` is one where its predictor is a `LocalPredictor`, and says so otherwise.
    """

    @property
    def moves_from(self) -> int:
        """The first number of the latent that an action may change."""
        ...

    def places(self, latents: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch 2"]:
        """Where the thing is, in pixels."""
        ...


@dataclass(frozen=True, kw_only=True)
class WaysConfig:
    """How finely ways are imagined."""

    spacing: float = (
        2.0  # pixels between states; less than the thinnest wall: the nearest must not lie behind it
    )
    directions: int = 16  # straight lines tried from every state
    reach: int = 4  # model steps along each line; the last ones must be longer than `spacing`
    step_norm: float = 1.5  # norm of imagined actions, in normalised units
    largest_norm: float = 2.45  # norm of the largest allowed action: what counts as one step to go
    belief: float = 0.45  # believed is a step whose action, read beside that of free ones, is off by less
    most_states: int = 4000  # where imagination leaves the picture, somebody has to stop it
    unreached: float = 30.0  # steps added to the longest way, for states from which none was found

    def __post_init__(self) -> None:
        numbers = (self.spacing, self.step_norm, self.largest_norm, self.belief, self.unreached)
        if min(numbers) <= 0 or min(self.directions, self.reach) < 1 or self.most_states < 2:
            raise InputError(
                "ways need positive spacing, norms, belief and unreached, directions and reach of at least 1 "
                f"and most_states of at least 2; got {self}"
            )


@dataclass(frozen=True)
class Ways:
    """States of one scene by their places, and the steps from each to the goal."""

    places: Float[Tensor, "N 2"]  # pixels; the first is the goal
    steps: Float[Tensor, " N"]
    uphill: Float[Tensor, "N 2"]  # steps per pixel away from the next state of the way; 0 where there is none
    furthest: float  # steps of whoever is far from all states
    pixels_per_step: float  # of a largest step
    spacing: float  # pixels between states; twice as far from all of them is nowhere
    evaluations: int  # predictor calls that it took to find them


@torch.no_grad()
def imagine_ways(
    world_model: PlacedWorldModel,
    inverse_dynamics: InverseModel,
    goal: Float[Tensor, " D"],
    config: WaysConfig,
) -> Ways:
    """All states that lines reach from `goal`, and the steps from each of them to it."""
    directions = unit_directions(
        config.directions, world_model.action_dim, torch.Generator().manual_seed(0)
    ).to(goal)
    states, places, explored = goal[None], world_model.places(goal[None]), 0
    begins: list[Tensor] = []
    ends: list[Tensor] = []
    steps: list[Tensor] = []
    readable = _readable(world_model, inverse_dynamics, goal, config.step_norm * directions)
    evaluations = len(directions)
    while explored < len(states) and len(states) < config.most_states:
        wave = states[explored:]
        latent = wave.repeat_interleave(len(directions), dim=0)
        actions = (config.step_norm * directions).repeat(len(wave), 1)
        origin = torch.arange(explored, len(states), device=goal.device).repeat_interleave(len(directions))
        explored = len(states)
        fresh: list[Tensor] = []
        for step in range(1, config.reach + 1):
            evaluations += len(latent)
            latent, believed = believed_step(
                world_model, inverse_dynamics, latent, actions, config.belief, readable
            )
            # A line ends at its first step that is not believed.
            latent, actions, origin = latent[believed], actions[believed], origin[believed]
            begins.append(origin)
            ends.append(world_model.places(latent))
            steps.append(torch.full_like(ends[-1][:, 0], float(step)))
            fresh.append(latent)
        arrived = torch.cat(ends[-config.reach :])
        new = _far_from(arrived, places, config.spacing)
        felt = goal[world_model.moves_from + 2 :].expand(len(new), -1)
        found = torch.cat([torch.cat(fresh)[new, : world_model.moves_from + 2], felt], dim=1)
        states, places = torch.cat([states, found]), torch.cat([places, arrived[new]])
    return _to_the_goal(places, torch.cat(begins), torch.cat(ends), torch.cat(steps), config, evaluations)


def _readable(
    world_model: WorldModel,
    inverse_dynamics: InverseModel,
    goal: Float[Tensor, " D"],
    actions: Float[Tensor, "K A"],
) -> float:
    """The share of an action that is read from a step which nothing is in the way of.

    The inverse dynamics learned from steps of which some slipped: it expects less of an action than was done,
    and an imagined step is what happens on average. Next to a goal in a corner few directions are free.
    """
    latent = goal.expand(len(actions), -1)
    read = inverse_dynamics(latent, world_model.step(latent, actions))
    shares = (read * actions).sum(dim=1) / actions.square().sum(dim=1)
    return max(float(shares.quantile(0.9)), 0.1)


def _far_from(points: Float[Tensor, "M 2"], known: Float[Tensor, "N 2"], spacing: float) -> Tensor:
    """Indices of points further than `spacing` from all known ones and from each other; furthest first."""
    if not len(points):
        return torch.zeros(0, dtype=torch.long, device=points.device)
    nearest = torch.cdist(points, known).amin(dim=1)
    chosen: list[int] = []
    while float(nearest.max()) > spacing:
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (points - points[chosen[-1]]).norm(dim=1))
    return torch.tensor(chosen, dtype=torch.long, device=points.device)


def _to_the_goal(
    places: Float[Tensor, "N 2"],
    begins: Tensor,
    ends: Float[Tensor, "M 2"],
    steps: Float[Tensor, " M"],
    config: WaysConfig,
    evaluations: int,
) -> Ways:
    went = (ends - places[begins]).norm(dim=1)
    share = config.step_norm / config.largest_norm
    # Of the lines that went on to the end, those of the upper half were not held up. Where none did, nothing
    # is reached, and any unit will do.
    last = went[steps == config.reach]
    free = float(last.quantile(0.75)) / config.reach if len(last) else 1.0
    pixels_per_step = max(free / share, 1e-3)
    apart, beside = torch.cdist(ends, places).min(dim=1)
    joins = (apart < config.spacing) & (beside != begins)
    costs = steps[joins] * share + apart[joins] / pixels_per_step
    found, following = _cheapest_chains(begins[joins], beside[joins], costs, len(places))
    reached = found.isfinite()
    furthest = float(found[reached].max()) + config.unreached
    to_go = found.masked_fill(~reached, furthest).to(places)
    has_next = following >= 0
    following = following.clamp(min=0)
    away = places - places[following]
    uphill = away * ((to_go - to_go[following]) / away.square().sum(1).clamp(min=1e-6))[:, None]
    return Ways(
        places=places,
        steps=to_go,
        uphill=uphill * has_next[:, None],
        furthest=furthest,
        pixels_per_step=pixels_per_step,
        spacing=config.spacing,
        evaluations=evaluations,
    )


def _cheapest_chains(
    begins: Int[Tensor, " M"], ends: Int[Tensor, " M"], costs: Float[Tensor, " M"], count: int
) -> tuple[Float[Tensor, " N"], Int[Tensor, " N"]]:
    """What each of `count` states pays to state 0 (Bellman and Ford), and which is next; -1 where none is."""
    to_go = costs.new_full((count,), torch.inf)
    to_go[0] = 0
    for _ in range(count):  # no chain visits a state twice
        cheaper = to_go.scatter_reduce(0, begins, costs + to_go[ends], "amin")
        if torch.equal(cheaper, to_go):
            break
        to_go = cheaper
    offered = costs + to_go[ends]
    best = offered.isfinite() & (offered <= to_go[begins])
    following = torch.full((count,), -1, dtype=torch.long, device=costs.device)
    return to_go, following.scatter_reduce(0, begins[best], ends[best], "amax")


class ImaginedWays(nn.Module):
    """Steps to go by the ways that the world model imagines to each goal, found when a goal is first met.

    A `Distance` with nothing to learn. The models are those of a system: they are held here, not owned.
    """

    def __init__(self, models: tuple[PlacedWorldModel, InverseModel], config: WaysConfig) -> None:
        super().__init__()
        self._models = models  # in a tuple, so that their weights are not saved a second time
        self.config = config
        self._known: OrderedDict[tuple[str, bytes], Ways] = OrderedDict()

    def imagined(self, config: WaysConfig) -> "ImaginedWays":
        """The same models' ways, imagined more or less finely."""
        return self if config == self.config else ImaginedWays(self._models, config)

    @torch.no_grad()
    def prepare(self, goal: Float[Tensor, "B D"]) -> int:
        """Imagine the ways to these goals, where that was not done before; predictor calls that it took."""
        fresh = [row for row in goal.unique(dim=0) if _key(row) not in self._known]
        return sum(self._ways(row).evaluations for row in fresh)

    def forward(
        self, source: Float[Tensor, "*#batch D"], goal: Float[Tensor, "*#batch D"]
    ) -> Float[Tensor, "*batch"]:
        """Steps to go from the point of each source, in the scene of its goal."""
        shape = torch.broadcast_shapes(source.shape[:-1], goal.shape[:-1])
        goals, which = goal.detach().reshape(-1, goal.shape[-1]).unique(dim=0, return_inverse=True)
        which = which.view(goal.shape[:-1]).expand(shape)
        points = self._models[0].places(source).expand(*shape, 2)
        found = points.new_empty(shape)
        for number, row in enumerate(goals):
            of_goal = which == number
            found = found.masked_scatter(of_goal, _steps_from(points[of_goal], self._ways(row)))
        return found

    def _ways(self, goal: Float[Tensor, " D"]) -> Ways:
        key = _key(goal)
        if key not in self._known:
            self._known[key] = imagine_ways(*self._models, goal, self.config)
        self._known.move_to_end(key)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return self._known[key]


def _key(goal: Float[Tensor, " D"]) -> tuple[str, bytes]:
    return str(goal.device), goal.cpu().numpy().tobytes()


def _steps_from(points: Float[Tensor, "M 2"], ways: Ways) -> Float[Tensor, " M"]:
    """The steps of the nearest state, corrected along its way; far from all states, what leads back."""
    with torch.no_grad():
        apart, nearest = torch.cdist(points, ways.places).min(dim=1)
    offset = points - ways.places[nearest]
    along = ways.steps[nearest] + (offset * ways.uphill[nearest]).sum(dim=1)
    straight = (points - ways.places[0]).norm(dim=1) / ways.pixels_per_step
    near = torch.where(nearest == 0, straight, along)
    lost = ways.furthest + offset.norm(dim=1) / ways.pixels_per_step
    return torch.where(apart <= 2 * ways.spacing, near, lost).clamp(min=0)
