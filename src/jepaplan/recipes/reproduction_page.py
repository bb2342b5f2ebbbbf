"""The page of a reproduction: method by task, with the source's numbers beside ours, and its claims tested.

Success is the mean over training seeds, with an interval over seeds and instances together; claims are
tested on the same instances and seeds. A cell that was not measured says so: a page can always be written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jepaplan.evaluation.results import ResultRow, write_rows
from jepaplan.evaluation.statistics import SeedsDifference, compare_over_seeds, over_seeds
from jepaplan.recipes.reproduction import Evaluation, Reproduction, Training, read_outcomes, stacked
from jepaplan.types import SeedTree

NOT_YET = "not yet"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is known of one method on one task."""

    training: Training
    evaluation: Evaluation
    found: tuple[dict[str, Any], ...]  # by seed

    @property
    def row(self) -> ResultRow:
        """For machines."""
        first, last = self.found[0], self.found[-1]
        count = len(self.found)
        return ResultRow(
            task=self.evaluation.task,
            method=self.evaluation.method,
            instance_file=self.evaluation.instances,
            split=first["split"],
            success=over_seeds(stacked(self.found), SeedTree(0).torch("seeds")),
            training_seeds=tuple(one["seed"] for one in self.found),
            evaluations_per_step=sum(one["evaluations_per_step"] for one in self.found) / count,
            seconds_per_step=sum(one["seconds_per_step"] for one in self.found) / count,
            commit=last["commit"],
            hardware=last["hardware"],
            command=last["command"],
        )


def cells(reproduction: Reproduction, folder: Path, seeds: int) -> dict[tuple[str, str], Cell]:
    """All cells by method and task, in the order of the trainings; those without any outcome are empty."""
    found: dict[tuple[str, str], Cell] = {}
    for training in reproduction.trainings:
        for evaluation in training.evaluations:
            outcomes = [read_outcomes(folder, training, seed, evaluation) for seed in range(seeds)]
            known = tuple(one for one in outcomes if one is not None)
            found[evaluation.method, evaluation.task] = Cell(
                training=training, evaluation=evaluation, found=known
            )
    return found


def write_reproduction_page(
    reproduction: Reproduction, folder: Path, seeds: int, path: Path, appendix: str = ""
) -> None:
    """The page `path` (.md) and its twin for machines (.json)."""
    known = cells(reproduction, folder, seeds)
    rows = [cell.row for cell in known.values() if cell.found]
    text = [
        f"# {reproduction.title}",
        "",
        reproduction.introduction,
        "",
        _provenance(rows, known),
        "",
        "## Success",
        "",
        _table(known, _success),
        "",
        *_claims(reproduction, known),
        "## What planning costs",
        "",
        "Predictor calls per environment step, and wall time of one step of one problem when all are planned "
        "as one batch.",
        "",
        _table(known, _cost),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(text).rstrip() + "\n" + appendix, encoding="utf-8")
    write_rows(path.with_suffix(".json"), rows)


def claim_outcomes(
    reproduction: Reproduction, known: Mapping[tuple[str, str], Cell]
) -> list[tuple[str, str, SeedsDifference]]:
    """(claim, task, difference) for every claim and task of which both methods were measured."""
    tested: list[tuple[str, str, SeedsDifference]] = []
    for claim in reproduction.claims:
        for task in dict.fromkeys(task for _, task in known):
            better, worse = known.get((claim.better, task)), known.get((claim.worse, task))
            if better is None or worse is None:
                continue
            common = sorted({one["seed"] for one in better.found} & {one["seed"] for one in worse.found})
            if common:
                pairs = [
                    stacked([one for one in cell.found if one["seed"] in common]) for cell in (better, worse)
                ]
                difference = compare_over_seeds(pairs[0], pairs[1], SeedTree(0).torch("claims"))
                tested.append((claim.words, task, difference))
    return tested


def _claims(reproduction: Reproduction, known: Mapping[tuple[str, str], Cell]) -> list[str]:
    tested = claim_outcomes(reproduction, known)
    if not tested:
        return []
    lines = [
        "## Claims",
        "",
        "Difference in success on the same instances and seeds, with the 95 % interval over both.",
        "",
        "| claim | task | difference in points | verdict |",
        "|---|---|---|---|",
    ]
    for words, task, difference in tested:
        points = f"{100 * difference.mean:+.0f} [{100 * difference.low:+.0f}, {100 * difference.high:+.0f}]"
        verdict = "holds" if difference.low > 0 else "the opposite" if difference.high < 0 else "open"
        lines.append(f"| {words} | {task} | {points} | {verdict} |")
    return [*lines, ""]


def _table(known: Mapping[tuple[str, str], Cell], show: Any) -> str:
    methods, tasks = (list(dict.fromkeys(pair[at] for pair in known)) for at in (0, 1))
    lines = ["| method | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 1) + "|"]
    for method in methods:
        shown = [show(known[method, task]) if (method, task) in known else "" for task in tasks]
        lines.append(f"| {method} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _success(cell: Cell) -> str:
    source = "" if cell.evaluation.paper is None else f"; paper {cell.evaluation.paper:.2f}"
    if not cell.found:
        return NOT_YET + source
    rate, seeds = cell.row.success, len(cell.found)
    count = f"{seeds} seed{'s' if seeds > 1 else ''} x {rate.trials // seeds}"
    return f"{rate.rate:.2f} [{rate.low:.2f}, {rate.high:.2f}] ({count}){source}"


def _cost(cell: Cell) -> str:
    if not cell.found:
        return NOT_YET
    return f"{cell.row.evaluations_per_step:,.0f}, {1e3 * cell.row.seconds_per_step:.2g} ms"


def _provenance(rows: Sequence[ResultRow], known: Mapping[tuple[str, str], Cell]) -> str:
    if not rows:
        return "Nothing was measured yet."
    commands, commits, hardware = (
        ", ".join(dict.fromkeys(getattr(row, name) for row in rows))
        for name in ("command", "commit", "hardware")
    )
    measured = sum(len(cell.found) > 0 for cell in known.values())
    return (
        f"Made by `{commands}` at commit {commits}. Hardware: {hardware}. {measured} of {len(known)} cells "
        "are measured. Success: mean over training seeds [95 % interval over seeds and instances]."
    )
