"""What is known of a reproduction, cell by cell: methods in their variants, by tasks.

Cell     what all seeds found of one method, in one variant, on one task
Known    all cells of a page, by label and task
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from jepaplan.evaluation.results import ResultRow
from jepaplan.evaluation.statistics import over_seeds
from jepaplan.recipes.reproduction import (
    CALLS,
    Evaluation,
    Reproduction,
    Training,
    in_order,
    read_outcomes,
    stacked,
)
from jepaplan.types import SeedTree


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is known of one method, in one variant, on one task."""

    training: Training
    evaluation: Evaluation
    found: tuple[dict[str, Any], ...]  # by seed

    @cached_property
    def row(self) -> ResultRow:
        """For machines."""
        first, count = self.found[0], len(self.found)
        return ResultRow(
            task=self.evaluation.task,
            method=self.evaluation.label,
            instance_file=self.evaluation.instances,
            split=first["split"],
            success=over_seeds(stacked(self.found), SeedTree(0).torch("seeds")),
            training_seeds=tuple(one["seed"] for one in self.found),
            evaluations_per_step=sum(one["evaluations_per_step"] for one in self.found) / count,
            seconds_per_step=sum(one["seconds_per_step"] for one in self.found) / count,
            commit=of_all(self.found, "commit"),
            hardware=of_all(self.found, "hardware"),
            command=of_all(self.found, "command"),
        )

    def place(self, axis: str) -> float | None:
        """Where it stands on the axis: what was measured, or what its variant is."""
        return self.row.evaluations_per_step if axis == CALLS else self.evaluation.at

    @property
    def size(self) -> tuple[int, int]:
        """Training seeds, and instances that each met."""
        return len(self.found), len(self.found[0]["success"]) if self.found else 0


_APART = "; "  # hardware has commas

Known = Mapping[tuple[str, str], Cell]  # by label and task


def cells(reproduction: Reproduction, folder: Path, seeds: int) -> dict[tuple[str, str], Cell]:
    """All cells by label and task, in the order of the trainings; those without any outcome are empty."""
    found: dict[tuple[str, str], Cell] = {}
    for training in reproduction.trainings:
        for evaluation in training.evaluations:
            outcomes = [read_outcomes(folder, training, seed, evaluation) for seed in training.seeds(seeds)]
            found[evaluation.label, evaluation.task] = Cell(
                training=training,
                evaluation=evaluation,
                found=tuple(one for one in outcomes if one is not None),
            )
    return found


def find_cell(known: Known, method: str, variant: str, task: str) -> Cell | None:
    """The cell, whether measured or not; None where nothing is asked of the three together."""
    return known.get((f"{method}, {variant}" if variant else method, task))


def methods_in(known: Known, task: str | None = None) -> list[str]:
    """Rows of tables, of all tasks or of one."""
    return in_order(cell.evaluation.method for cell in known.values() if task in (None, cell.evaluation.task))


def tasks_in(known: Known) -> list[str]:
    """In the order of the trainings."""
    return in_order(cell.evaluation.task for cell in known.values())


def variants_in(known: Known, task: str | None = None) -> list[str]:
    """By `Evaluation.at` where they are numbers, else as they come; `[""]` where methods have none."""
    found = [cell.evaluation for cell in known.values() if task in (None, cell.evaluation.task)]
    return in_order(one.variant for one in sorted(found, key=lambda one: one.at or 0.0))


def common_seeds(found: Iterable[Cell]) -> list[int]:
    """Seeds that all of them have, from the least on."""
    return sorted(set[int].intersection(*({one["seed"] for one in cell.found} for cell in found)))


def paired(found: Sequence[Cell], seeds: Sequence[int]) -> list[Bool[Tensor, "seeds B"]]:
    """Outcomes on the seeds and instances that all have in common; fewer instances are the first of more."""
    most = min(cell.size[1] for cell in found)
    return [stacked([one for one in cell.found if one["seed"] in seeds])[:, :most] for cell in found]


def of_all(found: Sequence[dict[str, Any]], name: str) -> str:
    """Where all seeds of a row come from: what differs between them, one after the other."""
    return _APART.join(in_order(one[name] for one in found))


def each_of(rows: Sequence[ResultRow], name: str) -> list[str]:
    """`of_all` of all rows, taken apart again."""
    return in_order(one for row in rows for one in getattr(row, name).split(_APART))
