"""Collocation: latents and actions are optimised together, and every time step is imagined at once.

GRASP, arXiv:2602.00475 (lifted states, stop-gradient, state noise, periodic synchronisation); the exact
variant is the method of multipliers: Hestenes, "Multiplier and Gradient Methods", 1969; Nocedal & Wright,
"Numerical Optimization", 2006, section 17.3.

    paper                          here
    s_1..s_(T-1)                   latents[:, :, 1:]    virtual: what the path would like to pass through
    |F(sg(s_t), a_t) - s_(t+1)|^2  penalty * the squared defect of each step, `stop_gradient=True`
    w |F(sg(s_t), a_t) - g|^2      shaping * `to_go` of each step, in place of the distance to the goal
    state noise                    latent_noise
    every 50 steps, 10 of Adam     synchronise_every, shooting.steps
    lambda (method of multipliers) multipliers: the price of a defect, `stop_gradient=False`

Shooting sends its gradient through all H steps one after the other; here each step sees only its neighbours,
so gradients neither explode nor vanish, and H steps are one call of the model. The two variants differ
in what crosses a step. With `stop_gradient` nothing flows through the model into a latent: an imprecise
model's gradients with respect to latents are the ones that lead astray, and `shaping` has to say at every
step where to go. Without it the multipliers carry later costs back, and on a convex problem the search ends
where shooting does, whatever the penalty.

Departs from GRASP: there is no goal latent here, only a cost, so the last latent is not fixed and virtual
latents begin on the imagined path of the start's actions. A path is judged by its whole rollout only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jepaplan.interfaces import SequenceCost, StepwiseCost
from jepaplan.planners.descent import (
    GRADIENT_EVALUATIONS,
    Adam,
    Descent,
    Moments,
    Optimiser,
    clipped,
    descended,
    gradients,
)
from jepaplan.planners.plan import evaluate, last, uninformed
from jepaplan.planners.proposals import BoxBound, NormBound, Randomness, check_sampling, draw
from jepaplan.planners.stepwise import (
    Imagined,
    as_stepwise,
    at_once,
    cheapest,
    expand,
    follow,
    roots,
    standard_normal,
)
from jepaplan.types import InputError, Plan, Search


@dataclass(frozen=True, kw_only=True)
class Collocation:
    """Configuration and planner at once; needs a `StepwiseCost`. Counts a gradient as three evaluations."""

    starts: int = 16  # per problem; start 0 is the plan itself
    horizon: int = 16  # model steps
    steps: int = 200  # of descent on latents and actions together
    optimiser: Optimiser = field(default_factory=lambda: Adam(learning_rate=0.05))  # of the actions
    latent_optimiser: Optimiser = field(default_factory=Adam)  # learning_rate in units of the latents
    penalty: float = 1.0  # of a squared defect, in units of cost per squared unit of latent
    stop_gradient: bool = False  # True: GRASP; False: exact, by multipliers
    shaping: float = 1.0  # weight of `to_go` at the steps before the last; only with stop_gradient
    latent_noise: float = 0.01  # standard deviation, added at every step, in units of the latents
    synchronise_every: int = 50  # steps; then virtual latents become imagined ones again
    shooting: Descent | None = field(  # through whole paths, at every synchronisation
        default_factory=lambda: Descent(steps=10, optimiser=Adam(learning_rate=0.01))
    )
    std: float = 1.0  # of the starts around the plan, in normalised action units
    bounds: NormBound | BoxBound | None = None
    correlation: float = 0.0  # of the starts' noise from one step to the next

    def __post_init__(self) -> None:
        """Refuse nonsense."""
        check_sampling(
            samples=self.starts,
            horizon=self.horizon,
            iterations=self.steps,
            std=self.std,
            correlation=self.correlation,
        )
        if not self.penalty > 0:
            raise InputError(f"penalty holds the steps together, so it must be positive; got {self.penalty}")
        if self.synchronise_every < 1:
            raise InputError(f"synchronise_every must be at least 1 step; got {self.synchronise_every}")
        if self.shaping < 0 or self.latent_noise < 0:
            raise InputError(
                f"shaping and latent_noise must not be negative; got {self.shaping} and {self.latent_noise}"
            )

    def initial(self, problems: int, action_dim: int, device: torch.device | str = "cpu") -> Plan:
        """The plan to start from when nothing is known."""
        return uninformed(problems, self.horizon, action_dim, self.std, device)

    def schedule(self, horizon: int) -> list[int]:
        """Evaluations of each refinement."""
        full, rest = divmod(self.steps, self.synchronise_every)
        chunks = [self.synchronise_every] * full + [rest] * (rest > 0)
        looks = [1, *(GRADIENT_EVALUATIONS * chunk + self._looks for chunk in chunks)]
        return [number * self.starts * horizon for number in looks]

    def fitting(self, evaluations: int, horizon: int) -> "Collocation":
        """The same planner with at most so many evaluations, if it can: fewer steps, then fewer starts."""
        looks = evaluations // (self.starts * horizon) - 1
        full, rest = divmod(looks, GRADIENT_EVALUATIONS * self.synchronise_every + self._looks)
        steps = full * self.synchronise_every + max(0, rest - self._looks) // GRADIENT_EVALUATIONS
        starts = self.starts
        if steps < 1:
            starts = min(starts, evaluations // ((1 + GRADIENT_EVALUATIONS + self._looks) * horizon))
        return replace(self, starts=max(1, starts), steps=min(self.steps, max(1, steps)))

    @property
    def _looks(self) -> int:
        """How often a synchronisation evaluates each path."""
        return 1 if self.shooting is None else 2 + GRADIENT_EVALUATIONS * self.shooting.steps

    @torch.no_grad()
    def refinements(
        self, cost: SequenceCost | StepwiseCost, start: Plan, generator: Randomness
    ) -> Iterator[Search]:
        """What is known at the start and after every synchronisation."""
        stepwise = as_stepwise(cost, "Collocation")
        actions = draw(
            start, self.starts, generator, bounds=self.bounds, correlation=self.correlation, keep_nominal=True
        )
        lifted = _lift(stepwise, actions)
        best, costs = actions, lifted.costs
        spent = actions.shape[1] * actions.shape[2]
        yield Search(Plan(cheapest(best, costs), start.std), best, costs, spent)
        left = self.steps
        while left > 0:
            chunk = min(left, self.synchronise_every)
            left -= chunk
            lifted = self._descend(stepwise, lifted, chunk, generator)
            spent += chunk * GRADIENT_EVALUATIONS * lifted.actions.shape[1] * lifted.actions.shape[2]
            lifted, used = self._synchronise(stepwise, lifted)
            spent += used
            better = lifted.costs < costs
            best = lifted.actions.where(better[:, :, None, None], best)
            costs = lifted.costs.where(better, costs)
            yield Search(Plan(cheapest(best, costs), start.std), best, costs, spent)

    def plan(self, cost: SequenceCost | StepwiseCost, start: Plan, generator: Randomness) -> Search:
        """Refine `start`: its horizon counts, and its std is how far apart the other starts are."""
        return last(self.refinements(cost, start, generator))

    def _descend(self, cost: StepwiseCost, lifted: "Lifted", steps: int, generator: Randomness) -> "Lifted":
        """Some starts after the others, as they do not know of each other: smaller blocks of memory stay."""
        parts = [self._descend_some(cost, some, steps, generator) for some in lifted.split()]
        return parts[0] if len(parts) == 1 else Lifted.joined(parts)

    def _descend_some(
        self, cost: StepwiseCost, lifted: "Lifted", steps: int, generator: Randomness
    ) -> "Lifted":
        actions, latents = lifted.actions, lifted.latents
        of_actions, of_latents = Moments.none(actions), Moments.none(latents)
        defect = torch.zeros_like(latents)
        for _ in range(steps):
            latents = latents.add(standard_normal(latents, generator), alpha=self.latent_noise)
            with torch.enable_grad():
                leaves = [actions.detach().requires_grad_(True), latents.detach().requires_grad_(True)]
                loss, defect = self._loss(cost, leaves[0], leaves[1], lifted.multipliers)
                slopes = gradients(loss, leaves)
            slope = clipped(slopes[0], None)
            actions, of_actions = self.optimiser.step(actions, slope, of_actions)
            actions = actions if self.bounds is None else self.bounds.project(actions)
            slope = clipped(slopes[1], None)
            latents, of_latents = self.latent_optimiser.step(latents, slope, of_latents)
        multipliers = lifted.multipliers
        if not self.stop_gradient:
            multipliers = multipliers + 2 * self.penalty * defect.detach()
        return Lifted(actions, latents, multipliers, lifted.costs)

    def _loss(
        self,
        cost: StepwiseCost,
        actions: Float[Tensor, "B S H A"],
        latents: Float[Tensor, "B S h *latent"],
        multipliers: Float[Tensor, "B S h *latent"],
    ) -> tuple[Float[Tensor, "B S"], Float[Tensor, "B S h *latent"]]:
        """What every path costs with its defects, and the defects; h = H - 1 latents are virtual."""
        samples, horizon = actions.shape[1:3]
        before = torch.cat([roots(cost, samples)[:, :, None].to(latents), latents], dim=2)
        if self.stop_gradient:
            before = before.detach()
        step = expand(cost, before.flatten(1, 2), actions.flatten(1, 2), _depths(actions), horizon)
        step_cost, to_go = (part.unflatten(1, (samples, horizon)) for part in (step.step_cost, step.to_go))
        defect = step.latents.unflatten(1, (samples, horizon))[:, :, :-1].to(latents) - latents
        held_together = multipliers.add(defect, alpha=self.penalty) * defect
        loss = step_cost.sum(dim=-1) + to_go[:, :, -1] + held_together.flatten(2).sum(dim=-1)
        if self.stop_gradient:
            loss = loss + self.shaping * to_go[:, :, :-1].sum(dim=-1)
        return loss, defect

    def _synchronise(self, cost: StepwiseCost, lifted: "Lifted") -> tuple["Lifted", int]:
        """The actions' true paths, after a few gradients along them; and how many evaluations that took."""
        actions = lifted.actions
        spent = actions.shape[1] * actions.shape[2]
        if self.shooting is not None:
            found = descended(
                lambda actions: follow(cost, actions).costs, actions, self.shooting, self.bounds
            )
            actions, spent = found.actions, spent + found.evaluations
        return _lift(cost, actions, lifted.multipliers), spent


@dataclass(frozen=True)
class Lifted:
    """Paths whose latents are variables of their own; h = H - 1 of them, as the first is observed."""

    actions: Float[Tensor, "B S H A"]
    latents: Float[Tensor, "B S h *latent"]  # after every action but the last
    multipliers: Float[Tensor, "B S h *latent"]
    costs: Float[Tensor, "B S"]  # of the actions' whole rollout, when last synchronised

    def split(self) -> list["Lifted"]:
        """Groups of starts whose latents stay in kept memory together."""
        parts = (one.split(at_once(self.latents), dim=1) for one in self.fields())
        return [Lifted(*part) for part in zip(*parts, strict=True)]

    @classmethod
    def joined(cls, parts: Sequence["Lifted"]) -> "Lifted":
        """The same starts as one."""
        return cls(
            *(torch.cat(column, dim=1) for column in zip(*(one.fields() for one in parts), strict=True))
        )

    def fields(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """In the order of the constructor."""
        return self.actions, self.latents, self.multipliers, self.costs


def _lift(cost: StepwiseCost, actions: Float[Tensor, "B S H A"], multipliers: Tensor | None = None) -> Lifted:
    """Virtual latents where the actions lead."""
    paths: list[Imagined] = []

    def total(actions: Float[Tensor, "B S H A"]) -> Float[Tensor, "B S"]:
        paths.append(follow(cost, actions))
        return paths[-1].costs

    costs = evaluate(total, actions)
    latents = paths[-1].latents[:, :, :-1]
    return Lifted(actions, latents, torch.zeros_like(latents) if multipliers is None else multipliers, costs)


def _depths(actions: Float[Tensor, "B S H A"]) -> Int[Tensor, "B N"]:
    problems, samples, horizon = actions.shape[:3]
    return torch.arange(1, horizon + 1, device=actions.device).repeat(samples).expand(problems, -1)
