"""The few protocols through which the rooms know each other.

A planner sees a `SequenceCost`; a cost sees a `WorldModel` and a `Distance`; a controller sees a `Planner`, a
`CostTerms` and a `WorldModel`. Nothing here is subclassed: a class with the right methods is the thing.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from jepaplan.types import Expansion, Observation, Patch, Plan, Search


@runtime_checkable
class ActionUnits(Protocol):
    """The border between environment units and the normalised units in which models and planners think."""

    def normalise(self, actions: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch A"]:
        """Environment units to normalised units."""
        ...

    def inverse(self, actions: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch A"]:
        """Normalised units to environment units."""
        ...


@runtime_checkable
class WorldModel(Protocol):
    """An encoder and an action-conditioned predictor of its latents. Actions are in normalised units."""

    action_dim: int
    stride: int  # environment steps per model step

    @property
    def action_units(self) -> ActionUnits:
        """How environment actions become normalised ones; it travels with the weights."""
        ...

    def encode(
        self,
        observation: Shaped[Tensor, "B *observation"],
        proprioception: Float[Tensor, "B P"] | None = None,
    ) -> Float[Tensor, "B *latent"]:
        """Latents of what was observed: uint8 images `B C height width` for pixel models."""
        ...

    def step(
        self, latent: Float[Tensor, "B *latent"], action: Float[Tensor, "B A"]
    ) -> Float[Tensor, "B *latent"]:
        """The latent one model step later."""
        ...

    def rollout(
        self, latent: Float[Tensor, "B *latent"], actions: Float[Tensor, "B S H A"]
    ) -> Float[Tensor, "B S H+1 *latent"]:
        """Feed predictions back for H steps; the first latent of each path is `latent` itself."""
        ...


@runtime_checkable
class Distance(Protocol):
    """Steps to go from one latent to another: d(x, x) = 0, d >= 0; a quasimetric need not be symmetric."""

    def __call__(
        self, source: Float[Tensor, "*batch D"], goal: Float[Tensor, "*batch D"]
    ) -> Float[Tensor, "*batch"]:
        """Distances of broadcastable batches of latents."""
        ...


@runtime_checkable
class Prepared(Protocol):
    """A distance, a cost term or a whole cost that finds something out about goals before it is asked."""

    def prepare(self, goal: Float[Tensor, "B *goal"]) -> int:
        """Find it out, for goals where that was not done before; predictor calls that it took."""
        ...


@runtime_checkable
class SequenceCost(Protocol):
    """The one thing a planner sees: what each action sequence costs."""

    def __call__(self, actions: Float[Tensor, "B S H A"]) -> Float[Tensor, "B S"]:
        """Costs; lower is better."""
        ...


@runtime_checkable
class StepwiseCost(Protocol):
    """What tree search and collocation see: a cost one imagined step at a time."""

    @property
    def latent(self) -> Float[Tensor, "B *latent"]:
        """Where every path starts."""
        ...

    def expand(
        self,
        latents: Float[Tensor, "B N *latent"],
        actions: Float[Tensor, "B N A"],
        depth: Int[Tensor, "B N"] | int,
        horizon: int,
    ) -> Expansion:
        """Take action number `depth` (from 1) of paths of `horizon` steps from every node, in one call."""
        ...


@runtime_checkable
class World(Protocol):
    """Thousands of worlds at once, for recording and evaluation; no model or planner ever sees one.

    The true state of each is a row of W numbers that holds everything, the layout too: it is what instance
    files store, recordings keep for probes, and pictures are drawn from. A goal is a state as well.
    """

    name: str  # as instance files and recipes write it
    episode_steps: int  # control steps given to reach a goal
    image: tuple[int, int, int]  # channels, height, width of a picture
    action_dim: int
    state_width: int

    def step(
        self,
        state: Float[Tensor, "B W"],
        actions: Float[Tensor, "B A"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B W"]:
        """The states one control step later, under actions in environment units, of any size."""
        ...

    def observe(self, state: Float[Tensor, "B W"]) -> Observation:
        """Pictures uint8 `B C height width`, and proprioception where the world has a body."""
        ...

    def reached(self, state: Float[Tensor, "B W"], goal: Float[Tensor, "B W"]) -> Bool[Tensor, " B"]:
        """The success rule; its docstring is quoted in reports."""
        ...

    def cost_to_go(self, state: Float[Tensor, "B W"], goal: Float[Tensor, "B W"]) -> Float[Tensor, " B"]:
        """The exact optimum still to pay, in the world's unit (pixels or steps); infinite if unreachable."""
        ...

    def is_possible(self, state: Float[Tensor, "B W"]) -> Bool[Tensor, " B"]:
        """False for states in a wall, outside, or not finite."""
        ...

    def sample_tasks(
        self, count: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "B W"], Float[Tensor, "B W"]]:
        """Starts and goals of fresh instances, each pair in one layout and solvable."""
        ...

    def sample_states(self, like: Float[Tensor, "B W"], generator: torch.Generator) -> Float[Tensor, "B W"]:
        """For each row another possible state in the same layout, spread over the free space."""
        ...

    def apart(self, state: Float[Tensor, "B W"], goal: Float[Tensor, "B W"]) -> Bool[Tensor, " B"]:
        """Whether the straight line does not solve what lies between them: the hard pairs of probes."""
        ...

    def typical_actions(self) -> Float[Tensor, "K A"]:
        """A few actions of recorded sizes in all directions, for greedy descent."""
        ...

    def positions(self, state: Float[Tensor, "*batch W"]) -> Float[Tensor, "*batch 2"]:
        """Where the moving thing is, in picture pixels (x = column, y = row)."""
        ...

    def scenery(self, state: Float[Tensor, " W"]) -> tuple[Patch, ...]:
        """The rectangles of one state's layout, for pictures."""
        ...


@runtime_checkable
class Bounds(Protocol):
    """Where actions may be; the only place that keeps them there."""

    def project(self, actions: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch A"]:
        """The nearest allowed actions."""
        ...


@runtime_checkable
class Planner(Protocol):
    """Search over action sequences for B problems at once. Configuration is the object's own fields."""

    @property
    def horizon(self) -> int:
        """Model steps that a fresh plan looks ahead."""
        ...

    def initial(self, problems: int, action_dim: int, device: torch.device | str = "cpu") -> Plan:
        """The plan to start from when nothing is known: B problems, `horizon` steps."""
        ...

    def plan(
        self, cost: SequenceCost, start: Plan, generator: torch.Generator | Sequence[torch.Generator]
    ) -> Search:
        """Refine `start` until it is cheap under `cost`, with one generator or one per problem.

        The horizon is that of `start`. Planners that grow paths ask for single steps as well, and refuse a
        cost that is no `StepwiseCost`.
        """
        ...


@runtime_checkable
class CostTerms(Protocol):
    """A cost not yet bound to a problem."""

    def bind(
        self, world_model: WorldModel, latent: Float[Tensor, "B *latent"], goal: Float[Tensor, "B *goal"]
    ) -> SequenceCost:
        """The cost of action sequences that start at `latent` and want `goal`."""
        ...


@runtime_checkable
class Controller(Protocol):
    """Observe, plan, act, shift: the same face for flat and hierarchical control."""

    def reset(self, goal: Observation | Shaped[Tensor, "B *observation"], generator: torch.Generator) -> None:
        """Forget everything and pursue new goals, one per problem."""
        ...

    def act(
        self,
        observation: Observation | Shaped[Tensor, "B *observation"],
        active: Bool[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B A_env"]:
        """Actions in environment units; problems that are not `active` are not planned and get zeros."""
        ...
