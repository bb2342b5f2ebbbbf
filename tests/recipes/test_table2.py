"""The grid of the paper's tables: every cell with the paper's number, and every comparison a fair one."""

import itertools
from dataclasses import replace

import pytest

from jepaplan.evaluation.tasks import PACKAGED
from jepaplan.recipes.catalogue import REPRODUCTIONS, find_recipe
from jepaplan.recipes.table2 import OURS, PATHS, SWEEP_SEED, sweeps, table2
from jepaplan.recipes.value_guided import DISCOUNTS, EXPECTILES

# Destrade et al., arXiv:2601.00844: table 2, and the number in the text of section 7.3.
WORLDS = ("WallSmall", "WallBig", "Maze")
TABLE = {
    "Contrastive": (0.49, 0.59, 0.50),
    "Regressive": (0.54, 0.57, 0.46),
    "pred_VCReg": (0.55, 0.89, 0.54),
    "pred_EMA": (0.46, 0.43, 0.04),
    "VF": (0.63, 0.94, 0.49),
    "VF_pred": (0.55, 0.75, 0.49),
    "VF_quasi": (0.71, 0.96, 0.63),
    "VF_quasi_pred": (0.61, 0.85, 0.43),
    "VF_VCReg": (0.49, 0.75, 0.39),
    "VF_VCReg_pred": (0.47, 0.67, 0.39),
}
PAPER = {
    **{(name, world): row[place] for name, row in TABLE.items() for place, world in enumerate(WORLDS)},
    ("two spaces (pred_VCReg, VF)", "WallSmall"): 0.60,
}
SCALES = ("cpu", "full")
scales = pytest.mark.parametrize("scale", SCALES)


def cells(reproduction):
    return [(training, cell) for training in reproduction.trainings for cell in training.evaluations]


@scales
def test_every_number_of_the_paper_has_its_cell_and_no_cell_has_another(scale):
    found = {(cell.method, cell.task): cell.paper for _, cell in cells(table2(scale))}
    assert {where: number for where, number in found.items() if number is not None} == PAPER
    assert set(found) - set(PAPER) == {
        *itertools.product(["pred_VCReg, all of PLDM's terms"], WORLDS),
        *itertools.product(["two spaces (pred_VCReg, VF)"], ("WallBig", "Maze")),
        *itertools.product([OURS], WORLDS),
        (PATHS, "WallBig"),
    }


def test_the_page_says_what_ours_assumes_and_points_to_what_else_was_measured():
    made = table2("cpu")
    for words in ("learns no value", "one thing moves", "the rest of the picture stays", "mirror images"):
        assert words in made.introduction
    assert list(made.beside) == ["choices", "claims", "search", "data", "levers", "sweeps", "noise"]


@pytest.mark.parametrize("name", ["table2", "sweeps"])
@scales
def test_no_two_cells_and_no_two_trainings_are_one(name, scale):
    reproduction = REPRODUCTIONS[name](scale)
    assert reproduction.name == name
    found = [(cell.method, cell.task) for _, cell in cells(reproduction)]
    assert len(set(found)) == len(found)
    trained = [
        repr(replace(training.experiment, recipe="", description="")) for training in reproduction.trainings
    ]
    assert len(set(trained)) == len(trained)
    names = [training.name for training in reproduction.trainings]
    assert len(set(names)) == len(names)
    for name, training in zip(names, reproduction.trainings, strict=True):
        assert training.experiment.recipe == name


@scales
def test_methods_of_a_world_and_seed_learn_from_one_recording(scale):
    """What learns from more recordings stands beside the comparison: no claim names it."""
    reproduction = table2(scale)
    for world in WORLDS:
        recordings = {
            training.experiment.recording
            for training, cell in cells(reproduction)
            if cell.task == world and cell.method != PATHS
        }
        assert len(recordings) == 1
        (recording,) = recordings
        assert recording.world == world
        assert recording.trajectories == 1000
    assert {training.experiment.seed for training in reproduction.trainings} == {0}
    assert not any(PATHS in (claim.better, claim.worse) for claim in reproduction.claims)


@scales
def test_cells_are_judged_on_final_instances_by_what_was_learned(scale):
    """In full all of them, on a CPU the first ones of those that take long; ours meets all."""
    for training, cell in cells(table2(scale)):
        assert cell.instances == f"{cell.task}-final"
        asked = PACKAGED[cell.instances].count if cell.episodes is None else cell.episodes
        few = scale == "cpu" and cell.method != OURS
        counts = (50, 100, 80) if few else (200, 200, 80)
        assert asked == dict(zip(("WallSmall", "WallBig", "Maze"), counts, strict=True))[cell.task]
        assert cell.guided == (cell.method in (OURS, PATHS) or cell.method.startswith(("VF", "two spaces")))
        assert cell.experiment == training.experiment


@scales
def test_trainings_are_the_recipes_of_the_catalogue(scale):
    for training in (*table2(scale).trainings, *sweeps(scale).trainings):
        known = find_recipe(training.name)
        changes = {"seed": training.experiment.seed, "instances": training.experiment.instances}
        assert replace(known, **changes) == training.experiment
        of_ours = training.name == "wall_big_paths" or training.name.endswith("_ways")  # at both scales
        assert of_ours or training.name.endswith("_cpu") == (scale == "cpu")


@scales
def test_claims_are_about_rows_of_the_table(scale):
    reproduction = table2(scale)
    methods = {cell.method for _, cell in cells(reproduction)}
    assert {name for claim in reproduction.claims for name in (claim.better, claim.worse)} <= methods
    assert len({claim.words for claim in reproduction.claims}) == len(reproduction.claims)
    for claim in reproduction.claims:
        # The small-steps column is the one in which the paper claims all of them.
        assert PAPER[claim.better, "WallSmall"] > PAPER[claim.worse, "WallSmall"]


@scales
def test_sweeps_choose_on_other_recordings_and_other_instances(scale):
    asked = {
        *((name, discount, 0.7) for name in ("VF", "VF_quasi") for discount in DISCOUNTS),
        *(("VF", 0.98, tau) for tau in EXPECTILES),
        *(("VF_quasi", 0.93, tau) for tau in EXPECTILES),
    }
    found = set()
    for training, cell in cells(sweeps(scale)):
        value = training.experiment.stages[0].value
        name = "VF_quasi" if training.experiment.distance.kind == "iqe" else "VF"
        found.add((name, value.discount, value.expectile))
        assert cell.method == f"{name}, discount {value.discount:g}, expectile {value.expectile:g}"
        assert (cell.task, cell.instances) == ("WallSmall", "WallSmall-tuning")
        assert training.seeds(100)[0] == SWEEP_SEED > 100  # what the table could learn from counts from 0
    assert found == asked
    assert len(sweeps(scale).trainings) == len(asked)
