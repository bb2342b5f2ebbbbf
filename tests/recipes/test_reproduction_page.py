"""Pages from outcomes that are known: what a reader sees, and what a machine reads beside it."""

import json
from dataclasses import replace

import pytest
import torch

from jepaplan.evaluation.results import read_rows
from jepaplan.evaluation.statistics import over_seeds
from jepaplan.recipes.catalogue import REPRODUCTIONS
from jepaplan.recipes.reproduction import (
    CALLS,
    Claim,
    Evaluation,
    Reproduction,
    Training,
    digest,
    outcome_file,
)
from jepaplan.recipes.reproduction_cells import cells
from jepaplan.recipes.reproduction_chart import draw_success
from jepaplan.recipes.reproduction_page import claim_outcomes, write_reproduction_page
from jepaplan.recipes.wall import wall_big_paths
from jepaplan.types import InputError, SeedTree

EXPERIMENT = wall_big_paths()


def evaluation(method, task, variant="", paper=None):
    name = f"{method}-{variant or 'plain'}".replace(" ", "_")
    return Evaluation(
        name=name,
        method=method,
        variant=variant,
        task=task,
        instances=f"{task}-final",
        experiment=EXPERIMENT,
        paper=paper,
    )


def table(*claims):
    """Two methods on two tasks; each task has one training."""
    trainings = tuple(
        Training(
            name=task,
            experiment=EXPERIMENT,
            evaluations=(evaluation("new", task, paper=0.75), evaluation("old", task)),
        )
        for task in ("Pits", "Detour")
    )
    return Reproduction(
        name="known", title="Known", introduction="Outcomes by hand.", trainings=trainings, claims=claims
    )


def study():
    """Two methods in two variants on two tasks."""
    trainings = tuple(
        Training(
            name=task,
            experiment=EXPERIMENT,
            evaluations=tuple(
                evaluation(method, task, variant) for method in ("CEM", "MPPI") for variant in ("far", "near")
            ),
        )
        for task in ("Pits", "Detour")
    )
    return Reproduction(name="study", title="Study", introduction="Outcomes by hand.", trainings=trainings)


def found(folder, reproduction, task, label, successes, seed=0, **changes):
    """Pretend that an evaluation was made."""
    (training,) = (training for training in reproduction.trainings if training.name == task)
    (cell,) = (cell for cell in training.evaluations if cell.label == label)
    file = outcome_file(folder, training, seed, cell)
    file.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "digest": digest(training, cell),
        "training": training.name,
        "seed": seed,
        "method": label,
        "task": task,
        "instances": cell.instances,
        "split": "final",
        "success": [bool(one) for one in successes],
        "final_distance": [0.0] * len(successes),
        "evaluations_per_step": 1536.0,
        "seconds_per_step": 0.0025,
        "commit": "abc",
        "hardware": "abacus",
        "command": "jepaplan reproduce known",
    }
    file.write_text(json.dumps({**facts, **changes}))


def page_of(reproduction, folder, seeds=1):
    path = folder / "page.md"
    rows = write_reproduction_page(reproduction, cells(reproduction, folder, seeds), path)
    return path.read_text(), rows


def line(text, start):
    return next(line for line in text.splitlines() if line.startswith(start))


def test_a_page_can_always_be_written(tmp_path):
    text, rows = page_of(table(Claim(words="new is better", better="new", worse="old")), tmp_path)
    assert "Nothing was measured yet." in text
    assert line(text, "| new") == "| new | not yet; paper 0.75 | not yet; paper 0.75 |"
    assert "## Claims" not in text
    assert rows == read_rows(tmp_path / "page.json") == []


def test_methods_by_tasks_with_the_source_beside(tmp_path):
    grid = table(Claim(words="new is better", better="new", worse="old"))
    for seed in (0, 1):
        found(tmp_path, grid, "Pits", "new", [1] * 19 + [0], seed)
        found(tmp_path, grid, "Pits", "old", [0] * 20, seed, commit=("first", "abc")[seed])
    found(tmp_path, grid, "Detour", "old", [1] * 10 + [0] * 10, commit="abc-modified")
    text, rows = page_of(grid, tmp_path, seeds=2)
    tasks, new, old = (line(text, f"| {start}") for start in ("method", "new |", "old |"))
    assert tasks == "| method | Pits | Detour |"
    outcomes = torch.tensor([[1] * 19 + [0]] * 2).bool()
    rate = over_seeds(outcomes, SeedTree(0).torch("seeds"))
    assert new == f"| new | 0.95 [{rate.low:.2f}, {rate.high:.2f}]; paper 0.75 | not yet; paper 0.75 |"
    assert old.startswith("| old | 0.00 [0.00, 0.16] | 0.50 [")  # Wilson where all failed
    assert old.endswith(" (1 seed x 20 instances) |")  # only where it differs from the rest
    assert "of 2 seeds x 20 instances where nothing else is said" in text
    made = line(text, "Made by")
    assert "`jepaplan reproduce known` at commit abc, first, abc-modified. Hardware: abacus." in made
    assert "Instances: `Pits-final`, `Detour-final`. Training seeds: 0, 1. 3 of 4 cells are measured." in made
    assert "| new | 1,536, 2.5 ms | not yet |" in text
    read = read_rows(tmp_path / "page.json")
    assert [row.as_json() for row in read] == [row.as_json() for row in rows]
    assert [(row.method, row.task, row.training_seeds) for row in read] == [
        ("new", "Pits", (0, 1)),
        ("old", "Pits", (0, 1)),
        ("old", "Detour", (0,)),
    ]
    assert line(text, "| new is better") == "| new is better | holds: +95 [+85, +100] | not yet |"
    assert "Of 1 comparisons 1 hold, 0 show the opposite and 0 are open" in text


def test_claims_are_tested_on_what_both_have_in_common(tmp_path):
    words = ("yes", "no")
    grid = table(Claim(words="yes", better="new", worse="old"), Claim(words="no", better="old", worse="new"))
    # Seed 1 of old is missing, and old met the first ten instances only.
    found(tmp_path, grid, "Pits", "new", [1] * 10 + [0] * 10, seed=0)
    found(tmp_path, grid, "Pits", "new", [0] * 20, seed=1)
    found(tmp_path, grid, "Pits", "old", [0] * 10, seed=0)
    found(tmp_path, grid, "Detour", "new", [1, 0] * 10)
    found(tmp_path, grid, "Detour", "old", [1, 0] * 10)
    tested = {
        (claim.words, task): difference
        for claim, task, difference in claim_outcomes(grid, cells(grid, tmp_path, 2))
    }
    assert set(tested) == {(word, task) for word in words for task in ("Pits", "Detour")}
    yes, no, same = tested["yes", "Pits"], tested["no", "Pits"], tested["yes", "Detour"]
    assert yes is not None
    assert no is not None
    assert (yes.mean, yes.verdict, no.mean, no.verdict) == (1.0, "holds", -1.0, "the opposite")
    assert yes.p == pytest.approx(2 / 2**10)
    assert same is not None
    assert (same.mean, same.low, same.high, same.p, same.verdict) == (0, 0, 0, 1, "open")


def test_variants_stand_side_by_side(tmp_path):
    grid = study()
    for task in ("Pits", "Detour"):
        for method, near in (("CEM", 8), ("MPPI", 4)):
            found(tmp_path, grid, task, f"{method}, far", [0] * 10)
            found(
                tmp_path,
                grid,
                task,
                f"{method}, near",
                [1] * near + [0] * (10 - near),
                evaluations_per_step=406.4,
                seconds_per_step=0.1171,
            )
    text, rows = page_of(grid, tmp_path)
    assert line(text, "| variant") == "| variant | Pits | Detour |"
    assert line(text, "| far |").startswith("| far | 0.00 [0.00, 0.28] | 0.00")
    assert line(text, "| near |").startswith("| near | 0.60 [")
    success, costs = text.split("## What planning costs")
    _, pits, detour = success.split("\n### ")
    assert pits.startswith("Pits\n\n| method | far | near |\n")
    assert line(pits, "| CEM").startswith("| CEM | 0.00 [0.00, 0.28] | 0.80 [")
    assert detour.startswith("Detour")
    assert [room.split("\n")[0] for room in costs.split("\n### ")[1:]] == ["Pits", "Detour"]
    assert costs.count("| CEM | 1,536, 2.5 ms | 406, 117 ms |") == 2  # no mean over variants
    assert [row.method for row in rows[:2]] == ["CEM, far", "CEM, near"]


def test_a_mean_of_methods_needs_all_of_them(tmp_path):
    grid = study()
    found(tmp_path, grid, "Pits", "CEM, near", [1] * 10)
    text, _ = page_of(grid, tmp_path)
    assert line(text, "| near |") == "| near | not yet |"


def test_tasks_without_any_outcome_are_named_and_left_out(tmp_path):
    grid = study()
    found(tmp_path, grid, "Pits", "CEM, near", [1] * 10)
    text, _ = page_of(grid, tmp_path)
    assert "Nothing of Detour is, and they are left out below." in text
    assert "### Pits" in text
    assert "### Detour" not in text


def test_the_planner_study_fits_a_screen(tmp_path):
    text, _ = page_of(REPRODUCTIONS["planners"]("cpu"), tmp_path)
    assert len(REPRODUCTIONS["planners"]("cpu").claims) == 10
    rooms = text.split("\n### ")[1:]
    assert len(rooms) == 2 * 7  # what they solve, and what that costs
    assert all(
        len([row for row in room.split("\n#")[0].splitlines() if row.startswith("|")]) == 12 for room in rooms
    )
    assert "| method | goal distance | terminal value | sum of values |" in text


def test_the_chart_shows_what_was_measured_and_is_the_same_each_time(tmp_path):
    grid = study()
    assert not draw_success(cells(grid, tmp_path, 1), tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()
    found(tmp_path, grid, "Pits", "CEM, near", [1] * 10)
    found(tmp_path, grid, "Pits", "MPPI, far", [1, 0] * 5)
    for name in ("one.svg", "two.svg", "one.png"):
        assert draw_success(cells(grid, tmp_path, 1), tmp_path / name)
    text = (tmp_path / "one.svg").read_text()
    assert all(f">{word}<" in text for word in ("Pits", "CEM", "MPPI", "near", "far"))
    assert ">Detour<" not in text
    assert text == (tmp_path / "two.svg").read_text()


def test_the_source_is_in_the_chart(tmp_path):
    grid = table()
    found(tmp_path, grid, "Pits", "new", [1, 0] * 5)
    with_source, without = tmp_path / "with.svg", tmp_path / "without.svg"
    known = cells(grid, tmp_path, 1)
    draw_success(known, with_source)
    silent = {
        where: replace(cell, evaluation=replace(cell.evaluation, paper=None)) for where, cell in known.items()
    }
    draw_success(silent, without)
    assert len(with_source.read_text()) > len(without.read_text())


def curves(axis, counts=(10, 100)):
    """Two methods at two places of an axis."""
    cells_on_it = tuple(
        replace(evaluation(method, "Pits", f"{count} recordings"), at=float(count))
        for method in ("ours", "theirs")
        for count in counts
    )
    return Reproduction(
        name="curves",
        title="Curves",
        introduction="Outcomes by hand.",
        trainings=(Training(name="Pits", experiment=EXPERIMENT, evaluations=cells_on_it),),
        axis=axis,
    )


def test_success_over_an_axis_is_a_curve_for_each_method(tmp_path):
    grid = curves("recordings")
    cells_on_it = grid.trainings[0].evaluations
    found(tmp_path, grid, "Pits", "ours, 10 recordings", [1, 0] * 5)
    found(tmp_path, grid, "Pits", "ours, 100 recordings", [1] * 10)
    assert draw_success(cells(grid, tmp_path, 1), tmp_path / "curve.svg", grid.axis)
    text = (tmp_path / "curve.svg").read_text()
    assert all(f">{word}<" in text for word in ("Pits", "recordings", "success"))
    assert ">theirs<" not in text
    lost = replace(cells_on_it[0], at=None)
    with pytest.raises(InputError, match="curves has an axis, recordings: every evaluation needs a place"):
        replace(grid, trainings=(replace(grid.trainings[0], evaluations=(lost, *cells_on_it[1:])),))


def test_calls_on_an_axis_are_those_that_were_counted(tmp_path):
    """What a method asks before it searches counts as well: `at` says how large its search is, no more."""
    grid = curves(CALLS)
    for count, calls in ((10, 406.0), (100, 1040.0)):
        found(tmp_path, grid, "Pits", f"ours, {count} recordings", [1] * 10, evaluations_per_step=calls)
    known = cells(grid, tmp_path, 1)
    placed = [cell.place(CALLS) for cell in known.values() if cell.found]
    assert placed == [406.0, 1040.0]
    assert [cell.place("recordings") for cell in known.values() if cell.found] == [10.0, 100.0]

    def drawn(known, axis):
        draw_success(known, tmp_path / "curve.svg", axis)
        return (tmp_path / "curve.svg").read_text()

    elsewhere = {
        where: replace(cell, evaluation=replace(cell.evaluation, at=None)) for where, cell in known.items()
    }
    assert drawn(known, CALLS) == drawn(elsewhere, CALLS)
    assert ">1,000<" in drawn(known, CALLS)
    assert ">1,000<" not in drawn(known, "recordings")


def test_variants_that_are_numbers_stand_in_their_order_and_only_where_they_are(tmp_path):
    grid = curves("recordings", counts=(100, 10))
    elsewhere = replace(evaluation("ours", "Detour", "1000 recordings"), at=1000.0)
    more = Training(name="Detour", experiment=EXPERIMENT, evaluations=(elsewhere,))
    text, _ = page_of(replace(grid, trainings=(more, *grid.trainings)), tmp_path)
    assert text.count("| method | 10 recordings | 100 recordings |\n") == 2
    assert text.count("| method | 1000 recordings |\n") == 2
    assert "## At a glance" not in text  # not every method is everywhere


def test_a_page_points_to_those_that_lie_beside_it(tmp_path):
    grid = replace(table(), beside={"there": "what is there", "missing": "what is not", "too": "this, too"})
    assert "Beside this page" not in page_of(grid, tmp_path)[0]
    for name in ("there", "too"):
        (tmp_path / f"{name}.md").write_text("")
    text, _ = page_of(grid, tmp_path)
    assert line(text, "Beside") == "Beside this page: [what is there](there.md); [this, too](too.md)."
