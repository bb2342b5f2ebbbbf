"""Every recipe survives JSON; a file that says something unknown is refused in words."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import pytest

from jepaplan.data.sprite_videos import BouncingConfig
from jepaplan.evaluation.video_probe_supervised import SupervisedConfig
from jepaplan.evaluation.video_probe_sweep import Sweep
from jepaplan.evaluation.video_probes import AttentiveProbe, LinearProbe
from jepaplan.planners.cem import CEM
from jepaplan.planners.proposals import BoxBound
from jepaplan.recipes import serialise
from jepaplan.recipes.catalogue import RECIPES, find_recipe
from jepaplan.recipes.serialise import decisive, experiment_from_json, experiment_to_json, fingerprint
from jepaplan.types import InputError

KIND = "kind of record"
OF_PROBES = (AttentiveProbe, BouncingConfig, LinearProbe, SupervisedConfig, Sweep)  # of the video study
GOLDEN = Path(__file__).with_name("defaults.txt")


def through_json(experiment):
    return experiment_from_json(json.loads(json.dumps(experiment_to_json(experiment))))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_json(name):
    assert through_json(find_recipe(name)) == find_recipe(name)


def test_other_planners_and_bounds_survive_too():
    search = CEM(samples=8, elites=3, horizon=3, bounds=BoxBound(low=-1.0, high=1.0))
    experiment = replace(find_recipe("wall_big_paths"), planner=search)
    assert through_json(experiment) == experiment


def written():
    return json.loads(json.dumps(experiment_to_json(find_recipe("wall_big_paths"))))


def test_unknown_kinds_are_refused_not_run():
    asked = written()
    asked["encoder"][KIND] = "os.system"
    with pytest.raises(InputError, match=r"names a record 'os.system'; known are Experiment"):
        experiment_from_json(asked)


def test_unknown_fields_are_named():
    asked = written()
    asked["stages"][1]["momentum"] = 0.9
    with pytest.raises(InputError, match=r"run.json: PredictorStage has no field momentum"):
        experiment_from_json(asked, "run.json")


def test_missing_fields_and_wrong_types_are_refused_in_words():
    asked = written()
    del asked["stages"][1]["fit"]
    with pytest.raises(InputError, match=r"PredictorStage cannot be made of .*'fit'"):
        experiment_from_json(asked)
    asked = written()
    asked["stages"][1]["fit"]["updates"] = "many"
    with pytest.raises(InputError, match="FitConfig"):
        experiment_from_json(asked)


@pytest.mark.parametrize("value", [None, [], {KIND: "CostConfig"}, 3])
def test_what_is_no_experiment_is_refused(value):
    with pytest.raises(InputError, match=r"does not describe an experiment|names a record"):
        experiment_from_json(value)


def test_a_changed_default_is_noticed():
    """What was found with an old default would be taken for work of the new one.

    New fields: run `python tests/recipes/test_serialise.py` to note them. A changed default: raise
    `serialise.DEFAULTS` first.
    """
    version, *known = GOLDEN.read_text().splitlines()
    now = defaults()
    changed = sorted(set(known) - set(now))
    assert not changed or version != f"DEFAULTS {serialise.DEFAULTS}", f"raise serialise.DEFAULTS: {changed}"
    assert (version, known) == (f"DEFAULTS {serialise.DEFAULTS}", now)


def test_fingerprints_leave_out_words_and_defaults_and_nothing_else():
    experiment = find_recipe("wall_big_paths")
    plain = fingerprint(experiment, 3)
    assert fingerprint(replace(experiment, description="in other words"), 3) == plain
    assert fingerprint(replace(experiment, held_out=0.06), 3) != plain != fingerprint(experiment, 4)
    written = decisive(experiment.cost)
    assert set(written) == {"kind of record"}  # all of it is default


def defaults():
    """A line for every field of every record that has a default."""
    return sorted(
        f"{name}.{field.name} = {serialise._default(field)!r}"
        for name, record in (serialise._RECORDS | {record.__name__: record for record in OF_PROBES}).items()
        for field in dataclasses.fields(record)
        if serialise._default(field) is not dataclasses.MISSING
    )


if __name__ == "__main__":
    GOLDEN.write_text("\n".join([f"DEFAULTS {serialise.DEFAULTS}", *defaults()]) + "\n")
