"""The rooms in which value guidance matters: imagined paths, for pits, one-way doors and keys that break.

What differs from `wall_big_paths`: steps cannot always be undone, so a distance is not taught the
way back, and states that no imagined way joins are pushed apart by more than any task is long. Without that
the value of a pit would be whatever its picture resembles.

Where there is a key, a recording shows more than one scene: without the key, with a door open. So nothing of
the latent is held while imagining. Steps that take a key or open a door change it so much that the inverse
dynamics cannot read the action: recorded steps are ways whatever they read, and no state is a trap because
nothing is believed from it (docs/lab_notes.md has what each of these gave).
"""

from collections.abc import Callable
from dataclasses import replace

from jepaplan.envs.tile_rooms_maps import MAPS
from jepaplan.models.keypoint_encoder import KeypointConfig
from jepaplan.objectives.imagined_states import ImaginationConfig
from jepaplan.recipes.experiment import (
    Experiment,
    ImaginedValueStage,
    PredictionStage,
    PredictorStage,
    RecordingConfig,
)
from jepaplan.recipes.wall import wall_big_paths

ROOMS = tuple(MAPS)
FAR = 60.0  # largest steps; the longest task takes about half as many


def tile_room(room: str) -> Experiment:
    """One room's system, in minutes on a CPU."""
    base = wall_big_paths()
    first, second, third = base.stages
    assert isinstance(first, PredictionStage)
    assert isinstance(second, PredictorStage)
    assert isinstance(third, ImaginedValueStage)
    scene, state = 16, 48
    keys = any("k" in line for one in MAPS[room] for line in one)
    held = 0 if keys else scene
    imagination = ImaginationConfig(
        scene_width=held, reversible=False, unreached=FAR, traps=not keys, recorded_ways=keys
    )
    return replace(
        base,
        recipe=recipe_name(room),
        description=f"{room}: world model by prediction and scene contrast, value from imagined paths",
        recording=RecordingConfig(world=room, trajectories=2500),
        encoder=KeypointConfig(image_channels=3, scene_width=scene, state_width=state),
        predictor=replace(base.predictor, held=held),
        stages=(
            replace(first, fit=replace(first.fit, updates=500)),
            replace(second, fit=replace(second.fit, updates=4000), inverse_dynamics=keys),
            replace(third, fit=replace(third.fit, updates=1500), scenes=100, imagination=imagination),
        ),
        instances=f"{room}-tuning",
    )


def recipe_name(room: str) -> str:
    """`dead_end` for DeadEnd."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in room).lstrip("_")


TILE_RECIPES: dict[str, Callable[[], Experiment]] = {
    recipe_name(room): lambda room=room: tile_room(room) for room in ROOMS
}
