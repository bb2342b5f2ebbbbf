"""Ours on the paper's own recordings: a world model that looks around itself, and ways imagined to the goal.

A `Setting` of Destrade et al., arXiv:2601.00844, fixes the recording; everything else is ours, and the same
in all of their worlds but for the steps along a line and the steps ahead:

    world        pixels of a largest step    thinnest wall    lines      looks ahead
    WallSmall    1.8                         3                6 steps    16 steps
    WallBig      3.6                         3                3 steps    12 steps
    Maze         1.3, and less from rest     11               8 steps    12 steps

Why there is no value network: the ways to the goal are found when it is seen (`objectives/imagined_ways.py`).
docs/lab_notes.md has what each part gave.
"""

from collections.abc import Callable
from dataclasses import replace

from jepaplan.models.local_predictor import LocalPredictorConfig
from jepaplan.models.scene_map import SceneMapConfig
from jepaplan.objectives.imagined_ways import WaysConfig
from jepaplan.planners.mppi import MPPI
from jepaplan.planners.proposals import NormBound
from jepaplan.recipes.experiment import DistanceConfig, Experiment, MovingPointStage, PredictorStage
from jepaplan.recipes.maze import MAZE
from jepaplan.recipes.system import felt_by
from jepaplan.recipes.value_guided import Setting
from jepaplan.recipes.wall import WALL_BIG, WALL_SMALL
from jepaplan.training.stage import FitConfig


def imagined_ways(setting: Setting, reach: int) -> Experiment:
    """The paper's recording of one of its worlds, the rest ours: minutes on a core."""
    fit = FitConfig(
        updates=600, batch=64, learning_rate=2e-3, gradient_clip=1.0, evaluate_every=200, health_every=300
    )
    return Experiment(
        recipe=f"{setting.prefix}_ways",
        description="local world model of what moves; ways to the goal imagined when it is seen",
        recording=setting.recording,
        # Four times as many surroundings to learn from.
        mirrors=("left-right", "upside-down"),
        encoder=SceneMapConfig(
            image_channels=setting.encoder.image_channels, proprioception_dim=felt_by(setting.encoder)
        ),
        predictor=LocalPredictorConfig(),
        distance=DistanceConfig(kind="imagined_ways", ways=WaysConfig(reach=reach)),
        stages=(
            MovingPointStage(fit=fit),
            PredictorStage(
                fit=replace(fit, updates=1500, batch=256, evaluate_every=500, health_every=750),
                steps=15,
                inverse_dynamics=True,
            ),
        ),
        planner=MPPI(
            samples=32,
            horizon=12,
            temperature=0.05,
            std=1.0,
            bounds=NormBound(max_norm=1.8),
            cost_scaling="per_problem",
        ),
        instances=f"{setting.recording.world}-final",
    )


def wall_small_ways() -> Experiment:
    """Small steps."""
    made = imagined_ways(WALL_SMALL, reach=6)
    return replace(made, planner=replace(made.planner, horizon=16))


def wall_big_ways() -> Experiment:
    """Big steps."""
    return imagined_ways(WALL_BIG, reach=3)


def maze_ways() -> Experiment:
    """The maze, where a line starts at rest and a push is felt later."""
    return imagined_ways(MAZE, reach=8)


LOCAL_RECIPES: dict[str, Callable[[], Experiment]] = {
    "wall_small_ways": wall_small_ways,
    "wall_big_ways": wall_big_ways,
    "maze_ways": maze_ways,
}
