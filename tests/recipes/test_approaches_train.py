"""One update of every approach: it moves what it should, freezes what it should, and resumes to the bit."""

import math
from dataclasses import replace

import pytest
import torch

from jepaplan.data.episodes import EpisodeWriter, open_episodes
from jepaplan.recipes.catalogue import find_recipe
from jepaplan.recipes.second_space import SecondSpace
from jepaplan.recipes.stages import Workshop
from jepaplan.recipes.system import Interface, build_distance, build_system, fit_normalisation
from jepaplan.training.checkpoint import load_weights, read_weights, save_weights
from jepaplan.training.loop import fit
from jepaplan.training.runs import Origin, RunDirectory, open_run
from jepaplan.training.state import TrainingState
from jepaplan.types import InputError

ENCODER, PREDICTOR = "world_model.pixel_encoder.encoder", "world_model.predictor"
INVERSE, DISTANCE = "inverse_dynamics", "distance"
SIDE = 16  # pixels
GROUPS = (ENCODER, PREDICTOR, INVERSE, DISTANCE)

# What each stage may change.
MOVES = {
    "contrastive": ({ENCODER}, {PREDICTOR}),
    "regressive": ({ENCODER}, {PREDICTOR}),
    "prediction_vcreg": ({ENCODER, PREDICTOR},),
    "prediction_vcreg_inverse": ({ENCODER, PREDICTOR, INVERSE},),
    "prediction_ema": ({ENCODER, PREDICTOR},),
    "value_euclidean": ({ENCODER}, {PREDICTOR}),
    "value_euclidean_joint": ({ENCODER, PREDICTOR},),
    "value_quasimetric": ({ENCODER, DISTANCE}, {PREDICTOR}),
    "value_quasimetric_joint": ({ENCODER, PREDICTOR, DISTANCE},),
    "value_vcreg": ({ENCODER}, {PREDICTOR}),
    "value_vcreg_joint": ({ENCODER, PREDICTOR},),
    "two_spaces": ({ENCODER, PREDICTOR}, {DISTANCE}),
}


def recorded(path, channels, body):
    generator = torch.Generator().manual_seed(0)
    with EpisodeWriter(path, {"world": "noise", "seed": 0}) as writer:
        for _ in range(6):
            frames = torch.randint(0, 255, (12, channels, SIDE, SIDE), generator=generator, dtype=torch.uint8)
            felt = torch.randn(12, body, generator=generator) if body else None
            writer.append(frames, torch.randn(11, 2, generator=generator), proprioception=felt)
    return open_episodes(path)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    return {
        "wall_small": recorded(folder / "wall.h5", channels=2, body=0),
        "maze": recorded(folder / "maze.h5", channels=3, body=2),
    }


def tiny(name, updates=1, batch=8, batch_goals=8):
    recipe = find_recipe(name)
    pace = {"log_every": 1, "save_every": 1}

    def shrink(stage):
        fit = replace(stage.fit, updates=updates, batch=batch, warmup_fraction=0.0, **pace)
        stage = replace(stage, fit=fit, steps=3)
        goals = getattr(stage, "value", None)
        return stage if goals is None else replace(stage, value=replace(goals, batch_goals=batch_goals))

    return replace(
        recipe,
        encoder=replace(recipe.encoder, image_size=SIDE, latent_width=32),
        distance=replace(recipe.distance, components=4),
        stages=tuple(shrink(stage) for stage in recipe.stages),
    )


def workshop_of(experiment, episodes):
    felt = 0 if episodes.proprioception is None else episodes.proprioception.shape[1]
    image = tuple(episodes.observations.shape[1:])
    system = build_system(experiment, Interface(image=image, action_dim=2, proprioception=felt))
    fit_normalisation(system, episodes, experiment.seed)
    return Workshop(experiment, system, episodes)


def opened(experiment, path):
    return open_run(path, Origin(recipe=experiment.recipe, configuration={}, data="noise", seed=0))


def changed(before, after):
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(name.startswith(GROUPS) for name in moved), moved
    return {group for group in GROUPS if any(name.startswith(f"{group}.") for name in moved)}


def copied(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def one_update(stage, config, folder):
    """What the training loop does in one update, without its files; returns the held-out metrics."""
    state = TrainingState(stage, config, folder)
    loss, _ = stage.objective(stage.load(stage.sample(torch.Generator().manual_seed(0), config.batch)))
    loss.backward()
    assert state.step(config.learning_rate) > 0
    if stage.after_update is not None:
        stage.after_update(1)
    with torch.no_grad():
        return stage.evaluate()


@pytest.mark.parametrize("name", ["value_euclidean", "value_quasimetric_joint", "two_spaces"])
def test_values_of_actions_are_trained_and_left_behind(name, recordings, tmp_path):
    experiment = tiny(f"wall_small_{name}_cpu")
    stages = tuple(
        replace(stage, value=replace(stage.value, action_values=True)) if hasattr(stage, "value") else stage
        for stage in experiment.stages
    )
    experiment = replace(experiment, stages=stages)
    workshop = workshop_of(experiment, recordings["wall_small"])
    names = set(workshop.system.state_dict())
    heads = []
    for config in experiment.stages:
        stage = workshop.build(config)
        head = getattr(stage.objective, "action_values", None)
        before = None if head is None else copied(head)
        one_update(stage, config.fit, tmp_path / config.name)
        if head is not None:
            after = head.state_dict()
            assert any(not torch.equal(before[key], after[key]) for key in before)
            heads.append(config.name)
    assert len(heads) == 1
    assert set(workshop.system.state_dict()) == names


@pytest.mark.parametrize("prefix", ["wall_small", "maze"])
@pytest.mark.parametrize("name", MOVES)
def test_every_stage_moves_what_it_says(name, prefix, recordings, tmp_path):
    experiment = tiny(f"{prefix}_{name}_cpu")
    workshop = workshop_of(experiment, recordings[prefix])
    for config, moves in zip(experiment.stages, MOVES[name], strict=True):
        before = copied(workshop.system)
        held_out = one_update(workshop.build(config), config.fit, tmp_path)
        assert changed(before, workshop.system.state_dict()) == moves
        assert held_out
        assert all(math.isfinite(value) for value in held_out.values())


@pytest.mark.parametrize("prefix, channels, felt", [("wall_small", 2, 0), ("wall_big", 2, 0), ("maze", 3, 2)])
def test_encoder_and_predictor_have_the_papers_parameters(prefix, channels, felt):
    experiment = find_recipe(f"{prefix}_value_euclidean")
    interface = Interface(image=(channels, 64, 64), action_dim=2, proprioception=felt)
    system = build_system(experiment, interface)
    size = {
        name: sum(parameter.numel() for parameter in module.parameters()) / 1e6
        for name, module in system.world_model.named_children()
    }
    assert round(size["pixel_encoder"], 1) == 2.2
    assert round(size["predictor"], 1) == 1.3


def with_decay(experiment, decays):
    (stage,) = experiment.stages
    changed = replace(stage, regulariser=replace(stage.regulariser, target_decay=decays))
    return replace(experiment, stages=(changed,))


def final_state(path, stage):
    return read_weights(max(RunDirectory(path).state(stage).glob("0*.safetensors"))).tensors


def test_the_target_encoder_resumes_to_the_bit(recordings, tmp_path):
    experiment = with_decay(tiny("wall_small_prediction_ema_cpu", updates=3), (0.5, 0.9))
    (config,) = experiment.stages

    def train(path, on_progress=None):
        workshop = workshop_of(experiment, recordings["wall_small"])
        with opened(experiment, path) as run:
            return fit(workshop.build(config), run, config.fit, on_progress)

    def interrupt(progress):
        if progress.update == 2:
            raise KeyboardInterrupt

    train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", interrupt)
    assert train(tmp_path / "stopped").resumed_from == 1
    whole, stopped = (final_state(tmp_path / which, config.name) for which in ("whole", "stopped"))
    assert set(whole) == set(stopped)
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    targets = [name for name in whole if name.startswith("model/target_encoder.encoder.")]
    assert targets
    learned = [name.replace("target_encoder", "world_model.pixel_encoder") for name in targets]
    assert not any(torch.equal(whole[a], whole[b]) for a, b in zip(targets, learned, strict=True))
    exported = read_weights(tmp_path / "whole" / "weights.safetensors").tensors
    assert not any("target_encoder" in name for name in exported)


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_a_target_encoder_copies_or_stands_still(decay, recordings, tmp_path):
    experiment = with_decay(tiny("wall_small_prediction_ema_cpu"), (decay, decay))
    (config,) = experiment.stages
    workshop = workshop_of(experiment, recordings["wall_small"])
    first = copied(workshop.system.world_model.pixel_encoder)
    stage = workshop.build(config)
    one_update(stage, config.fit, tmp_path)
    learned = workshop.system.world_model.pixel_encoder.state_dict()
    target = stage.objective.target_encoder.state_dict()
    expected = learned if decay == 0 else first
    assert all(torch.equal(target[name], expected[name]) for name in target)
    assert not all(torch.equal(learned[name], first[name]) for name in first)


@pytest.mark.parametrize("name", ["value_quasimetric_cpu", "value_euclidean_joint_cpu", "two_spaces_cpu"])
def test_more_goals_than_windows_are_held_out_can_be_asked_for(name, recordings, tmp_path):
    experiment = tiny(f"wall_small_{name}", batch=72, batch_goals=72)
    workshop = workshop_of(experiment, recordings["wall_small"])
    for config in experiment.stages:
        assert one_update(workshop.build(config), config.fit, tmp_path)


def test_a_scene_contrast_beside_a_target_encoder_is_refused(recordings):
    demo = find_recipe("wall_big_paths")
    moving = replace(demo.stages[0].regulariser, target_decay=(0.99, 1.0))
    stages = (replace(demo.stages[0], regulariser=moving), *demo.stages[1:])
    demo = replace(demo, stages=stages, encoder=replace(demo.encoder, image_size=SIDE))
    with pytest.raises(InputError, match=r"leave regulariser.target_decay out"):
        workshop_of(demo, recordings["wall_small"]).build(stages[0])


def test_a_scene_may_change_if_no_part_of_the_latent_is_held(recordings):
    demo = find_recipe("wall_big_paths")
    demo = replace(
        demo,
        encoder=replace(demo.encoder, image_size=SIDE),
        predictor=replace(demo.predictor, held=0),
    )
    stage = workshop_of(demo, recordings["wall_small"]).build(demo.stages[0])
    assert stage.objective.scene_width == demo.encoder.scene_width == 16
    nowhere = replace(demo, encoder=replace(demo.encoder, scene_width=0))
    with pytest.raises(InputError, match=r"no part of the latent is the scene; write --encoder.scene-width"):
        workshop_of(nowhere, recordings["wall_small"]).build(demo.stages[0])


def test_latents_of_a_body_are_those_of_picture_and_body(recordings):
    workshop = workshop_of(tiny("maze_value_euclidean_cpu"), recordings["maze"])
    episodes = recordings["maze"]
    latents = workshop.latents()
    some = slice(7, 12)
    with torch.no_grad():
        expected = workshop.system.world_model.encode(
            episodes.observations[some], episodes.proprioception[some]
        )
        still = workshop.system.world_model.encode(
            episodes.observations[some], torch.zeros_like(episodes.proprioception[some])
        )
    torch.testing.assert_close(latents[some], expected)
    assert (expected - still).abs().max() > 1e-3


def test_the_second_space_is_a_distance_of_the_first():
    torch.manual_seed(0)
    space = build_distance(find_recipe("wall_small_two_spaces_cpu").distance, 6)
    assert isinstance(space, SecondSpace)
    sources, goals = torch.randn(2, 3, 6), torch.randn(2, 4, 6)
    pairs = space.pairwise(sources, goals)
    torch.testing.assert_close(pairs, space(sources[:, :, None], goals[:, None]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pairs, space.pairwise(goals, sources).mT)
    assert space(sources, sources).max() < 1e-5


def test_what_is_felt_is_normalised_by_statistics_that_travel_with_the_weights(recordings):
    """A recording in other units of velocity trains the same latents; without a body nothing is added."""
    episodes = recordings["maze"]
    experiment = tiny("maze_value_euclidean_cpu")
    faster = replace(episodes, proprioception=3.6 * episodes.proprioception + 2)
    latents = []
    for recording in (episodes, faster):
        workshop = workshop_of(experiment, recording)
        fit_normalisation(workshop.system, recording, seed=0)
        felt = workshop.system.world_model.pixel_encoder.proprioception
        torch.testing.assert_close(felt.mean, recording.proprioception.mean(0))
        torch.testing.assert_close(felt.std, recording.proprioception.std(0))
        latents.append(workshop.latents())
    torch.testing.assert_close(latents[0], latents[1], atol=1e-5, rtol=1e-4)
    names = set(workshop.system.state_dict())
    added = {f"world_model.pixel_encoder.proprioception.{name}" for name in ("mean", "std")}
    assert added <= names
    blind = workshop_of(tiny("wall_small_value_euclidean_cpu"), recordings["wall_small"]).system
    assert not any("proprioception" in name for name in blind.state_dict())


def test_weights_from_before_velocities_were_normalised_are_refused_by_name(recordings, tmp_path):
    system = workshop_of(tiny("maze_value_euclidean_cpu"), recordings["maze"]).system
    old = {name: value for name, value in system.state_dict().items() if "proprioception" not in name}
    save_weights(tmp_path / "old.safetensors", old, {})
    with pytest.raises(InputError, match=r"another architecture:\n.*pixel_encoder.proprioception.mean"):
        load_weights(tmp_path / "old.safetensors", system)
