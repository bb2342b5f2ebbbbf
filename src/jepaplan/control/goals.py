"""What a controller pursues: a picture, a state, a region, subgoals in turn, a clip to follow, or nothing.

A `Goal` is encoded once, at reset, and then asked at every replan for the rows that `CostTerms.bind` takes:

    pursued = as_goal(goal).encode(world_model)
    standing = Standing.begin(len(goal), device)
    rows, standing = pursued.current(latent, standing, step)     # rows n *goal, of the problems in `standing`

    want                                goal                     distance that reads its rows
    this picture                        PictureGoal              any `Distance` between latents
    this latent (of a level above)      GivenGoal(latents)       the same
    probe(z) = state                    GivenGoal(states)        costs.probes.StateDistance
    low <= probe(z) <= high             box_goal(low, high)      costs.probes.BoxDistance
    |probe(z) - centre| <= radius       ball_goal(centre, ...)   costs.probes.BallDistance
    only what a value V(z) says         ValueAlone(problems)     RemainingCost(WithoutGoal(value))
    one after the other, with budgets   Subgoals                 that of the goals it is made of
    what this clip shows                Clip                     any `Distance` between latents

Which subgoal a problem is at travels in `Standing`, which goes in and comes out: goals never change, and one
goal object serves any number of episodes. Standings move when they are asked for, thus at replans.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from jepaplan.control.devices import at_home, home_of, seen_at_home
from jepaplan.interfaces import Distance, WorldModel
from jepaplan.types import InputError, Observation


@dataclass(frozen=True)
class Standing:
    """Where n problems stand between two replans."""

    problems: Int[Tensor, " n"]  # which of the batch they are
    subgoal: Int[Tensor, " n"]  # number of the one that is pursued, from 0; of a clip the frame reached last
    since: Int[Tensor, " n"]  # step of the episode at which it became the current one

    @classmethod
    def begin(cls, count: int, device: torch.device | str = "cpu") -> "Standing":
        """All problems at their first subgoal."""
        nothing = torch.zeros(count, dtype=torch.long, device=device)
        return cls(torch.arange(count, device=device), nothing, nothing)

    def of(self, problems: Int[Tensor, " m"]) -> "Standing":
        """Some rows of a standing that holds all problems in order."""
        return Standing(self.problems[problems], self.subgoal[problems], self.since[problems])

    def updated(self, part: "Standing") -> "Standing":
        """This standing of all problems, with news of some of them."""
        at = part.problems
        return replace(
            self,
            subgoal=self.subgoal.index_copy(0, at, part.subgoal),
            since=self.since.index_copy(0, at, part.since),
        )

    def moved(self, subgoal: Int[Tensor, " n"], step: int) -> "Standing":
        """The same problems at these subgoals; who changes, changes now."""
        since = torch.where(subgoal == self.subgoal, self.since, step)
        return replace(self, subgoal=subgoal, since=since)


@runtime_checkable
class PursuedGoal(Protocol):
    """A goal that has been encoded; its rows live where the world model computes."""

    @property
    def device(self) -> torch.device:
        """Where the rows live."""
        ...

    def current(
        self, latent: Float[Tensor, "n *latent"], standing: Standing, step: int
    ) -> tuple[Float[Tensor, "n *goal"], Standing]:
        """What the problems of `standing` want, being at `latent` at this step of the episode."""
        ...


@runtime_checkable
class Goal(Protocol):
    """What B problems want."""

    def __len__(self) -> int:
        """B."""
        ...

    def encode(self, world_model: WorldModel) -> PursuedGoal:
        """Look at it once."""
        ...


@dataclass(frozen=True)
class GivenGoal:
    """Rows that need no encoding, the same for the whole episode: latents, probed states, packed regions."""

    rows: Float[Tensor, "B *goal"]

    def __len__(self) -> int:
        """B."""
        return len(self.rows)

    def encode(self, world_model: WorldModel) -> "GivenGoal":
        """Itself, where the world model computes."""
        return GivenGoal(at_home(self.rows, world_model))

    @property
    def device(self) -> torch.device:
        """Where the rows live."""
        return self.rows.device

    def current(
        self, latent: Float[Tensor, "n *latent"], standing: Standing, step: int
    ) -> tuple[Float[Tensor, "n *goal"], Standing]:
        """The rows of these problems."""
        return self.rows[standing.problems], standing


def box_goal(low: Float[Tensor, "B W"], high: Float[Tensor, "B W"]) -> GivenGoal:
    """To have the probed state between two corners."""
    if low.shape != high.shape or (low > high).any():
        raise InputError(
            "a box needs low <= high in every component, and corners of one shape (B W); got "
            f"{low.tolist()} and {high.tolist()}"
        )
    return GivenGoal(torch.cat([low, high], dim=-1))


def ball_goal(centre: Float[Tensor, "B W"], radius: Float[Tensor, " B"]) -> GivenGoal:
    """To have the probed state within a radius of a centre."""
    if (radius < 0).any():
        raise InputError(f"a ball's radius is 0 or more; the smallest given is {float(radius.min())}")
    return GivenGoal(torch.cat([centre, radius[:, None]], dim=-1))


@dataclass(frozen=True)
class PictureGoal:
    """To see this: one observation per problem."""

    observation: Observation | Shaped[Tensor, "B *observation"]

    def __len__(self) -> int:
        """B."""
        return len(Observation.of(self.observation).frames)

    def encode(self, world_model: WorldModel) -> GivenGoal:
        """The latent of what is to be seen."""
        seen = seen_at_home(Observation.of(self.observation), world_model)
        return GivenGoal(world_model.encode(seen.frames, seen.proprioception))


@dataclass(frozen=True)
class ValueAlone:
    """No goal: the cost is a value that has its task built in. `bind` gets the latents in place of goals."""

    problems: int
    on: torch.device | str = "cpu"  # where a world model without parameters computes

    def __len__(self) -> int:
        """B."""
        return self.problems

    def encode(self, world_model: WorldModel) -> "ValueAlone":
        """Itself, where the world model computes."""
        return replace(self, on=home_of(world_model) or self.on)

    @property
    def device(self) -> torch.device:
        """Where the world model computes."""
        return torch.device(self.on)

    def current(
        self, latent: Float[Tensor, "n *latent"], standing: Standing, step: int
    ) -> tuple[Float[Tensor, "n *latent"], Standing]:
        """Where the problems are: a placeholder of the right shape."""
        return latent, standing


@dataclass(frozen=True, kw_only=True)
class Subgoals:
    """One goal after the other, each for its budget of steps or until it is reached; the last one stays."""

    goals: Sequence[Goal]  # all for the same problems, with rows of one shape
    budgets: Sequence[int]  # environment steps for each goal but the last
    distance: Distance | None = None  # between latents and rows; None: only the budgets decide
    within: float = 0.0  # a subgoal at this distance or nearer is reached

    def __post_init__(self) -> None:
        """Refuse lists that cannot be followed."""
        if not self.goals or len({len(goal) for goal in self.goals}) != 1:
            raise InputError(
                "subgoals are one goal or more, all for the same problems; got goals for "
                f"{[len(goal) for goal in self.goals]} problems"
            )
        if len(self.budgets) != len(self.goals) - 1 or any(budget < 1 for budget in self.budgets):
            raise InputError(
                f"every subgoal but the last needs a budget of at least one step: {len(self.goals) - 1} "
                f"numbers for {len(self.goals)} subgoals; got {list(self.budgets)}"
            )
        if self.within < 0 or (self.within > 0 and self.distance is None):
            raise InputError(
                f"within={self.within} is a distance, 0 or more, and needs distance=... to measure it by"
            )

    def __len__(self) -> int:
        """B."""
        return len(self.goals[0])

    def encode(self, world_model: WorldModel) -> "PursuedSubgoals":
        """Look at all of them."""
        rows: list[Tensor] = []
        for number, goal in enumerate(self.goals):
            given = goal.encode(world_model)
            if not isinstance(given, GivenGoal) or (rows and given.rows.shape != rows[0].shape):
                raise InputError(
                    f"subgoal {number} is a {type(goal).__name__}; subgoals are pictures, states or regions "
                    "(PictureGoal, GivenGoal), all of one kind, because one distance reads them all"
                )
            rows.append(given.rows)
        return PursuedSubgoals(self, torch.stack(rows, dim=1))


@dataclass(frozen=True)
class PursuedSubgoals:
    """Encoded subgoals."""

    plan: Subgoals
    rows: Float[Tensor, "B K *goal"]

    @property
    def device(self) -> torch.device:
        """Where the rows live."""
        return self.rows.device

    def current(
        self, latent: Float[Tensor, "n *latent"], standing: Standing, step: int
    ) -> tuple[Float[Tensor, "n *goal"], Standing]:
        """The subgoal of each problem; moves on by one where the budget is spent or the subgoal reached."""
        rows = self.rows
        # the last one may take forever
        budgets = torch.tensor([*self.plan.budgets, 2**62], device=latent.device)
        finished = step - standing.since >= budgets[standing.subgoal]
        if self.plan.distance is not None:
            pursued = rows[standing.problems, standing.subgoal]
            finished |= self.plan.distance(latent, pursued) <= self.plan.within
        last = rows.shape[1] - 1
        standing = standing.moved((standing.subgoal + finished).clamp(max=last), step)
        return rows[standing.problems, standing.subgoal], standing


@dataclass(frozen=True, kw_only=True)
class Clip:
    """To do what a clip shows: the goal is the frame just ahead of the one that looks nearest.

    The nearest frame is sought from the one reached last onwards, never backwards, and no further than the
    window: with a window shorter than its loops, a clip that passes a place twice is followed both times.
    """

    observations: Sequence[Observation | Shaped[Tensor, "B *observation"]]  # T frames, each of B problems
    distance: Distance  # from a latent to a frame's latent
    ahead: int = 1  # frames between the nearest one and the one that is pursued
    window: int = 10  # frames, from the one reached last, among which the nearest is sought
    patience: int | None = (
        None  # environment steps at one frame after which it counts as passed; None: forever
    )

    def __post_init__(self) -> None:
        """Refuse clips that cannot be followed."""
        if not self.observations:
            raise InputError("a clip has one frame or more; got none")
        if self.ahead < 1 or self.window < 2 or (self.patience is not None and self.patience < 1):
            raise InputError(
                "following a clip needs ahead >= 1, window >= 2 (this frame and the next) and patience >= 1 "
                f"or None; got ahead={self.ahead}, window={self.window}, patience={self.patience}"
            )

    def __len__(self) -> int:
        """B."""
        return len(Observation.of(self.observations[0]).frames)

    def encode(self, world_model: WorldModel) -> "PursuedClip":
        """Encode frame by frame."""
        rows = [PictureGoal(seen).encode(world_model).rows for seen in self.observations]
        return PursuedClip(self, torch.stack(rows, dim=1))


@dataclass(frozen=True)
class PursuedClip:
    """An encoded clip."""

    clip: Clip
    frames: Float[Tensor, "B T *latent"]

    @property
    def device(self) -> torch.device:
        """Where the rows live."""
        return self.frames.device

    def current(
        self, latent: Float[Tensor, "n *latent"], standing: Standing, step: int
    ) -> tuple[Float[Tensor, "n *latent"], Standing]:
        """The frame `ahead` of the nearest; the last one at the end of the clip."""
        frames, clip = self.frames, self.clip
        last = frames.shape[1] - 1
        offsets = torch.arange(clip.window, device=latent.device)
        sought = (standing.subgoal[:, None] + offsets).clamp(max=last)
        distances = clip.distance(latent[:, None], frames[standing.problems[:, None], sought])
        found = distances.argmin(dim=1, keepdim=True)
        # where the clip pauses, frames look the same: the last of the pause is the one that is reached
        further = (distances > distances.gather(1, found)) & (offsets > found)
        paused = (further.cumsum(dim=1) == 0) & (offsets > found)
        nearest = (standing.subgoal + found[:, 0] + paused.sum(dim=1)).clamp(max=last)
        if clip.patience is not None:
            overdue = step - standing.since >= clip.patience
            nearest = torch.maximum(nearest, (standing.subgoal + overdue).clamp(max=last))
        standing = standing.moved(nearest, step)
        return frames[standing.problems, (nearest + clip.ahead).clamp(max=last)], standing


def as_goal(given: Goal | Observation | Shaped[Tensor, "B *observation"]) -> Goal:
    """A goal as it is, an observation or a bare tensor as a picture."""
    return PictureGoal(given) if isinstance(given, Observation | Tensor) else given
