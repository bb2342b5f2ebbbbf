"""Ours on the paper's recordings: trained small, it resumes to the bit, plans, counts and refuses."""

from dataclasses import replace

import pytest
import torch

from jepaplan.envs.worlds import find_world
from jepaplan.evaluation.tasks import load_instances
from jepaplan.models.local_predictor import LocalPredictorConfig
from jepaplan.models.predictors import PredictorConfig
from jepaplan.objectives.imagined_ways import ImaginedWays
from jepaplan.recipes.catalogue import find_recipe
from jepaplan.recipes.experiment import DistanceConfig, MovingPointStage
from jepaplan.recipes.local import LOCAL_RECIPES
from jepaplan.recipes.methods import EvaluationPlan, evaluate_method, methods_of
from jepaplan.recipes.run import TrainOptions, load_run, train
from jepaplan.recipes.system import Interface, baseline_distance, build_system
from jepaplan.types import InputError
from tiny_runs import tensor_hashes, tiny_experiment

FEW_WAYS = {"directions": 4, "reach": 2, "most_states": 50, "belief": 10.0}


def tiny(name, **changes):
    made = tiny_experiment(name, **changes)
    ways = replace(made.distance.ways, **FEW_WAYS)
    return replace(made, distance=replace(made.distance, ways=ways))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    for name in ("wall_big_ways", "maze_ways"):
        train(tiny(name), folder / name)
    return folder


@pytest.mark.parametrize("name", sorted(LOCAL_RECIPES))
def test_it_learns_from_what_the_paper_learns_from(name):
    experiment = find_recipe(name)
    assert experiment.recording.trajectories == 1000
    assert experiment.recording.states == (101 if name == "maze_ways" else 64)
    assert set(experiment.mirrors) == {"left-right", "upside-down"}
    assert experiment.instances.endswith("-final")
    assert experiment.learns_value


@pytest.mark.parametrize("name", ["wall_big_ways", "maze_ways"])
def test_a_run_plans_from_its_pictures_and_counts_the_ways_it_imagines(runs, name):
    run = load_run(runs / name)
    world = find_world(run.experiment.recording.world)
    assert isinstance(run.system.distance, ImaginedWays)
    assert not [key for key in run.system.state_dict() if key.startswith("distance")]
    ours = methods_of(run, world, with_references=False)[0]
    assert "ways imagined" in ours.note
    plan = EvaluationPlan(
        instances=load_instances(f"{world.name}-tuning").subset(2), keep_decisions=False, seed=0
    )
    outcomes = evaluate_method(world, ours, plan, (0, 1))
    alone = run.experiment.planner.samples * run.experiment.planner.horizon + run.experiment.planner.horizon
    assert outcomes.evaluations_per_step > alone


def test_a_run_that_was_stopped_ends_with_the_same_weights(runs, tmp_path):
    def stopped_in(stage):
        def stop(progress):
            if progress.stage == stage:
                raise KeyboardInterrupt

        return TrainOptions(on_progress=stop)

    for stage in ("world_model", "predictor"):
        with pytest.raises(KeyboardInterrupt):
            train(tiny("maze_ways"), tmp_path / "stopped", stopped_in(stage))
    train(tiny("maze_ways"), tmp_path / "stopped")
    assert tensor_hashes(tmp_path / "stopped") == tensor_hashes(runs / "maze_ways")


def test_the_predictor_alone_can_be_kept_from_maps_of_other_frames(runs, tmp_path):
    experiment = tiny("wall_big_ways")
    first, second = experiment.stages
    train(replace(experiment, stages=(first, replace(second, companion_maps=False))), tmp_path / "own")
    own, both = (load_run(path).system.state_dict() for path in (tmp_path / "own", runs / "wall_big_ways"))
    changed = {name for name in own if not torch.equal(own[name], both[name])}
    assert any(name.startswith("world_model.predictor") for name in changed)
    assert not any("encoder" in name for name in changed)


def test_the_baseline_compares_what_moves_and_not_the_map():
    experiment = find_recipe("wall_big_ways")
    distance, width = baseline_distance(experiment), experiment.encoder.map_width
    latents = torch.randn(2, 5, width + 2)
    latents[1, :, width:] = latents[0, :, width:]
    assert torch.equal(distance(*latents), torch.zeros(5))
    latents[1, :, width:] += 2
    assert torch.allclose(distance(*latents), torch.tensor(4.0))


def test_ways_are_as_fine_as_the_search_asks(runs):
    run = load_run(runs / "wall_big_ways")
    system, cost = run.system, run.experiment.cost
    finer = replace(run.experiment.distance.ways, directions=8)
    found = system.steps_to_go(cost, finer)
    assert found.config == finer
    assert system.steps_to_go(cost) is system.distance is system.steps_to_go(cost, system.distance.config)


def test_a_system_can_be_copied_and_its_ways_follow(runs):
    import copy

    system = load_run(runs / "wall_big_ways").system
    twin = copy.deepcopy(system)
    assert twin.distance._models[0] is twin.world_model
    latent = torch.randn(1, system.world_model.pixel_encoder.encoder.latent_width)
    assert torch.equal(twin.distance(latent, latent), system.distance(latent, latent))


def test_experiments_that_do_not_fit_together_are_refused():
    experiment = find_recipe("wall_big_ways")
    with pytest.raises(InputError, match="knows where the thing is; write predictor=LocalPredictorConfig"):
        replace(experiment, predictor=PredictorConfig())
    blind = replace(experiment.stages[1], inverse_dynamics=False)
    with pytest.raises(InputError, match=r"write --stages\.1\.inverse-dynamics"):
        replace(experiment, stages=(experiment.stages[0], blind))
    demo = find_recipe("wall_big_paths")
    interface = Interface(image=(2, 64, 64), action_dim=2)
    with pytest.raises(
        InputError, match="looks around on the map of a scene map encoder; this encoder is a Key"
    ):
        build_system(replace(demo, predictor=LocalPredictorConfig()), interface)
    with pytest.raises(InputError, match="does not know where things are"):
        build_system(demo, interface).world_model.places(torch.zeros(1, 48))
    with pytest.raises(InputError, match=r"--encoder\.image-channels 3"):
        build_system(experiment, Interface(image=(3, 64, 64), action_dim=2))


def test_the_moving_point_stage_wants_its_encoder(tmp_path):
    demo = tiny_experiment("wall_big_paths")
    stage = MovingPointStage(fit=demo.stages[0].fit, steps=3)
    with pytest.raises(
        InputError, match="trains an encoder of a map and a point; this one is a KeypointConfig"
    ):
        train(
            replace(demo, stages=(stage, *demo.stages[1:2]), distance=DistanceConfig(kind="euclidean")),
            tmp_path / "r",
        )
