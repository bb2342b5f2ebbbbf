"""The page of a reproduction: method by task, with the source's numbers beside ours, and its claims tested.

Success is the mean over training seeds, with an interval over seeds and instances together; claims are
tested on the same instances and seeds. Where methods have variants, as a planner has costs, each task has
tables of its own with the variants side by side. A cell that was not measured says so: a page can always be
written.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import torch

from jepaplan.evaluation.results import ResultRow, in_milliseconds, write_rows
from jepaplan.evaluation.statistics import (
    SeedsDifference,
    compare_over_seeds,
    seeds_interval,
    wilson_interval,
)
from jepaplan.recipes.reproduction import Claim, Reproduction, in_order
from jepaplan.recipes.reproduction_cells import (
    Cell,
    Known,
    common_seeds,
    each_of,
    find_cell,
    methods_in,
    paired,
    tasks_in,
    variants_in,
)
from jepaplan.training.checkpoint import atomic_write
from jepaplan.types import SeedTree

NOT_YET = "not yet"
MAPS_IN_WORDS = (
    "Distance to the goal (star) from every place, of the first seed: rows are instances, the first column "
    "is the true way, the others are what each method plans with. Bright is near; every map has a scale of "
    "its own, in ten bands."
)


def write_reproduction_page(
    reproduction: Reproduction,
    known: Known,
    path: Path,
    picture: Path | None = None,
    maps: Sequence[tuple[str, Path]] = (),
) -> list[ResultRow]:
    """The page `path` (.md) and its twin for machines (.json), whose rows are returned.

    Pictures lie beside the page: one of all successes, and maps of distances by task.
    """
    rows = [cell.row for cell in known.values() if cell.found]
    known, provenance = _begun(known), _provenance(rows, known)
    words = f"Success by method and task of {reproduction.name}, with intervals"
    sections = [
        f"# {reproduction.title}",
        reproduction.introduction,
        provenance,
        *_beside(reproduction, path),
        *([] if picture is None else [f"![{words}]({picture.name})"]),
        # Not every method is at every place of an axis: means over methods would compare methods.
        *([] if reproduction.axis else _at_a_glance(known)),
        *_success(known),
        *_claims(reproduction, known),
        "## What planning costs",
        "Predictor calls per environment step, all of them counted, and wall time of one step of one problem "
        "when all are planned as one batch.",
        *_tables(known, _cost),
    ]
    if maps:
        sections += ["## What is taken for far", MAPS_IN_WORDS]
        sections += [f"![Maps of the learned distances, {task}]({file.name})" for task, file in maps]
    atomic_write(path, ("\n\n".join(sections).rstrip() + "\n").encode())
    write_rows(path.with_suffix(".json"), rows)
    return rows


def claim_outcomes(
    reproduction: Reproduction, known: Known
) -> list[tuple[Claim, str, SeedsDifference | None]]:
    """(claim, task, difference) for every task on which a claim can be tested; None where it was not yet."""
    tested: list[tuple[Claim, str, SeedsDifference | None]] = []
    for claim in reproduction.claims:
        for task in tasks_in(known):
            better, worse = known.get((claim.better, task)), known.get((claim.worse, task))
            if better is None or worse is None:
                continue
            seeds = common_seeds([better, worse])
            difference = None
            if seeds:
                first, second = paired([better, worse], seeds)
                difference = compare_over_seeds(first, second, SeedTree(0).torch("claims"))
            tested.append((claim, task, difference))
    return tested


def _provenance(rows: Sequence[ResultRow], known: Known) -> str:
    if not rows:
        return "Nothing was measured yet."
    commands, commits, hardware, files = (
        each_of(rows, name) for name in ("command", "commit", "hardware", "instance_file")
    )
    seeds = sorted({seed for row in rows for seed in row.training_seeds})
    measured = sum(bool(cell.found) for cell in known.values())
    waiting = [task for task in tasks_in(known) if task not in tasks_in(_begun(known))]
    nothing = f" Nothing of {_listed(waiting)} is, and they are left out below." if waiting else ""
    return (
        f"Made by {_listed(f'`{command}`' for command in commands)} at commit {_listed(commits)}. Hardware: "
        f"{'; '.join(hardware)}. Instances: {_listed(f'`{file}`' for file in files)}. Training seeds: "
        f"{_listed(map(str, seeds))}. {measured} of {len(known)} cells are measured.{nothing}"
    )


def _begun(known: Known) -> Known:
    """The cells of tasks of which something was measured; all cells where nothing was."""
    begun = {task for (_, task), cell in known.items() if cell.found}
    return {pair: cell for pair, cell in known.items() if pair[1] in begun} or known


def _beside(reproduction: Reproduction, path: Path) -> list[str]:
    """Links to the pages that lie beside `path`."""
    found = reproduction.beside.items()
    links = [f"[{words}]({name}.md)" for name, words in found if path.with_name(f"{name}.md").exists()]
    return [f"Beside this page: {'; '.join(links)}."] if links else []


def _success(known: Known) -> list[str]:
    usual = _usual_size(known)
    words = "Mean over training seeds [95 % interval over seeds and instances]"
    if usual is not None:
        words += f", of {_in_words(usual)} where nothing else is said"
    return ["## Success", f"{words}.", *_tables(known, lambda cell: _rate(cell, usual))]


def _tables(known: Known, show: Callable[[Cell], str]) -> list[str]:
    """What `show` says of every cell: one table, or one of each task where methods have variants."""

    def shown(method: str, variant: str, task: str) -> str:
        cell = find_cell(known, method, variant, task)
        return "" if cell is None else show(cell)

    if variants_in(known) == [""]:
        return [
            markdown_table(
                "method", methods_in(known), tasks_in(known), lambda method, task: shown(method, "", task)
            )
        ]
    lines: list[str] = []
    for task in tasks_in(known):
        of_task = partial(shown, task=task)
        lines += [
            f"### {task}",
            markdown_table("method", methods_in(known, task), variants_in(known, task), of_task),
        ]
    return lines


def _at_a_glance(known: Known) -> list[str]:
    """Variants by task, each as the mean of all methods: what the choice of the variant does by itself."""
    variants = variants_in(known)
    if variants == [""]:
        return []

    def mean_of_methods(variant: str, task: str) -> str:
        found = [cell for method in methods_in(known) if (cell := find_cell(known, method, variant, task))]
        seeds = common_seeds(found) if found else []
        if not seeds:
            return NOT_YET if found else ""
        table = torch.stack(paired(found, seeds)).double().mean(dim=0)
        rate, instances = float(table.mean()), table.shape[1]
        if bool((table == table[0, 0]).all()):  # the bootstrap would claim certainty, as in `over_seeds`
            low, high = wilson_interval(round(rate * instances), instances)
        else:
            low, high = seeds_interval(table, SeedTree(0).torch("methods"))
        return f"{rate:.2f} [{low:.2f}, {high:.2f}]"

    return [
        "## At a glance",
        "Success, mean of all methods on the same instances and seeds.",
        markdown_table("variant", variants, tasks_in(known), mean_of_methods),
    ]


def _claims(reproduction: Reproduction, known: Known) -> list[str]:
    tested = claim_outcomes(reproduction, known)
    decided = Counter(difference.verdict for _, _, difference in tested if difference is not None)
    if not decided:
        return []
    shown = {(claim.words, task): verdict_in_points(difference) for claim, task, difference in tested}
    count = decided.total()
    return [
        "## Claims",
        "Difference in success, in points, on the same instances and seeds [95 % interval over both]. A "
        "claim holds, or its opposite does, where the interval excludes 0 and p < 0.05 both in an exact "
        "randomisation test over instances and in a t test over seeds; with one seed it is a claim about "
        f"that seed. Of {count} comparisons {decided['holds']} hold, {decided['the opposite']} show the "
        f"opposite and {decided['open']} are open; were there no differences at all, chance would still "
        f"decide up to about {0.05 * count:.0f}.",
        markdown_table(
            "claim",
            in_order(words for words, _ in shown),
            in_order(task for _, task in shown),
            lambda words, task: shown.get((words, task), ""),
        ),
    ]


def verdict_in_points(difference: SeedsDifference | None) -> str:
    """A difference of rates in words and points, with its interval."""
    if difference is None:
        return NOT_YET
    low, high = 100 * difference.low, 100 * difference.high
    return f"{difference.verdict}: {100 * difference.mean:+.0f} [{low:+.0f}, {high:+.0f}]"


def _rate(cell: Cell, usual: tuple[int, int] | None) -> str:
    source = "" if cell.evaluation.paper is None else f"; paper {cell.evaluation.paper:.2f}"
    if not cell.found:
        return NOT_YET + source
    rate = cell.row.success
    size = "" if cell.size == usual else f" ({_in_words(cell.size)})"
    return f"{rate.rate:.2f} [{rate.low:.2f}, {rate.high:.2f}]{size}{source}"


def _cost(cell: Cell) -> str:
    if not cell.found:
        return NOT_YET
    row = cell.row
    return f"{row.evaluations_per_step or 0.0:,.0f}, {in_milliseconds(row.seconds_per_step or 0.0)}"


def markdown_table(
    corner: str, names: Sequence[str], columns: Sequence[str], show: Callable[[str, str], str]
) -> str:
    """Names down, columns across, and what `show` says of each pair."""
    lines = [[corner, *columns], ["---"] * (len(columns) + 1)]
    lines += [[name, *(show(name, column) for column in columns)] for name in names]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _usual_size(known: Known) -> tuple[int, int] | None:
    sizes = Counter(cell.size for cell in known.values() if cell.found)
    return sizes.most_common(1)[0][0] if sizes else None


def _in_words(size: tuple[int, int]) -> str:
    seeds, instances = size
    return f"{seeds} seed{'s' if seeds > 1 else ''} x {instances} instances"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
