"""Two rooms with big steps in which outcomes are random, recorded and met alike.

    world           what is random
    WallBig         nothing
    WallBigBounce   where a blocked step ends: at the wall, thrown back by a Gaussian (deviation 0.5 pixels)
    WallBigSlips    a quarter of the steps goes as far as asked, in any direction

arXiv:2601.00844 says in its discussion that its value is biased in such worlds: an expectile over successors
takes luck for skill. The cure is implicit Q-learning proper, with values of actions
(`objectives/iql.py`); how large the bias is, where the truth is known, is in tests/objectives/test_td.py.
"""

from dataclasses import replace

from jepaplan.recipes.experiment import Experiment
from jepaplan.recipes.local import wall_big_ways
from jepaplan.recipes.reproduction import Claim, Reproduction, Training
from jepaplan.recipes.table2 import TABLE, Scale, one_cell
from jepaplan.recipes.value_guided import (
    EUCLIDEAN_VALUE,
    prediction_vcreg,
    value_euclidean,
    value_quasimetric,
)
from jepaplan.recipes.wall import WALL_BIG, WALL_BIG_CPU

WORLDS = ("WallBig", "WallBigBounce", "WallBigSlips")


def noise(scale: Scale) -> Reproduction:
    """Ours, the paper's values and prediction, in the three worlds."""
    setting, suffix = (WALL_BIG_CPU, "_cpu") if scale == "cpu" else (WALL_BIG, "")
    ours = wall_big_ways()
    methods = {
        "ours": ours,
        "VF": value_euclidean(setting),
        "VF, values of actions": value_euclidean(setting, replace(EUCLIDEAN_VALUE, action_values=True)),
        "VF_quasi": value_quasimetric(setting),
        "pred_VCReg": prediction_vcreg(setting),
    }
    return Reproduction(
        name="noise",
        title="What random outcomes cost",
        introduction=(
            "Two rooms with big steps: as they are, with a noisy bounce off the walls, and with a quarter of "
            "the steps going anywhere. Recordings and instances have the same noise; planning imagines none. "
            "With slips even the best way takes a third more steps, of the same 64."
        ),
        beside=TABLE,
        trainings=tuple(
            _in_world(world, method, experiment, scale, suffix if experiment.recipe != ours.recipe else "")
            for world in WORLDS
            for method, experiment in methods.items()
        ),
        claims=(
            Claim(words="values of actions help", better="VF, values of actions", worse="VF"),
            Claim(words="value above prediction: VF above pred_VCReg", better="VF", worse="pred_VCReg"),
            Claim(words="quasimetric above Euclidean", better="VF_quasi", worse="VF"),
        ),
    )


def _in_world(world: str, method: str, experiment: Experiment, scale: Scale, suffix: str) -> Training:
    experiment = replace(
        experiment,
        recipe=f"{experiment.recipe}{suffix}",
        recording=replace(experiment.recording, world=world),
        instances=f"{world}-final",
    )
    made = one_cell(experiment, scale, method)
    name = made.name + ("-actions" if "actions" in method else "")
    # The runs of the world without noise are the table's.
    return replace(made, name=name if world == "WallBig" else f"{name}-{world}")
