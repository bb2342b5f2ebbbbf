"""How much search a value needs, how many recordings, and what each part of ours gives.

    search    samples and steps ahead, for systems that are trained once, over the calls that were counted;
              final instances
    data      recordings to learn from, everything else stays; final instances
    levers    ours without one of its parts; tuning instances

The paper's search is 2,000 samples of 96 steps on WallSmall, of 64 on WallBig, and 500 of 100 in the maze.
"""

from dataclasses import replace
from typing import Literal

from jepaplan.planners.mppi import MPPI
from jepaplan.recipes.experiment import Experiment, MovingPointStage
from jepaplan.recipes.local import LOCAL_RECIPES, wall_big_ways
from jepaplan.recipes.reproduction import CALLS, Claim, Evaluation, Reproduction, Training
from jepaplan.recipes.table2 import TABLE
from jepaplan.recipes.value_guided import approaches_in
from jepaplan.recipes.wall import WALL_BIG, WALL_BIG_CPU, wall_big_paths

Scale = Literal["cpu", "full"]

SAMPLES = (2, 4, 8, 16, 32, 128, 512)
HORIZONS = (4, 8, 12)  # steps ahead, of `wall_big_paths`
WAYS_SAMPLES = (2, 8, 32)
WAYS_HORIZONS = (4, 12)
FEW_DIRECTIONS = 8  # of the lines from every state, instead of 16
RECORDINGS = (16, 32, 64, 125, 250, 500, 1000, 2500)
_EPISODES = 100  # of 200 instances, on a CPU


def search(scale: Scale) -> Reproduction:
    """Success over predictor calls per step: ours at several horizons, the paper's value and prediction."""
    paper = _of_the_paper(scale, ("value_quasimetric", "prediction_vcreg"))
    trainings = [_searched_ways(make(), scale) for make in LOCAL_RECIPES.values()]
    paths = replace(wall_big_paths(), instances="WallBig-final")
    trainings.append(_searched(paths, scale, {f"imagined paths, {steps} steps": steps for steps in HORIZONS}))
    for name, experiment in paper.items():
        steps = _planner(experiment).horizon
        trainings.append(_searched(experiment, scale, {f"{name}, {steps} steps": steps}))
    return Reproduction(
        name="search",
        title="How much search a value needs",
        introduction=(
            "Each system is trained once per seed, as for the table of ten approaches, and then plans with "
            "more and fewer samples at every step; the last plan goes on, so even two samples a step are "
            "many in an episode. All calls are counted: ours imagines ways once for every goal, so it pays "
            "more a step where it arrives sooner; with 8 directions it imagines half as many lines. The "
            "paper asks its predictor 192,000 times per step in WallSmall, 128,000 in WallBig, 50,000 in the "
            "maze."
        ),
        trainings=tuple(trainings),
        axis=CALLS,
        beside=TABLE,
    )


def data(scale: Scale) -> Reproduction:
    """Success over recordings: ours, the paper's value and prediction."""
    systems = {"ours": wall_big_ways()}
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
        beside=TABLE,
    )


OURS, STRAIGHT, BELIEVING = "ours", "straight lines for ways", "every step believed"


def levers(scale: Scale) -> Reproduction:
    """Ours without one of its parts, in all three worlds."""
    trainings: list[Training] = []
    for make in LOCAL_RECIPES.values():
        ours = make()
        ways = replace(ours.distance.ways, belief=1e6)
        searched = (
            _tuned(ours, scale, OURS),
            replace(_tuned(ours, scale, STRAIGHT), guided=False),
            _tuned(replace(ours, distance=replace(ours.distance, ways=ways)), scale, BELIEVING),
        )
        trainings.append(Training(name=ours.recipe, experiment=ours, evaluations=searched))
        for name, changed in _without(ours).items():
            cell = _tuned(changed, scale, name)
            trainings.append(
                Training(name=f"{ours.recipe}-{cell.name}", experiment=changed, evaluations=(cell,))
            )
    others = dict.fromkeys(cell.method for training in trainings for cell in training.evaluations)
    return Reproduction(
        name="levers",
        title="What each part of ours gives",
        introduction=(
            "Ours (`recipes/local.py`) with one part changed at a time, everything else as it is; the first "
            "two change the search only, the others are trained anew. Tuning instances: the recipe was "
            "chosen on them."
        ),
        beside=TABLE,
        trainings=tuple(trainings),
        claims=tuple(
            Claim(words=f"ours above: {name}", better=OURS, worse=name) for name in others if name != OURS
        ),
    )


def _without(ours: Experiment) -> dict[str, Experiment]:
    """What is trained anew, by what is said of it."""
    point = ours.stages[0]
    assert isinstance(point, MovingPointStage)
    terms = {
        "no attention to what moves": replace(point.weights, attention=0.0),
        "travel is not read": replace(point.weights, travel=0.0),
        "maps of a recording may differ": replace(point.weights, constancy=0.0),
        "prediction weighs 1": replace(point.weights, prediction=1.0),
    }
    return {
        "no mirror images": replace(ours, mirrors=()),
        **{
            name: replace(ours, stages=(replace(point, weights=weights), *ours.stages[1:]))
            for name, weights in terms.items()
        },
        "only the map of the first frame": replace(
            ours, stages=tuple(replace(stage, companion_maps=False) for stage in ours.stages)
        ),
    }


def _of_the_paper(scale: Scale, approaches: tuple[str, ...]) -> dict[str, Experiment]:
    """By the paper's names, as the table trains them."""
    setting, suffix = (WALL_BIG_CPU, "_cpu") if scale == "cpu" else (WALL_BIG, "")
    names = {"value_quasimetric": "VF_quasi", "prediction_vcreg": "pred_VCReg"}
    made = approaches_in(setting, suffix)
    return {names[approach]: made[f"{setting.prefix}_{approach}{suffix}"]() for approach in approaches}


def _planner(experiment: Experiment) -> MPPI:
    assert isinstance(experiment.planner, MPPI)
    return experiment.planner


def _searched(
    experiment: Experiment, scale: Scale, methods: dict[str, int], counts: tuple[int, ...] = SAMPLES
) -> Training:
    """One system under searches of every size; `methods` are names by steps ahead."""
    cells = tuple(
        _cell(
            replace(experiment, planner=replace(_planner(experiment), samples=samples, horizon=steps)),
            scale,
            method,
            f"{samples} samples",
            at=float(samples),
        )
        for method, steps in methods.items()
        for samples in counts
    )
    return Training(name=experiment.recipe, experiment=experiment, evaluations=cells)


def _searched_ways(ours: Experiment, scale: Scale) -> Training:
    """Ours with the ways of its recipe, and with half as many lines."""
    made = _searched(ours, scale, {f"ours, {steps} steps": steps for steps in WAYS_HORIZONS}, WAYS_SAMPLES)
    ways = replace(ours.distance.ways, directions=FEW_DIRECTIONS)
    few = replace(ours, distance=replace(ours.distance, ways=ways))
    name = f"ours, {WAYS_HORIZONS[0]} steps, {FEW_DIRECTIONS} directions"
    cells = _searched(few, scale, {name: WAYS_HORIZONS[0]}, WAYS_SAMPLES).evaluations
    return replace(made, evaluations=made.evaluations + cells)


def _fed(method: str, experiment: Experiment, count: int, scale: Scale) -> Training:
    """One system that learns from `count` recordings."""
    experiment = replace(experiment, recording=replace(experiment.recording, trajectories=count))
    cell = _cell(experiment, scale, method, f"{count} recordings", at=float(count))
    return Training(name=f"{experiment.recipe}_{count}", experiment=experiment, evaluations=(cell,))


def _tuned(experiment: Experiment, scale: Scale, method: str) -> Evaluation:
    """On the tuning instances. The training is the table's, which names the final ones."""
    return replace(_cell(experiment, scale, method), instances=f"{experiment.recording.world}-tuning")


def _cell(
    experiment: Experiment, scale: Scale, method: str, variant: str = "", at: float | None = None
) -> Evaluation:
    label = f"{method}-{variant}" if variant else method
    return Evaluation(
        name=label.replace(", ", "-").replace(" ", "_"),
        method=method,
        variant=variant,
        task=experiment.recording.world,
        instances=experiment.instances,
        experiment=experiment,
        guided=experiment.learns_value,
        # The maze has 80 instances, all of which are met.
        episodes=_EPISODES if scale == "cpu" and experiment.recording.world != "Maze" else None,
        at=at,
    )
