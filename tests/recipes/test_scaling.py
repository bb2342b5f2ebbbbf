"""Curves over search and data: their places are what they say, and their systems those of the table."""

import pytest

from jepaplan.recipes.reproduction import Training
from jepaplan.recipes.scaling import HORIZONS, RECORDINGS, SAMPLES, data, search
from jepaplan.recipes.table2 import table2

scales = pytest.mark.parametrize("scale", ["cpu", "full"])


def experiments(trainings: tuple[Training, ...]):
    return {training.name: training.experiment for training in trainings}


@scales
def test_searches_differ_in_nothing_but_the_search(scale):
    found = search(scale)
    table = experiments(table2(scale).trainings)
    assert {name: table[name] for name in experiments(found.trainings)} == experiments(found.trainings)
    for training in found.trainings:
        for cell in training.evaluations:
            planner = cell.experiment.planner
            assert cell.at == planner.samples * planner.horizon * planner.iterations
            assert cell.variant == f"{planner.samples} samples"
            assert f"{planner.horizon} steps" in cell.method
    cells = [cell for training in found.trainings for cell in training.evaluations]
    assert len({cell.label for cell in cells}) == len(cells) == (len(HORIZONS) + 2) * len(SAMPLES)


@scales
def test_data_differ_in_nothing_but_the_recordings(scale):
    found = data(scale)
    assert len(found.trainings) == 3 * len(RECORDINGS)
    for training in found.trainings:
        (cell,) = training.evaluations
        assert cell.at == training.experiment.recording.trajectories
        assert cell.instances == "WallBig-final"
        assert cell.guided == ("pred" not in cell.method)
