"""Curves over search and data, and parts left out: they are what they say, and their systems the table's."""

from dataclasses import asdict, replace

import pytest

from jepaplan.recipes.noise_study import noise
from jepaplan.recipes.reproduction import CALLS, Training
from jepaplan.recipes.scaling import (
    HORIZONS,
    RECORDINGS,
    SAMPLES,
    WAYS_HORIZONS,
    WAYS_SAMPLES,
    data,
    levers,
    search,
)
from jepaplan.recipes.table2 import table2

scales = pytest.mark.parametrize("scale", ["cpu", "full"])


def experiments(trainings: tuple[Training, ...]):
    return {training.name: training.experiment for training in trainings}


@scales
def test_searches_differ_in_nothing_but_the_search(scale):
    found = search(scale)
    assert found.axis == CALLS
    table = experiments(table2(scale).trainings)
    assert {name: table[name] for name in experiments(found.trainings)} == experiments(found.trainings)
    for training in found.trainings:
        for cell in training.evaluations:
            planner = cell.experiment.planner
            assert cell.at == planner.samples
            assert cell.variant == f"{planner.samples} samples"
            assert f"{planner.horizon} steps" in cell.method
            lines = cell.experiment.distance.ways.directions
            assert lines == (8 if "8 directions" in cell.method else 16)
    cells = [cell for training in found.trainings for cell in training.evaluations]
    ours = 3 * (len(WAYS_HORIZONS) + 1) * len(WAYS_SAMPLES)
    assert len({(cell.label, cell.task) for cell in cells}) == len(cells)
    assert len(cells) == (len(HORIZONS) + 2) * len(SAMPLES) + ours


@scales
def test_data_differ_in_nothing_but_the_recordings(scale):
    found = data(scale)
    assert len(found.trainings) == 3 * len(RECORDINGS)
    for training in found.trainings:
        (cell,) = training.evaluations
        assert cell.at == training.experiment.recording.trajectories
        assert cell.instances == "WallBig-final"
        assert cell.guided == ("pred" not in cell.method)


def leaves(record: object, path: str = "") -> dict[str, object]:
    """Every number of a record by where it stands."""
    if isinstance(record, dict):
        parts = record.items()
    elif isinstance(record, list | tuple) and record and isinstance(record[0], dict):
        parts = enumerate(record)
    else:
        return {path: record}
    return {name: value for key, one in parts for name, value in leaves(one, f"{path}/{key}").items()}


@scales
def test_a_lever_changes_one_thing(scale):
    found = levers(scale)
    assert len(found.trainings) == 3 * 7
    ours = {
        training.experiment.recording.world: training
        for training in found.trainings
        if len(training.evaluations) == 3
    }
    for training in found.trainings:
        base = ours[training.experiment.recording.world]
        before, after = (leaves(asdict(one.experiment)) for one in (base, training))
        changed = [name for name in before if before[name] != after.get(name)]
        parts = {name.rpartition("/")[2] for name in changed}  # of the stages, perhaps in both
        assert len(parts) == (0 if training is base else 1), changed
        for cell in training.evaluations:
            assert cell.instances.endswith("-tuning")
            assert cell.experiment.planner == base.experiment.planner
    assert [claim.better for claim in found.claims] == ["ours"] * 8


@scales
def test_levers_of_the_search_use_the_same_training(scale):
    for training in levers(scale).trainings:
        if len(training.evaluations) == 3:
            ours, straight, believing = training.evaluations
            assert (ours.guided, straight.guided, believing.guided) == (True, False, True)
            assert ours.experiment == training.experiment == straight.experiment
            assert believing.experiment.distance.ways.belief > 1e3


@scales
def test_noise_is_the_world_s_and_nothing_else_changes(scale):
    found = noise(scale)
    assert len(found.trainings) == 3 * 5
    still = {one.evaluations[0].method: one.experiment for one in found.trainings[:5]}
    table = experiments(table2(scale).trainings)
    for method in ("ours", "VF", "VF_quasi", "pred_VCReg"):
        assert table[still[method].recipe] == still[method]
    for training in found.trainings:
        (cell,) = training.evaluations
        calm = replace(training.experiment.recording, world="WallBig")
        assert replace(training.experiment, recording=calm, instances="WallBig-final") == still[cell.method]
        assert training.experiment.recording.world == cell.task == cell.instances.removesuffix("-final")
