"""A reproduction is a grid of trainings and evaluations; what is found of it lies in one folder.

    Reproduction    what a page of docs/results stands on: trainings by seed, evaluations of each
    Training        an experiment; its runs lie in FOLDER/<training>/seed<k>, its recordings in FOLDER/data
    Evaluation      a search and a cost for the run of a training, on one set of instances
    Claim           what the source says and a paired test can answer

A finished evaluation is known by the digest of all that decides it: with other settings it is done again.
`reproduction_pieces` says what is to be done of it, `reproduction_work` does the work, `reproduction_page`
writes the page.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from jepaplan.envs.worlds import find_world
from jepaplan.evaluation.episodes import EpisodeOptions, Outcomes, run_episodes
from jepaplan.evaluation.episodes import Progress as EpisodeProgress
from jepaplan.evaluation.tasks import load_instances
from jepaplan.recipes.experiment import Experiment
from jepaplan.recipes.reproduction_work import read_outcome
from jepaplan.recipes.run import load_run
from jepaplan.recipes.serialise import fingerprint
from jepaplan.recipes.system import baseline_distance, build_controller
from jepaplan.types import InputError, SeedTree

CALLS = "predictor calls per environment step"  # the axis that is measured, all calls counted
_FILE_NAME = r"[A-Za-z0-9][A-Za-z0-9_.+-]*"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One cell of a table: with which search and cost the run of a training meets which instances."""

    name: str  # of the file with its outcomes
    method: str  # row of the table
    variant: str = ""  # of the method: where there are several, tables set them side by side
    task: str  # column of the table
    instances: str
    experiment: Experiment  # planner, cost and control that are used; the models come from the run
    guided: bool = True  # by what was learned as value; without it by the plain distance of latents
    episodes: int | None = None  # the first of the instances; None: all
    paper: float | None = None  # success that the source reports
    at: float | None = None  # where variants are a number: their order in tables, their place on an axis

    def __post_init__(self) -> None:
        _refuse_no_file_name("an evaluation", self.name)

    @property
    def label(self) -> str:
        """Method and variant in one: the method of the rows for machines, and what claims name."""
        return f"{self.method}, {self.variant}" if self.variant else self.method


@dataclass(frozen=True, kw_only=True)
class Training:
    """One experiment and what is evaluated of it."""

    name: str
    experiment: Experiment
    evaluations: tuple[Evaluation, ...]

    def __post_init__(self) -> None:
        _refuse_no_file_name("a training", self.name)
        _refuse_twice(f"evaluations of {self.name}", [cell.name for cell in self.evaluations])

    def seeds(self, count: int) -> range:
        """Its first `count` seeds, from the experiment's own."""
        return range(self.experiment.seed, self.experiment.seed + count)

    def at(self, seed: int) -> Experiment:
        """What is trained with that seed."""
        return replace(self.experiment, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a source says and a paired test can answer: `better` succeeds more often than `worse`."""

    words: str
    better: str  # label of evaluations
    worse: str  # label of evaluations


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """All that a page of results stands on."""

    name: str
    title: str
    introduction: str
    trainings: tuple[Training, ...]
    claims: tuple[Claim, ...] = ()
    # Success is drawn over it, as a curve for each method: what `Evaluation.at` counts, or `CALLS`.
    axis: str = ""
    maps: int = 0  # instances of each task whose learned distances are drawn, of the first seed
    # What other pages say, by their names: they are linked where they lie beside this one.
    beside: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        _refuse_twice(f"trainings of {self.name}", [training.name for training in self.trainings])
        cells = [cell for training in self.trainings for cell in training.evaluations]
        _refuse_twice(f"cells of {self.name}", [f"{cell.label} on {cell.task}" for cell in cells])
        for task in in_order(cell.task for cell in cells):
            files = in_order(cell.instances for cell in cells if cell.task == task)
            if len(files) > 1:
                raise InputError(
                    f"cells of task {task} meet {' and '.join(files)}; on one task all need the same "
                    "instances, or no two could be compared. Name the tasks apart"
                )
        if self.axis not in ("", CALLS) and any(cell.at is None for cell in cells):
            raise InputError(
                f"{self.name} has an axis, {self.axis}: every evaluation needs a place `at` on it"
            )
        unknown = {label for claim in self.claims for label in (claim.better, claim.worse)}
        unknown -= {cell.label for cell in cells}
        if unknown:
            raise InputError(
                f"claims of {self.name} compare {', '.join(sorted(unknown))}, which nothing evaluates; its "
                f"labels are {', '.join(in_order(cell.label for cell in cells))}"
            )

    def only(self, words: Sequence[str]) -> "Reproduction":
        """The trainings whose name, and the evaluations whose label or task, hold one of `words`."""
        if not words:
            return self
        kept: list[Training] = []
        for training in self.trainings:
            chosen = tuple(
                cell
                for cell in training.evaluations
                if any(word in name for word in words for name in (training.name, cell.label, cell.task))
            )
            if chosen:
                kept.append(replace(training, evaluations=chosen))
        cells = [cell for training in self.trainings for cell in training.evaluations]
        if not kept:
            raise InputError(
                f"nothing of {self.name} holds {' or '.join(words)}; its methods are "
                f"{', '.join(in_order(cell.method for cell in cells))}; its tasks "
                f"{', '.join(in_order(cell.task for cell in cells))}"
            )
        left = {cell.label for training in kept for cell in training.evaluations}
        claims = tuple(claim for claim in self.claims if {claim.better, claim.worse} <= left)
        return replace(self, trainings=tuple(kept), claims=claims)


def run_folder(folder: Path, training: Training, seed: int) -> Path:
    """Where the run of a training lies."""
    return folder / training.name / f"seed{seed}"


def outcome_file(folder: Path, training: Training, seed: int, cell: Evaluation) -> Path:
    """Where the outcomes of an evaluation lie."""
    return run_folder(folder, training, seed) / "outcomes" / f"{cell.name}.json"


def digest(training: Training, cell: Evaluation) -> str:
    """Changes with everything that decides an evaluation's outcome, but for the seed and the code."""
    trained = replace(training.experiment, seed=0)
    return fingerprint(trained, cell.experiment, cell.instances, cell.guided, cell.episodes)


def read_outcomes(folder: Path, training: Training, seed: int, cell: Evaluation) -> dict[str, Any] | None:
    """What an evaluation found, if it was done as it is described now."""
    return read_outcome(outcome_file(folder, training, seed, cell), digest(training, cell))


def stacked(found: Sequence[dict[str, Any]]) -> Bool[Tensor, "seeds B"]:
    """Successes of several seeds on the same instances."""
    return torch.tensor([one["success"] for one in found], dtype=torch.bool)


def evaluate_cell(
    path: Path, cell: Evaluation, device: str, note: Callable[[EpisodeProgress], None] | None = None
) -> Outcomes:
    """Meet the cell's instances with the run's models and the cell's search."""
    run = load_run(path)
    instances = load_instances(cell.instances)
    if cell.episodes is not None:
        instances = instances.subset(cell.episodes)
    world, system, experiment = find_world(instances.world), run.system.to(device), cell.experiment
    if cell.guided:  # how finely ways are imagined is part of the search
        distance = system.steps_to_go(experiment.cost, experiment.distance.ways)
    else:
        distance = baseline_distance(experiment)
        experiment = replace(experiment, cost=experiment.cost.without_value())
    prior = system.action_prior(experiment.control)
    controller = build_controller(experiment, system.world_model, distance, world.episode_steps, prior=prior)
    options = EpisodeOptions(episode_steps=world.episode_steps, on_progress=note)
    return run_episodes(world, instances, controller, SeedTree(0).torch("plan"), options)


def in_order(names: Iterable[str]) -> list[str]:
    """Each once, in the order of first appearance."""
    return list(dict.fromkeys(names))


def _refuse_twice(what: str, names: Sequence[str]) -> None:
    twice = in_order(name for name in names if names.count(name) > 1)
    if twice:
        raise InputError(
            f"{what} need different names, since each has a place of its own: {', '.join(twice)}"
        )


def _refuse_no_file_name(what: str, name: str) -> None:
    if not re.fullmatch(_FILE_NAME, name):
        raise InputError(
            f"{what} lies under its name, which is made of letters, digits, '-', '+', '_' and '.'; got "
            f"{name!r}"
        )
