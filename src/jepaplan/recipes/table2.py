"""Table 2 of Destrade et al., arXiv:2601.00844, method by world, and the variations of its section 7.3.

    paper                            here
    WS, WB, Maze                     WallSmall, WallBig, Maze: the final instances, 200, 200 and 80
    rows of the table                `METHODS`, by the paper's names
    gamma and tau sweep              `sweeps`: discount and expectile, on the tuning instances
    "a separate dataset" of it       recordings of seeds from `SWEEP_SEED`: those of no row of the table

Three rows are not in the paper's table: pred_VCReg with PLDM's inverse dynamics and time similarity; ours
(`recipes/local.py`), which learns from the same recordings and is met by all final instances; and
`wall_big_paths`, which learns from more recordings and is therefore beside the comparison, not in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from jepaplan.recipes.experiment import Experiment, ValueStage
from jepaplan.recipes.local import LOCAL_RECIPES
from jepaplan.recipes.maze import MAZE, MAZE_CPU
from jepaplan.recipes.reproduction import Claim, Evaluation, Reproduction, Training
from jepaplan.recipes.value_guided import (
    Approach,
    Setting,
    contrastive,
    prediction_ema,
    prediction_vcreg,
    prediction_vcreg_inverse,
    regressive,
    sweep_in,
    two_spaces,
    value_euclidean,
    value_euclidean_joint,
    value_quasimetric,
    value_quasimetric_joint,
    value_vcreg,
    value_vcreg_joint,
)
from jepaplan.recipes.wall import WALL_BIG, WALL_BIG_CPU, WALL_SMALL, WALL_SMALL_CPU, wall_big_paths

Scale = Literal["cpu", "full"]

SETTINGS: dict[Scale, tuple[Setting, ...]] = {
    "cpu": (WALL_SMALL_CPU, WALL_BIG_CPU, MAZE_CPU),
    "full": (WALL_SMALL, WALL_BIG, MAZE),
}
OURS = "ours (imagined ways)"
PATHS = "imagined paths, 2,500 recordings"
TABLE = {"table2": "all ten approaches, and ours, in three worlds"}  # for the pages that belong to it
SWEEP_SEED = 1000  # of the first training of each variation; those of the table count from 0
# Of 200 or 100; small steps take eight times as long.
_CPU_EPISODES = {"WallSmall": 50, "WallBig": 100, "WallBigBounce": 100, "WallBigSlips": 100}


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row: the paper's name, how it is trained, and the success that the paper reports."""

    name: str
    approach: Approach
    paper: tuple[float | None, float | None, float | None] = (None, None, None)  # WS, WB, Maze


METHODS: tuple[Method, ...] = (
    Method(name="Contrastive", approach=contrastive, paper=(0.49, 0.59, 0.50)),
    Method(name="Regressive", approach=regressive, paper=(0.54, 0.57, 0.46)),
    Method(name="pred_VCReg", approach=prediction_vcreg, paper=(0.55, 0.89, 0.54)),
    Method(name="pred_EMA", approach=prediction_ema, paper=(0.46, 0.43, 0.04)),
    Method(name="VF", approach=value_euclidean, paper=(0.63, 0.94, 0.49)),
    Method(name="VF_pred", approach=value_euclidean_joint, paper=(0.55, 0.75, 0.49)),
    Method(name="VF_quasi", approach=value_quasimetric, paper=(0.71, 0.96, 0.63)),
    Method(name="VF_quasi_pred", approach=value_quasimetric_joint, paper=(0.61, 0.85, 0.43)),
    Method(name="VF_VCReg", approach=value_vcreg, paper=(0.49, 0.75, 0.39)),
    Method(name="VF_VCReg_pred", approach=value_vcreg_joint, paper=(0.47, 0.67, 0.39)),
    Method(name="pred_VCReg, all of PLDM's terms", approach=prediction_vcreg_inverse),
    Method(name="two spaces (pred_VCReg, VF)", approach=two_spaces, paper=(0.60, None, None)),
)

CLAIMS: tuple[Claim, ...] = (
    Claim(words="value above prediction: VF above pred_VCReg", better="VF", worse="pred_VCReg"),
    Claim(words="value above prediction: VF_quasi above pred_VCReg", better="VF_quasi", worse="pred_VCReg"),
    Claim(words="value above prediction: VF above pred_EMA", better="VF", worse="pred_EMA"),
    Claim(words="value above contrast: VF above Contrastive", better="VF", worse="Contrastive"),
    Claim(words="value above unit steps: VF above Regressive", better="VF", worse="Regressive"),
    Claim(words="quasimetric above Euclidean: Sep", better="VF_quasi", worse="VF"),
    Claim(words="quasimetric above Euclidean: joint", better="VF_quasi_pred", worse="VF_pred"),
    Claim(words="Sep above joint: VF", better="VF", worse="VF_pred"),
    Claim(words="Sep above joint: VF_quasi", better="VF_quasi", worse="VF_quasi_pred"),
    Claim(words="Sep above joint: VF_VCReg", better="VF_VCReg", worse="VF_VCReg_pred"),
    Claim(words="VCReg hurts the value: Sep", better="VF", worse="VF_VCReg"),
    Claim(words="VCReg hurts the value: joint", better="VF_pred", worse="VF_VCReg_pred"),
    Claim(
        words="two spaces above prediction alone", better="two spaces (pred_VCReg, VF)", worse="pred_VCReg"
    ),
)


def table2(scale: Scale) -> Reproduction:
    """All approaches in the three worlds; on a CPU smaller in everything but the recordings."""
    return Reproduction(
        name="table2",
        title="Ten approaches in two rooms and a maze (arXiv:2601.00844, table 2)",
        introduction=(
            "Rows have the paper's names; `recipes/value_guided.py` says what each learns from. All but the "
            "last learn from the same 1,000 recordings of each world and seed; all but the last two share "
            f"planner and budget. {_SIZES[scale]} Ours (`recipes/local.py`) learns no value: it imagines the "
            "ways to a goal when it sees it, which the calls below include. It takes for granted that one "
            "thing moves, seen from above, and that the rest of the picture stays, which the paper's methods "
            "do not, and learns from the recordings' mirror images as well. It has a search of its own, much "
            "smaller, and meets all final instances. The last row is `wall_big_paths`, whose value is "
            "learned from imagined paths."
        ),
        beside={
            "choices": "what the paper leaves open, and what was chosen",
            "claims": "which of the claims hold, and what is known of the others",
            "search": "success against compute",
            "data": "success against recordings",
            "levers": "ours without one of its parts",
            "sweeps": "discount and expectile",
            "noise": "random outcomes",
        },
        trainings=(*_grid(scale), *_ours(scale)),
        claims=CLAIMS,
        maps=3,
    )


def sweeps(scale: Scale) -> Reproduction:
    """Discount and expectile, one varied while the other is kept, for VF and VF_quasi with small steps."""
    setting = SETTINGS[scale][0]
    trainings: dict[str, Training] = {}
    for experiment in (make() for make in sweep_in(setting, "_cpu" if scale == "cpu" else "").values()):
        first = experiment.stages[0]
        assert isinstance(first, ValueStage)
        name = "VF_quasi" if experiment.distance.kind == "iqe" else "VF"
        method = f"{name}, discount {first.value.discount:g}, expectile {first.value.expectile:g}"
        # Both sweeps cross the point with the chosen discount and an expectile of 0.7: once is enough.
        if method not in trainings:
            trainings[method] = one_cell(replace(experiment, seed=SWEEP_SEED), scale, method)
    return Reproduction(
        name="sweeps",
        title="Discount and expectile of the value (arXiv:2601.00844, section 7.3)",
        introduction=(
            "Success with small steps, on tuning instances and other recordings than those of the table. The "
            "discount is varied with an expectile of 0.7, the expectile with the discount that the paper "
            f"chose; its text has no numbers to compare with, so the grids are ours. {_SIZES[scale]}"
        ),
        beside=TABLE,
        trainings=tuple(trainings.values()),
    )


_SIZES: dict[Scale, str] = {
    "cpu": (
        "Here at the size of two cores: small networks, 1,000 updates of each stage (3,000 of the maze's "
        "predictor on finished latents), a search of 128 samples and 16 steps (WS 48, maze 24), the first 50 "
        "(WS) and 100 (WB) instances, all 80 of the maze. The paper's numbers are for its own size."
    ),
    "full": "Networks, search and instances are the paper's, training is 30,000 updates of each stage.",
}


def _grid(scale: Scale) -> Iterator[Training]:
    suffix = "_cpu" if scale == "cpu" else ""
    for place, setting in enumerate(SETTINGS[scale]):
        for method in METHODS:
            made = method.approach(setting)
            yield one_cell(
                replace(made, recipe=f"{made.recipe}{suffix}"), scale, method.name, method.paper[place]
            )


def _ours(scale: Scale) -> Iterator[Training]:
    for make in LOCAL_RECIPES.values():
        yield one_cell(make(), scale, OURS, all_instances=True)
    yield one_cell(replace(wall_big_paths(), instances="WallBig-final"), scale, PATHS)


def one_cell(
    experiment: Experiment,
    scale: Scale,
    method: str,
    paper: float | None = None,
    all_instances: bool = False,
) -> Training:
    """An experiment and its evaluation on its own instances; on a CPU the first, where they are many."""
    world = experiment.recording.world
    cell = Evaluation(
        name=experiment.instances,
        method=method,
        task=world,
        instances=experiment.instances,
        experiment=experiment,
        guided=experiment.learns_value,
        episodes=_CPU_EPISODES.get(world) if scale == "cpu" and not all_instances else None,
        paper=paper,
    )
    return Training(name=experiment.recipe, experiment=experiment, evaluations=(cell,))
