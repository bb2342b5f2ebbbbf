"""How much search a learned value needs, and how many recordings: two curves in the two rooms (WallBig).

    search    samples and steps ahead, for systems that are trained once
    data      recordings to learn from; everything else stays

Both are measured on the final instances, beside the paper's search: 2,000 samples of 64 steps on WallBig, and
of 96 in its other worlds, each time anew.
"""

from dataclasses import replace
from typing import Literal

from jepaplan.planners.mppi import MPPI
from jepaplan.recipes.experiment import Experiment
from jepaplan.recipes.reproduction import Evaluation, Reproduction, Training
from jepaplan.recipes.value_guided import approaches_in
from jepaplan.recipes.wall import WALL_BIG, WALL_BIG_CPU, wall_big_demo

Scale = Literal["cpu", "full"]

SAMPLES = (2, 4, 8, 16, 32, 128, 512)
HORIZONS = (4, 8, 12)  # steps ahead, of our own system
RECORDINGS = (125, 250, 500, 1000, 2500)
_EPISODES = 100  # of 200 final instances, on a CPU


def search(scale: Scale) -> Reproduction:
    """Success over predictor calls per replan: ours at several horizons, the paper's value and prediction."""
    paper = _of_the_paper(scale, ("value_quasimetric", "prediction_vcreg"))
    ours = replace(wall_big_demo(), instances="WallBig-final")
    trainings = [_searched(ours, scale, {f"ours, {steps} steps": steps for steps in HORIZONS})]
    for name, experiment in paper.items():
        steps = _planner(experiment).horizon
        trainings.append(_searched(experiment, scale, {f"{name}, {steps} steps": steps}))
    return Reproduction(
        name="search",
        title="How much search a value needs",
        introduction=(
            "Two rooms with big steps. Each system is trained once per seed, as for the table of ten "
            "approaches, and then plans with more and fewer samples at every step; the last plan goes on, so "
            "even two samples a step are many in an episode. The paper asks its predictor 128,000 times per "
            "step in this world, and 192,000 times in its others."
        ),
        trainings=tuple(trainings),
        axis="predictor calls per replan",
    )


def data(scale: Scale) -> Reproduction:
    """Success over recordings: ours, the paper's value and prediction."""
    systems = {"ours": replace(wall_big_demo(), instances="WallBig-final")}
    systems |= _of_the_paper(scale, ("value_quasimetric", "prediction_vcreg"))
    return Reproduction(
        name="data",
        title="How many recordings a value needs",
        introduction=(
            "Two rooms with big steps. Each system learns from so many recordings of 64 states, for as many "
            "updates as in the table of ten approaches; the paper has 1,000."
        ),
        trainings=tuple(
            _fed(name, experiment, count, scale)
            for name, experiment in systems.items()
            for count in RECORDINGS
        ),
        axis="recordings",
    )


def _of_the_paper(scale: Scale, approaches: tuple[str, ...]) -> dict[str, Experiment]:
    """By the paper's names, as the table trains them."""
    setting, suffix = (WALL_BIG_CPU, "_cpu") if scale == "cpu" else (WALL_BIG, "")
    names = {"value_quasimetric": "VF_quasi", "prediction_vcreg": "pred_VCReg"}
    made = approaches_in(setting, suffix)
    return {names[approach]: made[f"{setting.prefix}_{approach}{suffix}"]() for approach in approaches}


def _planner(experiment: Experiment) -> MPPI:
    assert isinstance(experiment.planner, MPPI)
    return experiment.planner


def _searched(experiment: Experiment, scale: Scale, methods: dict[str, int]) -> Training:
    """One system under searches of every size; `methods` are names by steps ahead."""
    cells = tuple(
        _cell(
            replace(experiment, planner=replace(_planner(experiment), samples=samples, horizon=steps)),
            scale,
            method,
            f"{samples} samples",
            at=float(samples * steps),
        )
        for method, steps in methods.items()
        for samples in SAMPLES
    )
    return Training(name=experiment.recipe, experiment=experiment, evaluations=cells)


def _fed(method: str, experiment: Experiment, count: int, scale: Scale) -> Training:
    """One system that learns from `count` recordings."""
    experiment = replace(experiment, recording=replace(experiment.recording, trajectories=count))
    cell = _cell(experiment, scale, method, f"{count} recordings", at=float(count))
    return Training(name=f"{experiment.recipe}_{count}", experiment=experiment, evaluations=(cell,))


def _cell(experiment: Experiment, scale: Scale, method: str, variant: str, at: float) -> Evaluation:
    return Evaluation(
        name=f"{method}-{variant}".replace(", ", "-").replace(" ", "_"),
        method=method,
        variant=variant,
        task=experiment.recording.world,
        instances=experiment.instances,
        experiment=experiment,
        guided=experiment.learns_value,
        episodes=_EPISODES if scale == "cpu" else None,
        at=at,
    )
