"""Recipes at the size of a test: the same stages, a few updates, seconds on one core."""

import hashlib
from dataclasses import replace

from jepaplan.recipes.catalogue import find_recipe
from jepaplan.recipes.experiment import ImaginedValueStage, JointStage, RecordingConfig, ValueStage
from jepaplan.recipes.prior_stages import ActionPriorStage
from jepaplan.training.checkpoint import read_weights

UPDATES = 4


def tiny_stage(stage, updates):
    pace = {"log_every": 1, "evaluate_every": 2, "health_every": 2, "save_every": 1}
    stage = replace(stage, fit=replace(stage.fit, updates=updates, batch=8, warmup_fraction=0.25, **pace))
    if isinstance(stage, ImaginedValueStage):
        few = {"states": 16, "walkers": 8, "walk_steps": 4, "directions": 8, "reach": 3, "belief": 10.0}
        return replace(stage, scenes=2, imagination=replace(stage.imagination, **few))
    if isinstance(stage, ActionPriorStage):
        return replace(stage, model=replace(stage.model, hidden=16))
    if isinstance(stage, ValueStage | JointStage):
        stage = replace(stage, value=replace(stage.value, batch_goals=8))
    return replace(stage, steps=3)


def tiny_experiment(name="wall_big_paths", updates=UPDATES, **changes):
    """`name` with few updates, a small recording and a small search."""
    recipe = find_recipe(name)
    tiny = replace(
        recipe,
        recording=RecordingConfig(world=recipe.recording.world, trajectories=24, states=20),
        stages=tuple(tiny_stage(stage, updates) for stage in recipe.stages),
        planner=replace(recipe.planner, samples=16, horizon=4),
    )
    return replace(tiny, **changes)


def tensor_hashes(run):
    """sha256 of every tensor of a run's weights, by name."""
    tensors = read_weights(run / "weights.safetensors").tensors
    return {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in tensors.items()}
