"""Run a controller on instances, all of them as one batch, and write down what happened.

A problem that reaches its goal leaves the batch: it is neither planned nor moved any more. The controller
sees observations and which problems are still running, nothing else; success is `world.reached`, judged
here. It counts at any time up to the last step, the start included (PLDM, arXiv:2502.14819).
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from jepaplan.control.record import Decision
from jepaplan.envs.wall import WallWorld
from jepaplan.evaluation.statistics import SuccessRate
from jepaplan.evaluation.tasks import Instances
from jepaplan.interfaces import Controller
from jepaplan.types import InputError

NEVER = -1  # steps to success of an instance that was not solved

Observe = Callable[[Float[Tensor, "B W"]], Shaped[Tensor, "B *observation"]]


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
    """How long episodes last, what is observed, and what is kept for pictures."""

    episode_steps: int
    observe: Observe | None = None  # None: pixels
    keep: tuple[int, ...] = ()  # instances whose decisions are kept
    on_progress: Callable[[Progress], None] | None = None

    def __post_init__(self) -> None:
        """Refuse episodes without steps."""
        if self.episode_steps < 1:
            raise InputError(
                f"episode_steps must be at least 1; got {self.episode_steps}. The length that belongs to a "
                "world is `world.config.episode_steps`."
            )


@dataclass(frozen=True, kw_only=True)
class Fan:
    """What was considered when one instance was planned: cheapest candidates, and the plan they became."""

    step: int
    state: Float[Tensor, " W"]  # where the dot really was
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
    paths: Float[
        Tensor, "B frames 2"
    ]  # one frame more than steps; a solved problem stays where it was solved
    seconds_per_step: float  # planning time of one step of one problem
    planning_seconds: float
    evaluations_per_step: float  # predictor calls per environment step and problem
    fans: Mapping[int, tuple[Fan, ...]] = field(default_factory=dict)

    @property
    def rate(self) -> SuccessRate:
        """Success with its Wilson interval."""
        return SuccessRate(int(self.success.sum()), len(self.success))

    def best_and_worst(self) -> tuple[int, int]:
        """The instance solved with the least detour, of the longer half, and the one that failed worst."""
        length = (self.paths[:, 1:] - self.paths[:, :-1]).norm(dim=-1).sum(-1)
        straight = (self.instances.goals - self.instances.starts).norm(dim=-1)
        detour = torch.where(self.success, length / straight, torch.inf)
        # short tasks are solved without detour and show little
        detour = torch.where(straight < straight.median(), detour + 100, detour)
        best = detour.argmin() if self.success.any() else self.final_distance.argmin()
        # among solved ones only, the worst is the one that took longest
        badness = torch.where(self.success, self.steps_to_success * 1e-6, self.final_distance)
        return int(best), int(badness.argmax())


def pixels(world: WallWorld) -> Observe:
    """Observe images."""
    return lambda state: world.render(*world.split_state(state))


def true_states(world: WallWorld) -> Observe:
    """Observe the true state: for references that know the world."""
    return lambda state: state


@torch.no_grad()
def run_episodes(
    world: WallWorld,
    instances: Instances,
    controller: Controller,
    generator: torch.Generator,
    options: EpisodeOptions,
) -> Outcomes:
    """Pursue every instance's goal for at most `options.episode_steps` steps."""
    observe = options.observe or pixels(world)
    layouts, goals, positions = instances.layouts, instances.goals, instances.starts.clone()
    controller.reset(observe(world.state(goals, layouts)), generator)
    steps_to_success = torch.where(world.reached(positions, goals), 0, NEVER)
    recorder, paths, began = _Recorder(options.keep), [positions], time.perf_counter()
    for step in range(options.episode_steps):
        active = steps_to_success == NEVER
        if not active.any():
            break
        state = world.state(positions, layouts)
        actions = recorder.act(controller, observe(state), active)
        recorder.note(controller, step, state)
        moved = world.step(positions, actions.to(positions), layouts, generator)
        positions = torch.where(active[:, None], moved, positions)
        paths.append(positions)
        arrived = active & world.reached(positions, goals)
        steps_to_success = torch.where(arrived, step + 1, steps_to_success)
        if options.on_progress:
            options.on_progress(_progress(step + 1, options.episode_steps, steps_to_success, began))
    paths += [positions] * (options.episode_steps + 1 - len(paths))
    return Outcomes(
        instances=instances,
        success=steps_to_success != NEVER,
        steps_to_success=steps_to_success,
        final_distance=(positions - goals).norm(dim=-1),
        paths=torch.stack(paths, dim=1),
        seconds_per_step=recorder.seconds / max(recorder.problem_steps, 1),
        planning_seconds=recorder.seconds,
        evaluations_per_step=recorder.evaluations / max(recorder.problem_steps, 1),
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

    def act(self, controller: Controller, observation: Tensor, active: Bool[Tensor, " B"]) -> Tensor:
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
