"""Receding-horizon control: observe, plan, execute the first actions, shift the plan, plan again.

    literature                     here
    MPC, "replan every k"          replan_every
    warm start                     warm_start="shift": begin the next search from the unexecuted tail
    PLDM's re-used nominal         warm_start="keep": from the same plan, shifted when the horizon shrinks
    min(n_steps - i, max_length)   episode_steps: no plan looks beyond the end of the episode

Problems are independent. Each has its own random generator, split off at `reset`, so what a problem does is
the same whether it is controlled alone or among others, and whoever else has finished. (Matrix products may
still round differently for different batch sizes.) Plans are searched for where the world model's parameters
are, and generators stay where they were made: one on the CPU deals the same noise to every device.
"""

import math
import time
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from jepaplan.control.devices import seen_at_home
from jepaplan.control.goals import Goal, PursuedGoal, Standing, as_goal
from jepaplan.control.learned_prior import LearnedPrior
from jepaplan.control.record import Decision, shortlist
from jepaplan.interfaces import CostTerms, Planner, Prepared, SequenceCost, WorldModel
from jepaplan.planners.deadline import leadable
from jepaplan.planners.proposals import shifted
from jepaplan.types import InputError, Observation, Plan


@runtime_checkable
class ExplainedCost(Protocol):
    """A sequence cost that knows its terms."""

    def breakdown(self, actions: Float[Tensor, "B S H A"]) -> dict[str, Float[Tensor, "B S"]]:
        """Each term's share."""
        ...


@dataclass
class Pursuit:
    """Where B problems stand between two calls of `act`."""

    goal: PursuedGoal
    standing: Standing  # which subgoal each problem is at
    generators: list[torch.Generator]
    plans: Float[Tensor, "B H A"]  # the latest of each problem
    executed: Int[Tensor, " B"]  # how many steps of that plan have been executed
    planned: Bool[Tensor, " B"]  # false until a problem has a plan
    horizon: int  # of the latest plans, as `plans` is as long as the longest
    step: int = 0  # of the episode


@dataclass(kw_only=True)
class RecedingHorizon:
    """A `Controller` made of any planner, any cost and any world model; `last` tells what it considered."""

    world_model: WorldModel
    planner: Planner
    cost: CostTerms
    prior: LearnedPrior | None = None  # leads the search: it is asked at every replan
    replan_every: int = 1  # environment steps
    warm_start: Literal["shift", "keep"] = "shift"
    episode_steps: int | None = None  # None: the horizon never shrinks
    kept_candidates: int = 32  # per problem, in the record
    explains: bool = True  # the record says what the plan is predicted to cost: it is imagined once more
    tie_fraction: float = 0.01  # of the standard deviation of the candidates' costs
    last: Decision | None = field(default=None, init=False)
    _pursuit: Pursuit | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse schedules that cannot be followed."""
        if not 1 <= self.replan_every <= self.planner.horizon:
            raise InputError(
                f"replan_every={self.replan_every} must lie between 1 and the planner's horizon of "
                f"{self.planner.horizon}: a plan has no more actions than that"
            )
        if self.episode_steps is not None and self.episode_steps < 1:
            raise InputError(f"episode_steps must be at least 1, or None; got {self.episode_steps}")
        if self.prior is not None:
            leadable(self.planner)
        if self.world_model.stride != 1:
            raise InputError(
                f"this world model covers {self.world_model.stride} environment steps per model step; "
                "RecedingHorizon executes one environment action per model step, of a model with stride=1."
            )

    @torch.no_grad()
    def reset(
        self, goal: Goal | Observation | Shaped[Tensor, "B *observation"], generator: torch.Generator
    ) -> None:
        """Forget everything and pursue new goals, one per problem; an observation is a picture to be seen."""
        wanted = as_goal(goal)
        problems = len(wanted)
        pursued = wanted.encode(self.world_model)
        fresh = self.planner.initial(problems, self.world_model.action_dim, pursued.device)
        nothing = torch.zeros(problems, dtype=torch.long, device=pursued.device)
        self.last = None
        self._pursuit = Pursuit(
            goal=pursued,
            standing=Standing.begin(problems, pursued.device),
            generators=split(generator, problems),
            plans=fresh.mean,
            executed=nothing,
            planned=nothing.bool(),
            horizon=self.planner.horizon,
        )

    @torch.no_grad()
    def act(
        self,
        observation: Observation | Shaped[Tensor, "B *observation"],
        active: Bool[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B A_env"]:
        """Actions in environment units; problems that are not `active` are not planned and get zeros."""
        pursuit, seen = self._pursuit, Observation.of(observation)
        if pursuit is None or len(seen.frames) != len(pursuit.planned):
            expected = (
                "goals first: reset(goal, generator)"
                if pursuit is None
                else f"{len(pursuit.planned)} observations"
            )
            raise InputError(f"act was given {len(seen.frames)} observations and needs {expected}")
        active = torch.ones_like(pursuit.planned) if active is None else active.to(pursuit.planned.device)
        exhausted = pursuit.executed >= min(self.replan_every, pursuit.horizon)
        due = (active & (exhausted | ~pursuit.planned)).nonzero()[:, 0]
        if len(due) > 0:
            self._replan(pursuit, seen, due)
        pursuit.step += 1
        # an inactive problem may have used up its plan: any action will do, as zeros replace it
        now = pursuit.executed.clamp(max=pursuit.plans.shape[1] - 1)
        actions = pursuit.plans[torch.arange(len(now), device=now.device), now]
        pursuit.executed += active
        taken = self.world_model.action_units.inverse(actions).where(active[:, None], 0.0)
        return taken.to(seen.frames.device)  # the world's, not the world model's

    def _replan(self, pursuit: Pursuit, seen: Observation, due: Int[Tensor, " n"]) -> None:
        began = time.perf_counter()
        start = self._start(pursuit, due)
        rows = due.to(seen.frames.device)
        felt = None if seen.proprioception is None else seen.proprioception[rows]
        seen = seen_at_home(Observation(seen.frames[rows], felt), self.world_model)
        latent = self.world_model.encode(seen.frames, seen.proprioception)
        goal, standing = pursuit.goal.current(latent, pursuit.standing.of(due), pursuit.step)
        pursuit.standing = pursuit.standing.updated(standing)
        prepared = self.cost.prepare(goal) if isinstance(self.cost, Prepared) else 0
        cost = self.cost.bind(self.world_model, latent, goal)
        generators = [pursuit.generators[problem] for problem in due.tolist()]
        horizon, planner = start.mean.shape[1], self.planner
        if self.prior is not None:
            planner = self.prior.lead(planner, latent, goal, horizon)
            prepared += horizon * len(due)
        search = planner.plan(cost, start, generators)
        pursuit.plans[due, :horizon] = search.plan.mean
        pursuit.plans[due, horizon:] = 0
        pursuit.executed[due] = 0
        pursuit.planned[due] = True
        pursuit.horizon = horizon
        best = shortlist(search, self.kept_candidates, self.tie_fraction)
        self.last = Decision(
            problems=due,
            plan=search.plan,
            predicted=explain(cost, search.plan) if self.explains else {},
            candidates=best.candidates,
            costs=best.costs,
            tied=best.tied,
            tie_tolerance=best.tolerance,
            evaluations=search.evaluations + horizon * self.explains + math.ceil(prepared / len(due)),
            seconds=time.perf_counter() - began,
        )

    def _start(self, pursuit: Pursuit, due: Int[Tensor, " n"]) -> Plan:
        fresh = self.planner.initial(len(due), self.world_model.action_dim, pursuit.plans.device)
        horizon = self.planner.horizon
        if self.episode_steps is not None:
            horizon = max(1, min(horizon, self.episode_steps - pursuit.step))
        executed = pursuit.executed[due]
        if self.warm_start == "keep" and horizon == pursuit.horizon:
            executed = torch.zeros_like(executed)
        mean = shifted(pursuit.plans[due], executed)
        return Plan(mean=mean[:, :horizon], std=fresh.std[:, :horizon])


def split(generator: torch.Generator, count: int) -> list[torch.Generator]:
    """`count` independent generators, seeded from one; the first are the same however many there are."""
    seeds = [
        int(torch.randint(2**62, (), generator=generator, device=generator.device)) for _ in range(count)
    ]
    return [torch.Generator(generator.device).manual_seed(seed) for seed in seeds]


def explain(cost: SequenceCost, plan: Plan) -> dict[str, Float[Tensor, " n"]]:
    """What the plan's mean costs, term by term if the cost can tell."""
    actions = plan.mean[:, None]
    if isinstance(cost, ExplainedCost):
        return {name: share[:, 0] for name, share in cost.breakdown(actions).items()}
    return {"cost": cost(actions)[:, 0]}
