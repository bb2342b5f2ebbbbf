"""Evaluate a run beside its references: what a learned value adds is read between them.

    method             dynamics    what planning minimises
    value-guided       learned     the learned distance
    prediction only    learned     distance of latents; nothing of the value is used
    references         true        evaluation/references.py

All methods share planner, budget, instances and the generator's seed.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from jepaplan.envs.worlds import find_world
from jepaplan.evaluation.episodes import Outcomes, Progress
from jepaplan.evaluation.results import ResultRow, write_rows
from jepaplan.evaluation.statistics import PairedDifference, compare
from jepaplan.evaluation.tasks import Instances
from jepaplan.interfaces import World
from jepaplan.recipes.methods import (
    PREDICTION_ONLY,
    VALUE_GUIDED,
    EvaluationPlan,
    Method,
    evaluate_method,
    methods_of,
    refuse_other_world,
)
from jepaplan.recipes.run import LoadedRun
from jepaplan.recipes.shards import evaluate_in_batches
from jepaplan.training import provenance
from jepaplan.training.runs import write_json
from jepaplan.types import InputError, SeedTree


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """What is evaluated and what for."""

    references: bool = True
    keep_decisions: bool = True  # of the value-guided method, for pictures
    seed: int = 0  # of the planners' noise
    processes: int | None = None  # that share the instances in small batches; None: one large batch
    milliseconds: float | None = None  # for each search of each instance by itself; None: it takes its time
    command: str = ""
    on_progress: Callable[[str, Progress], None] | None = None

    def __post_init__(self) -> None:
        """Refuse to evaluate with nobody."""
        if self.processes is not None and self.processes < 1:
            raise InputError(f"processes is how many share the instances, at least 1; got {self.processes}")
        if self.milliseconds is not None and not self.milliseconds > 0:
            raise InputError(f"milliseconds is the time for one search, positive; got {self.milliseconds}")


@dataclass(frozen=True, kw_only=True)
class Study:
    """Outcomes by method, in the order of the table."""

    run: LoadedRun
    world: World
    instances: Instances
    methods: tuple[Method, ...]
    outcomes: Mapping[str, Outcomes]
    command: str

    def comparison(self, first: str = VALUE_GUIDED, second: str = PREDICTION_ONLY) -> PairedDifference | None:
        """The paired difference of two methods, where both were evaluated."""
        if first not in self.outcomes or second not in self.outcomes:
            return None
        generator = SeedTree(0).torch("comparison")
        return compare(
            (first, self.outcomes[first].success), (second, self.outcomes[second].success), generator
        )

    def rows(self) -> list[ResultRow]:
        """The study for machines."""
        return [self._row(method) for method in self.methods]

    def _row(self, method: Method) -> ResultRow:
        outcomes = self.outcomes[method.name]
        return ResultRow(
            task=self.instances.world,
            method=method.name,
            instance_file=self.instances.name,
            split=self.instances.split,
            success=outcomes.rate,
            training_seeds=() if method.kind == "reference" else (self.run.experiment.seed,),
            evaluations_per_step=float(outcomes.evaluations_per_step),
            seconds_per_step=float(outcomes.seconds_per_step),
            commit=provenance.commit(),
            hardware=provenance.machine(),
            command=self.command,
        )


def study(run: LoadedRun, instances: Instances, options: StudyOptions) -> Study:
    """Evaluate every method on the same instances."""
    world = find_world(instances.world)
    refuse_other_world(run, world)
    methods = methods_of(run, world, options.references, options.milliseconds)
    plan = EvaluationPlan(
        instances=instances,
        keep_decisions=options.keep_decisions,
        seed=options.seed,
        milliseconds=options.milliseconds,
    )
    if options.processes is None and options.milliseconds is None:
        outcomes = {
            method.name: evaluate_method(world, method, plan, (0, 1), options.on_progress)
            for method in methods
        }
    else:
        outcomes = evaluate_in_batches(
            run, plan, options.processes or 1, options.references, options.on_progress
        )
    return Study(
        run=run, world=world, instances=instances, methods=methods, outcomes=outcomes, command=options.command
    )


def save_study(made: Study, folder: Path, name: str) -> None:
    """Rows for machines and the outcome of every instance, for paired comparisons between runs."""
    write_rows(folder / "results.json", made.rows())
    write_json(
        folder / "outcomes" / f"{name}.json",
        {
            "instances": {
                "file": made.instances.name,
                "split": made.instances.split,
                "count": len(made.instances),
            },
            "starts": [[round(x, 3) for x in start] for start in made.instances.starts.tolist()],
            "success": {each: outcome.success.tolist() for each, outcome in made.outcomes.items()},
        },
    )


def compare_runs(
    first: tuple[Path, str | None], second: tuple[Path, str | None], instances: str
) -> PairedDifference:
    """Paired difference of two evaluated runs; a run is a folder and a method, by default its first."""
    (first_name, ours, our_starts), (second_name, theirs, their_starts) = (
        _saved(path, method, instances) for path, method in (first, second)
    )
    if our_starts != their_starts:
        raise InputError(
            f"{first_name} and {second_name} were evaluated on different instances ({len(our_starts)} and "
            f"{len(their_starts)}); evaluate both with the same --instances and --episodes"
        )
    return compare((first_name, ours), (second_name, theirs), SeedTree(0).torch("comparison"))


def _saved(path: Path, method: str | None, instances: str) -> tuple[str, Bool[Tensor, " B"], Sequence[Any]]:
    file = path / "outcomes" / f"{instances}.json"
    if not file.is_file():
        known = sorted(found.stem for found in (path / "outcomes").glob("*.json"))
        raise InputError(
            f"{path} was not evaluated on {instances}; known there: {', '.join(known) or 'nothing yet'}. Run "
            f"`jepaplan evaluate {path} --instances {instances}`"
        )
    try:
        saved = json.loads(file.read_text())
        success, starts = saved["success"], saved["starts"]
    except (json.JSONDecodeError, KeyError) as error:
        raise InputError(
            f"{file} is not what `jepaplan evaluate` writes ({error}); evaluate again"
        ) from error
    chosen = method or next(iter(success))
    if chosen not in success:
        raise InputError(f"{file} has no method {chosen!r}; it has {', '.join(success)}")
    return f"{path} ({chosen})", torch.tensor(success[chosen]), starts


def with_planner(run: LoadedRun, **changes: Any) -> LoadedRun:
    """The run with another planner, cost or control: `planner=CEM(...)`, `cost=CostConfig(...)`."""
    return dataclasses.replace(run, experiment=dataclasses.replace(run.experiment, **changes))
