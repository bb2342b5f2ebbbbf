"""What is compared: a run's own methods and the references, as controllers with names for the tables."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from jepaplan.costs.steps import StepDistance
from jepaplan.evaluation.episodes import EpisodeOptions, Outcomes, Progress, run_episodes, true_states
from jepaplan.evaluation.references import references
from jepaplan.evaluation.tasks import Instances
from jepaplan.interfaces import Controller, Distance, World, WorldModel
from jepaplan.recipes.experiment import Experiment
from jepaplan.recipes.run import LoadedRun
from jepaplan.recipes.system import baseline_distance, build_controller
from jepaplan.types import InputError, SeedTree

VALUE_GUIDED = "value-guided"
PREDICTION_ONLY = "prediction only"


@dataclass(frozen=True, kw_only=True)
class Method:
    """A controller with a name for the tables; `sees_truth` for references that observe the true state."""

    name: str
    kind: Literal["ours", "baseline", "reference"]
    controller: Controller
    note: str
    sees_truth: bool = False


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """On what methods are evaluated, and what is kept of it."""

    instances: Instances
    keep_decisions: bool  # of our methods, for pictures
    seed: int  # of the planners' noise
    milliseconds: float | None = None  # for each search; None: it takes its time


def methods_of(
    run: LoadedRun, world: World, with_references: bool, milliseconds: float | None = None
) -> tuple[Method, ...]:
    """What is compared: ours first, then the baseline, then the references."""
    experiment, model = run.experiment, run.system.world_model
    prior = run.system.action_prior(experiment.control)
    plain = replace(experiment, cost=experiment.cost.without_value())

    def controller(
        world_model: WorldModel, distance: Distance | StepDistance, asked: Experiment = plain
    ) -> Controller:
        return build_controller(asked, world_model, distance, world.episode_steps, milliseconds, prior)

    found: list[Method] = []
    if experiment.learns_value:
        found.append(
            Method(
                name=VALUE_GUIDED,
                kind="ours",
                controller=controller(model, run.system.steps_to_go(experiment.cost), experiment),
                note="learned dynamics, ways imagined to each goal"
                if experiment.distance.kind == "imagined_ways"
                else "learned dynamics, learned value",
            )
        )
    found.append(
        Method(
            name=PREDICTION_ONLY,
            kind="baseline",
            controller=controller(model, baseline_distance(experiment)),
            note="learned dynamics, distance of latents",
        )
    )
    if with_references:
        # Worlds are on the CPU, and so is all that knows their states.
        units = copy.deepcopy(model.action_units).cpu()
        for reference in references(world, units, controller):
            found.append(
                Method(
                    name=reference.name,
                    kind="reference",
                    controller=reference.controller,
                    note=reference.meaning,
                    sees_truth=True,
                )
            )
    return tuple(found)


def evaluate_method(
    world: World,
    method: Method,
    plan: EvaluationPlan,
    share: tuple[int, int],
    on_progress: Callable[[str, Progress], None] | None = None,
) -> Outcomes:
    """Pursue the instances of one share with one method."""
    keep = tuple(range(len(plan.instances))) if plan.keep_decisions and method.kind == "ours" else ()

    def note(progress: Progress) -> None:
        if on_progress is not None:
            on_progress(method.name, progress)

    options = EpisodeOptions(
        episode_steps=world.episode_steps,
        observe=true_states if method.sees_truth else None,
        keep=keep,
        share=share,
        on_progress=note,
    )
    generator = SeedTree(plan.seed).torch("plan")
    return run_episodes(world, plan.instances, method.controller, generator, options)


def refuse_other_world(run: LoadedRun, world: World) -> None:
    """Refuse worlds whose actions or pictures are not those that the run learned from."""
    width, encoder = run.system.world_model.action_dim, run.experiment.encoder
    advice = "Evaluate a run that was trained on recordings of that world"
    if width != world.action_dim:
        raise InputError(
            f"{run.path} was trained on actions of {width} numbers; {world.name} takes {world.action_dim}. "
            f"{advice}"
        )
    image = (encoder.image_channels, encoder.image_size, encoder.image_size)
    if image != world.image:
        raise InputError(
            f"{run.path} was trained on images of channels, height and width {image}; {world.name} shows "
            f"{world.image}. {advice}"
        )
