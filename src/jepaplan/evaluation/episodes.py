"""Run a controller on instances, all of them as one batch, and write down what happened.

A problem that reaches its goal leaves the batch: it is neither planned nor moved any more. The controller
sees observations and which problems are still running, nothing else; success is `world.reached`, judged
here. It counts at any time up to the last step, the start included (PLDM, arXiv:2502.14819).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepaplan.control.record import Decision
from jepaplan.evaluation.statistics import SuccessRate
from jepaplan.evaluation.tasks import Instances
from jepaplan.interfaces import Controller, World
from jepaplan.types import InputError, Observation

NEVER = -1  # steps to success of an instance that was not solved

Observe = Callable[[Float[Tensor, "B W"]], Observation]


@runtime_checkable
class Deciding(Protocol):
    """A controller that remembers what it considered last."""

    @property
    def last(self) -> Decision | None:
        """The record of the latest `act`."""
        ...


@dataclass(frozen=True)
class Progress:
    """How far an evaluation is."""

    step: int
    steps: int
    solved: int
    running: int
    seconds: float  # since the start


@dataclass(frozen=True, kw_only=True)
class EpisodeOptions:
    """How long episodes last, what is observed, what is kept for pictures, and whose share it is."""

    episode_steps: int
    observe: Observe | None = None  # None: what the world shows
    keep: tuple[int, ...] = ()  # instances whose decisions are kept
    share: tuple[int, int] = (0, 1)  # (k, n): pursue every n-th instance from the k-th, as one batch of n
    on_progress: Callable[[Progress], None] | None = None

    def __post_init__(self) -> None:
        """Refuse episodes without steps and shares of nothing."""
        if self.episode_steps < 1:
            raise InputError(
                f"episode_steps must be at least 1; got {self.episode_steps}. The length that belongs to a "
                "world is `world.episode_steps`."
            )
        if not 0 <= self.share[0] < self.share[1]:
            raise InputError(f"share is (k, n) with 0 <= k < n: the k-th of n shares; got {self.share}")


@dataclass(frozen=True, kw_only=True)
class Fan:
    """What was considered when one instance was planned: cheapest candidates, and the plan they became."""

    step: int
    state: Float[Tensor, " W"]  # the true one
    plan: Float[Tensor, "H A"]  # normalised action units
    candidates: Float[Tensor, "K H A"]  # cheapest first
    costs: Float[Tensor, " K"]
    tied: Bool[Tensor, " K"]  # as good as the cheapest
    predicted: Mapping[str, float]  # what the plan costs in imagination, term by term


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """What a controller achieved on instances."""

    instances: Instances
    success: Bool[Tensor, " B"]
    steps_to_success: Int[Tensor, " B"]  # NEVER where there was none
    final_distance: Float[Tensor, " B"]  # pixels to the goal, at success or at the end
    # One frame more than steps; a solved problem stays where it was solved. Both in picture pixels.
    paths: Float[Tensor, "B frames 2"]
    goals: Float[Tensor, "B 2"]
    planning_seconds: float
    problem_steps: int  # decisions asked for, over all problems
    evaluations: int  # predictor calls, over all problems
    fans: Mapping[int, tuple[Fan, ...]] = field(default_factory=dict)

    @property
    def seconds_per_step(self) -> float:
        """Planning time of one step of one problem."""
        return self.planning_seconds / max(self.problem_steps, 1)

    @property
    def evaluations_per_step(self) -> float:
        """Predictor calls per environment step and problem."""
        return self.evaluations / max(self.problem_steps, 1)

    @property
    def rate(self) -> SuccessRate:
        """Success with its Wilson interval."""
        return SuccessRate(int(self.success.sum()), len(self.success))

    def best_and_worst(self) -> tuple[int, int]:
        """The instance solved with the least detour, of the longer half, and the one that failed worst."""
        length = (self.paths[:, 1:] - self.paths[:, :-1]).norm(dim=-1).sum(-1)
        straight = (self.goals - self.paths[:, 0]).norm(dim=-1)
        detour = torch.where(self.success, length / straight, torch.inf)
        # short tasks are solved without detour and show little
        detour = torch.where(straight < straight.median(), detour + 100, detour)
        best = detour.argmin() if self.success.any() else self.final_distance.argmin()
        # among solved ones only, the worst is the one that took longest
        badness = torch.where(self.success, self.steps_to_success * 1e-6, self.final_distance)
        return int(best), int(badness.argmax())


def true_states(state: Float[Tensor, "B W"]) -> Observation:
    """Observe the true state: for references that know the world."""
    return Observation(state)


@torch.no_grad()
def run_episodes(
    world: World,
    instances: Instances,
    controller: Controller,
    generator: torch.Generator,
    options: EpisodeOptions,
) -> Outcomes:
    """Pursue every instance's goal for at most `options.episode_steps` steps.

    Instances of other shares are there, so that what controllers draw for them is drawn; they do not move.
    """
    observe = options.observe or world.observe
    number, shares = options.share
    ours = torch.arange(len(instances)) % shares == number
    goals, state = instances.goals, instances.starts.clone()
    controller.reset(observe(goals), generator)
    steps_to_success = torch.where(world.reached(state, goals), 0, NEVER)
    recorder, places, began = _Recorder(options.keep), [world.positions(state)], time.perf_counter()
    for step in range(options.episode_steps):
        active = ours & (steps_to_success == NEVER)
        if not active.any():
            break
        actions = recorder.act(controller, observe(state), active)
        recorder.note(controller, step, state)
        moved = state.clone()
        moved[ours] = world.step(state[ours], actions.to(state)[ours], generator)
        state = torch.where(active[:, None], moved, state)
        places.append(world.positions(state))
        arrived = active & world.reached(state, goals)
        steps_to_success = torch.where(arrived, step + 1, steps_to_success)
        if options.on_progress:
            options.on_progress(_progress(step + 1, options.episode_steps, steps_to_success[ours], began))
    places += [places[-1]] * (options.episode_steps + 1 - len(places))
    return _outcomes(
        instances, steps_to_success, torch.stack(places, dim=1), world.positions(goals), recorder
    )


def merged(shares: Sequence[Outcomes]) -> Outcomes:
    """The outcomes of all shares of the same instances, in the order of the shares, as one."""

    def together(column: Callable[[Outcomes], Tensor]) -> Tensor:
        found = column(shares[0]).clone()
        for number, share in enumerate(shares):
            found[number :: len(shares)] = column(share)[number :: len(shares)]
        return found

    return Outcomes(
        instances=shares[0].instances,
        success=together(lambda share: share.success),
        steps_to_success=together(lambda share: share.steps_to_success),
        final_distance=together(lambda share: share.final_distance),
        paths=together(lambda share: share.paths),
        goals=shares[0].goals,
        planning_seconds=sum(share.planning_seconds for share in shares),
        problem_steps=sum(share.problem_steps for share in shares),
        evaluations=sum(share.evaluations for share in shares),
        fans={number: shares[number % len(shares)].fans[number] for number in shares[0].fans},
    )


def _outcomes(
    instances: Instances,
    steps_to_success: Int[Tensor, " B"],
    paths: Float[Tensor, "B frames 2"],
    goals: Float[Tensor, "B 2"],
    recorder: "_Recorder",
) -> Outcomes:
    return Outcomes(
        instances=instances,
        success=steps_to_success != NEVER,
        steps_to_success=steps_to_success,
        final_distance=(paths[:, -1] - goals).norm(dim=-1),
        paths=paths,
        goals=goals,
        planning_seconds=recorder.seconds,
        problem_steps=recorder.problem_steps,
        evaluations=recorder.evaluations,
        fans={number: tuple(fans) for number, fans in recorder.fans.items()},
    )


def _progress(step: int, steps: int, steps_to_success: Int[Tensor, " B"], began: float) -> Progress:
    running = int((steps_to_success == NEVER).sum())
    solved = len(steps_to_success) - running
    return Progress(step, steps, solved, running, time.perf_counter() - began)


class _Recorder:
    """Adds up time and predictor calls, and keeps the decisions that were asked for."""

    def __init__(self, keep: tuple[int, ...]) -> None:
        self.seconds = 0.0
        self.problem_steps = 0
        self.evaluations = 0
        self.fans: dict[int, list[Fan]] = {number: [] for number in keep}
        self._seen: Decision | None = None

    def act(self, controller: Controller, observation: Observation, active: Bool[Tensor, " B"]) -> Tensor:
        began = time.perf_counter()
        actions = controller.act(observation, active)
        self.seconds += time.perf_counter() - began
        self.problem_steps += int(active.sum())
        return actions

    def note(self, controller: Controller, step: int, state: Float[Tensor, "B W"]) -> None:
        decision = controller.last if isinstance(controller, Deciding) else None
        if decision is None or decision is self._seen:
            return  # nothing was planned at this step
        self._seen = decision
        self.evaluations += decision.evaluations * len(decision.problems)
        for row, number in enumerate(decision.problems.tolist()):
            if number in self.fans:
                self.fans[number].append(_fan(decision, row, step, state[number]))


def _fan(decision: Decision, row: int, step: int, state: Float[Tensor, " W"]) -> Fan:
    return Fan(
        step=step,
        state=state.cpu(),
        plan=decision.plan.mean[row].cpu(),
        candidates=decision.candidates[row].cpu(),
        costs=decision.costs[row].cpu(),
        tied=decision.tied[row].cpu(),
        predicted={name: float(share[row]) for name, share in decision.predicted.items()},
    )
