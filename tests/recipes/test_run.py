"""From a recipe to weights and back: the same seed gives the same bits, whatever happened in between."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from jepaplan.data.episodes import EpisodeWriter, open_episodes
from jepaplan.data.mirrors import mirrored
from jepaplan.models.keypoint_encoder import KeypointConfig
from jepaplan.recipes.materials import Materials
from jepaplan.recipes.run import TrainOptions, is_finished, load_run, train
from jepaplan.training.checkpoint import read_weights, save_weights
from jepaplan.training.runs import RunDirectory
from jepaplan.types import InputError
from tiny_runs import UPDATES, tensor_hashes, tiny_experiment


@pytest.fixture
def copied_run(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / "copy")


def rows_of(run, *ignored):
    kept = [
        {name: value for name, value in row.items() if name not in ("seconds", *ignored)}
        for row in RunDirectory(run).read_metrics()
    ]
    return kept


def test_all_stages_learn_something(tiny_run):
    metrics = rows_of(tiny_run)
    assert [row["stage"] for row in metrics if row["update"] == UPDATES] == [
        "world_model",
        "predictor",
        "imagined_value",
    ]
    assert metrics[-1]["far"] > 0  # some imagined states were joined by a way
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in metrics)
    loaded = load_run(tiny_run)
    # a planner's gradients go to its actions, and nobody pays for those of weights
    assert not any(parameter.requires_grad for parameter in loaded.system.parameters())
    assert set(loaded.seconds) == {"world_model", "predictor", "imagined_value"}
    assert not loaded.system.training


def test_same_seed_same_tensors_and_another_seed_others(tiny_run, tmp_path):
    train(tiny_experiment(), tmp_path / "again")
    assert tensor_hashes(tmp_path / "again") == tensor_hashes(tiny_run)
    assert rows_of(tmp_path / "again") == rows_of(tiny_run)
    data = TrainOptions(data=tiny_run / "data.h5")
    train(tiny_experiment(seed=1), tmp_path / "other", data)
    assert tensor_hashes(tmp_path / "other") != tensor_hashes(tiny_run)


@pytest.mark.parametrize("stage, update", [("world_model", 3), ("predictor", 2), ("imagined_value", 1)])
def test_a_run_interrupted_anywhere_ends_with_the_same_tensors(tiny_run, tmp_path, stage, update):
    def interrupt(progress):
        if (progress.stage, progress.update) == (stage, update):
            raise KeyboardInterrupt

    path = tmp_path / "interrupted"
    with pytest.raises(KeyboardInterrupt):
        train(tiny_experiment(), path, TrainOptions(on_progress=interrupt))
    with pytest.raises(InputError, match=rf"is not finished: stage '{stage}' is still to be trained"):
        load_run(path)
    results = train(tiny_experiment(), path)
    assert max(result.resumed_from for result in results if result.stage == stage) == update - 1
    assert tensor_hashes(path) == tensor_hashes(tiny_run)
    assert rows_of(path) == rows_of(tiny_run)


def test_a_finished_run_is_left_alone(copied_run):
    before = (copied_run / "weights.safetensors").read_bytes()
    results = train(tiny_experiment(), copied_run)
    assert all(result.resumed_from == UPDATES for result in results)
    assert (copied_run / "weights.safetensors").read_bytes() == before


def test_a_run_begun_with_another_recipe_is_refused_with_the_difference(copied_run):
    changed = replace(tiny_experiment(), held_out=0.2)
    with pytest.raises(InputError, match=r"configuration.held_out: 0.05 -> 0.2"):
        train(changed, copied_run)


def test_a_run_from_before_a_field_existed_is_continued(copied_run):
    card = json.loads(RunDirectory(copied_run).card.read_text())
    card["configuration"]["description"] = "in other words"
    del card["configuration"]["stages"][0]["fit"]["accumulate"]
    RunDirectory(copied_run).card.write_text(json.dumps(card))
    before = tensor_hashes(copied_run)
    experiment = tiny_experiment()
    assert is_finished(copied_run, experiment)
    train(experiment, copied_run)
    assert tensor_hashes(copied_run) == before
    assert not is_finished(copied_run, replace(experiment, held_out=0.3))


def test_flipped_bytes_and_other_architectures_are_refused_by_name(copied_run):
    weights = copied_run / "weights.safetensors"
    whole = weights.read_bytes()
    for place in (12, len(whole) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        weights.write_bytes(bytes(damaged))
        with pytest.raises(InputError, match=r"weights.safetensors is refused"):
            load_run(copied_run)
    weights.write_bytes(whole[:-7])
    with pytest.raises(InputError, match=r"weights.safetensors is refused"):
        load_run(copied_run)

    weights.write_bytes(whole)
    card = json.loads((copied_run / "card.json").read_text())
    card["configuration"]["predictor"]["hidden"] = 32
    (copied_run / "card.json").write_text(json.dumps(card))
    with pytest.raises(InputError, match=r"another architecture:\n  world_model.predictor"):
        load_run(copied_run)


def test_weights_of_something_else_are_refused_by_name(copied_run):
    save_weights(copied_run / "weights.safetensors", {"strange": torch.zeros(3)}, {})
    with pytest.raises(InputError, match=r"weights.safetensors was written by another architecture"):
        load_run(copied_run)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"Is .* the folder of a run"):
        load_run(tmp_path)
    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(InputError, match=r"names a record None|does not describe an experiment"):
        load_run(tmp_path)


def test_wrong_image_sizes_are_refused_before_a_run_begins(tmp_path, tiny_data):
    wrong = tiny_experiment(encoder=KeypointConfig(image_size=32, scene_width=16, state_width=32))
    path = tmp_path / "run"
    with pytest.raises(InputError, match=r"2 channels, 64 x 64.*--encoder.image-size 64"):
        train(wrong, path, TrainOptions(data=tiny_data))
    assert not (path / "card.json").exists()  # so that the mended line is not refused as another run
    train(tiny_experiment(updates=1), path, TrainOptions(data=tiny_data))


def test_recordings_with_other_actions_train_but_are_not_planned_with(tmp_path):
    from jepaplan.evaluation.tasks import load_instances
    from jepaplan.recipes.study import StudyOptions, study

    data = tmp_path / "wide.h5"
    generator = torch.Generator().manual_seed(0)
    with EpisodeWriter(data, {"world": "test", "seed": 0}) as writer:
        for _ in range(6):
            frames = torch.randint(0, 255, (9, 2, 64, 64), generator=generator, dtype=torch.uint8)
            writer.append(frames, torch.randn(8, 3, generator=generator))
    path = tmp_path / "run"
    train(tiny_experiment(updates=1), path, TrainOptions(data=data))
    with pytest.raises(InputError, match="trained on actions of 3 numbers; WallBig takes 2"):
        study(load_run(path), load_instances("WallBig-demo").subset(2), StudyOptions())


@pytest.mark.parametrize(
    "name",
    [
        "wall_big_prediction_vcreg_cpu",
        "wall_big_value_euclidean_cpu",
        "wall_big_value_quasimetric_cpu",
        "wall_big_value_euclidean_joint_cpu",
        "wall_big_value_quasimetric_joint_cpu",
    ],
)
def test_the_methods_of_the_paper_train_what_their_stages_say(name, tmp_path, tiny_data):
    recipe, path = tiny_experiment(name, updates=1), tmp_path / "run"
    results = train(recipe, path, TrainOptions(data=tiny_data))
    assert [result.stage for result in results] == [stage.name for stage in recipe.stages]
    assert all(result.metrics["gradient_norm"] > 0 for result in results)
    assert load_run(path).experiment == recipe


def test_later_stages_leave_the_encoder_alone(tiny_run):
    """The encoder of the finished run is that of its first stage; the predictor learned on."""
    states = RunDirectory(tiny_run).state("world_model")
    first = read_weights(max(states.glob("0*.safetensors"))).tensors
    final = read_weights(tiny_run / "weights.safetensors").tensors

    def same(name):
        (before,) = (value for key, value in first.items() if key.endswith(f"world_model.{name}"))
        return torch.equal(before, final[f"world_model.{name}"])

    assert same("pixel_encoder.encoder.body.0.weight")
    assert same("pixel_encoder.pixels.mean")
    assert not same("predictor.first.weight")


LAUNCHED = """
import sys
import torch
torch.set_num_threads(1)
from jepaplan.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(tmp_path, tiny_data):
    script = tmp_path / "launched.py"
    script.write_text(LAUNCHED)
    options = ["train", "wall_big_paths", "--data", str(tiny_data), "--device", "cpu", "--json"]
    for number in range(3):
        fit = f"--stages.{number}.fit"
        options += [f"{fit}.updates", "3", f"{fit}.batch", "8", f"{fit}.log-every", "1"]
        # Adam turns rounding into steps of its own where a gradient is nearly zero: small steps, then.
        options += [f"{fit}.learning-rate", "1e-4"]
        options += [f"--stages.{number}.steps", "3"] if number < 2 else []
    options += ["--stages.2.scenes", "2", "--stages.2.imagination.states", "16"]
    options += ["--stages.2.imagination.belief", "10"]
    said = {}
    for world in (1, 2):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--"]
        command = [sys.executable, *(launcher if world == 2 else []), str(script), *options]
        done = subprocess.run(
            [*command, "--run", str(tmp_path / str(world))],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        said[world] = json.loads(done.stdout)  # of the first process only
    one, two = (RunDirectory(tmp_path / str(world)).read_metrics() for world in (1, 2))
    assert len(one) == len(two) == 9
    for row, other in zip(one, two, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5, rel=0), (row, other)
        assert row["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-3), (row, other)
    assert [stage["stage"] for stage in said[1]] == [stage["stage"] for stage in said[2]]


def test_images_of_a_recording_are_held_out_together(tmp_path, tiny_data):
    """However many there are: a mirror image of what is trained on would be no test."""
    recipe = replace(tiny_experiment(), mirrors=("left-right", "upside-down"), held_out=0.3)
    train(recipe, tmp_path / "run", TrainOptions(data=tiny_data))
    system = load_run(tmp_path / "run").system
    episodes = mirrored(open_episodes(tiny_data), recipe.mirrors)
    for held_out in (0.0, 0.05, 0.1, 0.3, 0.5, 0.9):
        trained = Materials(replace(recipe, held_out=held_out), system, episodes).trained_episodes
        assert trained % 4 == 0
        assert trained > 0
