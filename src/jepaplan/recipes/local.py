"""Ours on the paper's own recordings: a world model that looks around itself, and ways imagined to the goal.

A `Setting` of Destrade et al., arXiv:2601.00844, fixes the recording; everything else is ours, and the same
in all of their worlds but for what their scale asks:

    world        pixels of a largest step    thinnest wall    lines      a step is believed
    WallSmall    1.8                         3                6 steps    if its action is read to 30 %
    WallBig      3.6                         3                3 steps    if its action is read to 30 %
    Maze         1.3, and less from rest     11               8 steps    if its action is read to 60 %

Why there is no value network: the ways to the goal are found when it is seen (`objectives/imagined_ways.py`).
docs/lab_notes.md has what each part gave.
"""

from collections.abc import Callable
from dataclasses import replace

from jepaplan.models.local_predictor import LocalPredictorConfig
from jepaplan.models.scene_map import SceneMapConfig
from jepaplan.objectives.imagined_ways import WaysConfig
from jepaplan.objectives.moving_point import MovingPointWeights
from jepaplan.planners.mppi import MPPI
from jepaplan.planners.proposals import NormBound
from jepaplan.recipes.experiment import DistanceConfig, Experiment, MovingPointStage, PredictorStage
from jepaplan.recipes.maze import MAZE
from jepaplan.recipes.system import felt_by
from jepaplan.recipes.value_guided import Setting
from jepaplan.recipes.wall import WALL_BIG, WALL_SMALL
from jepaplan.training.stage import FitConfig


def imagined_ways(setting: Setting, ways: WaysConfig, weights: MovingPointWeights) -> Experiment:
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
        distance=DistanceConfig(kind="imagined_ways", ways=ways),
        stages=(
            MovingPointStage(weights=weights, fit=fit),
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
    made = imagined_ways(WALL_SMALL, WaysConfig(reach=6, belief=0.3), MovingPointWeights())
    return replace(made, planner=replace(made.planner, horizon=16))


def wall_big_ways() -> Experiment:
    """Big steps."""
    return imagined_ways(WALL_BIG, WaysConfig(reach=3, belief=0.3), MovingPointWeights())


def maze_ways() -> Experiment:
    """The maze, where a line starts at rest and a push is felt later.

    A velocity changes by a unit where a place changes by a tenth: its errors weigh enough by themselves.
    """
    return imagined_ways(MAZE, WaysConfig(reach=8, belief=0.6), MovingPointWeights(prediction=1.0))


def allowing_for_noise(made: Experiment) -> Experiment:
    """Where steps slip: what no model can predict must not move the point, and free steps are read as less.

    With a weight of 20 the point shrank until it was no longer where the thing is on the map; with nothing
    else changed not one imagined step was believed (docs/lab_notes.md).
    """
    point = made.stages[0]
    assert isinstance(point, MovingPointStage)
    point = replace(point, weights=replace(point.weights, prediction=1.0))
    ways = replace(made.distance.ways, noisy=True, belief=0.45)
    return replace(made, stages=(point, *made.stages[1:]), distance=replace(made.distance, ways=ways))


LOCAL_RECIPES: dict[str, Callable[[], Experiment]] = {
    "wall_small_ways": wall_small_ways,
    "wall_big_ways": wall_big_ways,
    "maze_ways": maze_ways,
}
