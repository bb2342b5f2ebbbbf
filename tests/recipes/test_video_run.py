"""Video pretraining from files to weights and back: the same seed gives the same bits, whatever happened."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from two_video_processes import EXPERIMENTS

from jepaplan.data import video_clips
from jepaplan.data.sprite_videos import write_sprite_videos
from jepaplan.objectives.masked_latents import MaskedLatents
from jepaplan.recipes import video_run
from jepaplan.recipes.run import TrainOptions, is_finished, load_run
from jepaplan.recipes.video_run import (
    VideoWorkshop,
    build_objective,
    load_video_run,
    train_video,
)
from jepaplan.recipes.video_sources import open_sources
from jepaplan.training.checkpoint import read_weights
from jepaplan.training.runs import RunDirectory
from jepaplan.types import InputError, SeedTree
from tiny_runs import tensor_hashes
from tiny_video_studies import SPRITES, UPDATES, growing_video_experiment, tiny_video_experiment

SCRIPT = Path(__file__).with_name("two_video_processes.py")


@pytest.fixture(autouse=True)
def _few_looks(monkeypatch):
    """Health and held-out metrics are judged by few clips while a test runs."""
    monkeypatch.setattr(video_run, "LOOKED_AT", 24)
    monkeypatch.setattr(video_run, "HELD_OUT_CLIPS", 8)


@pytest.fixture(scope="module")
def sprites(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos") / "sprites"
    write_sprite_videos(folder, 30, SPRITES, seed=5)
    return folder


@pytest.fixture(scope="module")
def trained(sprites, tmp_path_factory):
    """Trains one of the experiments without interruption; the same call again finds the run."""
    home = tmp_path_factory.mktemp("runs")

    def run(name):
        if not (home / name).exists():
            train_video(EXPERIMENTS[name], home / name, TrainOptions(data=sprites))
        return home / name

    return run


@pytest.fixture
def weighted(trained):
    return trained("weighted")


def rows_of(run):
    return [
        {name: value for name, value in row.items() if name != "seconds"}
        for row in RunDirectory(run).read_metrics()
    ]


def broken_list(folder, sprites, broken=3, sound=30):
    """A list of some of the sprites and of some files that are no videos."""
    folder.mkdir(exist_ok=True)
    lines = [str(path) for path in sorted((sprites / "clips").glob("*.mp4"))[:sound]]
    for number in range(broken):
        path = folder / f"broken{number}.mp4"
        path.write_bytes(b"no video at all" * 20)
        lines.insert(4 * number, str(path))
    listed = folder / "list.csv"
    listed.write_text("\n".join(lines) + "\n")
    return listed


def test_something_is_learned_and_told(tiny_video_run):
    rows = rows_of(tiny_video_run)
    assert [row["update"] for row in rows] == list(range(1, UPDATES + 1))
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in rows)
    assert {"held_out/loss", "held_out/masked_over_constant", "health/effective_rank"} <= set(rows[-1])
    assert 0 <= rows[-1]["health/probe_accuracy"] <= 1
    for mask in (0, 1):
        assert 0 < rows[0][f"context_ratio_{mask}"] < 1
        assert 0 < rows[0][f"target_ratio_{mask}"] < 1
    loaded, untrained = load_video_run(tiny_video_run), build_objective(tiny_video_experiment())
    for part in ("encoder", "predictor", "target"):
        learned, began = (
            torch.cat([p.flatten() for p in getattr(one, part).parameters()])
            for one in (loaded.objective, untrained)
        )
        assert not torch.equal(learned, began), part
    assert loaded.encoder is loaded.objective.target.average
    assert not loaded.objective.training
    assert (tiny_video_run / "videos" / "motion.csv").exists()


def test_same_seed_same_tensors_and_another_seed_others(weighted, sprites, tmp_path):
    torch.manual_seed(17)  # nothing may depend on the global generator
    data = TrainOptions(data=sprites)
    train_video(EXPERIMENTS["weighted"], tmp_path / "again", data)
    assert tensor_hashes(tmp_path / "again") == tensor_hashes(weighted)
    assert rows_of(tmp_path / "again") == rows_of(weighted)
    train_video(replace(EXPERIMENTS["weighted"], seed=1), tmp_path / "other", data)
    assert tensor_hashes(tmp_path / "other") != tensor_hashes(weighted)


def test_the_cache_changes_nothing(weighted, sprites, tmp_path):
    train_video(replace(EXPERIMENTS["weighted"], cache=False), tmp_path / "run", TrainOptions(data=sprites))
    assert tensor_hashes(tmp_path / "run") == tensor_hashes(weighted)
    assert not (tmp_path / "run" / "cache").exists()
    assert (weighted / "cache").exists()


@pytest.mark.parametrize(
    "name, phase, update",
    [("weighted", "pretraining", 3), pytest.param("growing", "cooldown", 1, marks=pytest.mark.slow)],
)
def test_a_run_interrupted_anywhere_ends_with_the_same_tensors(
    trained, sprites, tmp_path, name, phase, update
):
    def interrupt(progress):
        if (progress.stage, progress.update) == (phase, update):
            raise KeyboardInterrupt

    experiment, path = EXPERIMENTS[name], tmp_path / "interrupted"
    with pytest.raises(KeyboardInterrupt):
        train_video(experiment, path, TrainOptions(data=sprites, on_progress=interrupt))
    assert not is_finished(path, experiment)
    with pytest.raises(
        InputError, match=rf"stage '{phase}' is still to be trained.*jepaplan train video_nano"
    ):
        load_video_run(path)
    results = train_video(experiment, path, TrainOptions(data=sprites))
    assert results[-1].resumed_from == update - 1
    assert tensor_hashes(path) == tensor_hashes(trained(name))
    assert rows_of(path) == rows_of(trained(name))
    assert is_finished(path, experiment)


def test_a_second_phase_trains_on_with_longer_and_larger_clips(sprites, monkeypatch, tmp_path):
    trained = []
    real = MaskedLatents.forward

    def forward(self, batch):
        encoder = torch.cat([parameter.detach().flatten() for parameter in self.encoder.parameters()])
        trained.append((tuple(batch.clips.shape[1:]), encoder))
        return real(self, batch)

    monkeypatch.setattr(MaskedLatents, "forward", forward)
    train_video(EXPERIMENTS["growing"], tmp_path / "run", TrainOptions(data=sprites))
    first, second = (
        [row for row in rows_of(tmp_path / "run") if row["stage"] == name]
        for name in ("pretraining", "cooldown")
    )
    assert (first[-1]["frames"], second[-1]["frames"]) == (UPDATES * 4 * 4, UPDATES * 4 * 8)
    assert load_video_run(tmp_path / "run").frames == 8
    shapes = [shape for shape, _ in trained]
    turn = shapes.index((8, 3, 48, 48))
    assert set(shapes[:turn]) == {(4, 3, 32, 32)}
    assert set(shapes[turn:]) == {(8, 3, 48, 48)}
    # From the last held-out clips of the first phase to the first batch of the second nothing is reset.
    assert torch.equal(trained[turn][1], trained[turn - 1][1])
    assert not torch.equal(trained[turn][1], trained[0][1])


def test_a_finished_run_is_left_alone_and_others_are_refused(weighted, sprites, tmp_path):
    path = shutil.copytree(weighted, tmp_path / "copy")
    before = (path / "weights.safetensors").read_bytes()
    (result,) = train_video(EXPERIMENTS["weighted"], path, TrainOptions(data=sprites))
    assert result.resumed_from == UPDATES
    assert (path / "weights.safetensors").read_bytes() == before
    with pytest.raises(InputError, match=r"configuration.held_out: 0.2 -> 0.3"):
        train_video(replace(EXPERIMENTS["weighted"], held_out=0.3), path, TrainOptions(data=sprites))
    fewer = tmp_path / "fewer"
    write_sprite_videos(fewer, 20, SPRITES, seed=5)
    with pytest.raises(InputError, match="data: "):
        train_video(EXPERIMENTS["weighted"], path, TrainOptions(data=fewer))
    assert not is_finished(path, replace(EXPERIMENTS["weighted"], equalise="first"))
    with pytest.raises(InputError, match="`jepaplan probe RUN --data VIDEOS`"):
        load_run(path)


def test_weights_of_another_architecture_are_refused_by_name(weighted, tmp_path):
    path = shutil.copytree(weighted, tmp_path / "copy")
    card = json.loads((path / "card.json").read_text())
    card["configuration"]["predictor"]["width"] = 32
    (path / "card.json").write_text(json.dumps(card))
    with pytest.raises(InputError, match=r"another architecture:\n  predictor\."):
        load_video_run(path)


@pytest.mark.parametrize("cache", [False, True])
def test_unreadable_videos_are_replaced_and_named(sprites, tmp_path, cache):
    listed, told = broken_list(tmp_path / "list", sprites), []
    experiment = tiny_video_experiment(cache=cache, probed=None)
    options = TrainOptions(data=listed, report=lambda what, done, total, note="": told.append(what))
    (result,) = train_video(experiment, tmp_path / "run", options)
    assert result.updates == UPDATES
    words = [what for what in told if "could not be read" in what]
    assert len(words) == 1
    assert "videos could not be read and were replaced by others" in words[0]
    named = {name for name in ("broken0.mp4", "broken1.mp4", "broken2.mp4") if name in words[0]}
    assert named
    assert words[0].startswith(f"{len(named)} ")


def test_only_unreadable_videos_are_refused_in_words(tmp_path):
    for number in range(8):
        (tmp_path / f"{number}.mp4").write_bytes(b"nothing")
    with pytest.raises(InputError, match="none of 20 files drawn for one item could be read"):
        train_video(tiny_video_experiment(cache=False), tmp_path / "run", TrainOptions(data=tmp_path))


@pytest.mark.parametrize("order", ["weighted", "shuffled"])
def test_held_out_files_are_never_trained_on(sprites, tmp_path, monkeypatch, order):
    """Not even as replacements of unreadable ones."""
    opened = []
    real = video_clips.open_video
    monkeypatch.setattr(
        video_clips, "open_video", lambda path, *more: opened.append(path) or real(path, *more)
    )
    experiment = tiny_video_experiment(order=order, cache=False)
    sources = open_sources(broken_list(tmp_path / "list", sprites, broken=3, sound=12))
    workshop = VideoWorkshop(experiment, build_objective(experiment), sources, RunDirectory(tmp_path / "run"))
    (learned,), (kept,) = workshop.learned.sets, workshop.kept.sets
    assert set(learned.paths) | set(kept.paths) == set(sources.sets[0].paths)
    assert not set(learned.paths) & set(kept.paths)
    assert len(kept) == round(0.2 * len(sources.sets[0]))
    stage = workshop.stage(experiment.phases[0])
    assert set(opened) <= set(kept.paths)  # what is held out was loaded, nothing else
    opened.clear()
    for update in range(12):
        stage.before_update(update)
        stage.load(stage.sample(SeedTree(0).torch("batch", update), 8))
    readable = {path for path in learned.paths if not path.name.startswith("broken")}
    assert readable <= set(opened) <= set(learned.paths)


def test_shuffled_order_sees_every_file_once_an_epoch(sprites, tmp_path):
    experiment = tiny_video_experiment(order="shuffled", cache=False)
    objective, run = build_objective(experiment), RunDirectory(tmp_path / "run")
    workshop = VideoWorkshop(experiment, objective, open_sources(sprites), run)
    stage = workshop.stage(experiment.phases[0])
    files = []
    for update in range(12):  # 24 files, 8 an update: four epochs
        stage.before_update(update)
        files.append(stage.sample(torch.Generator().manual_seed(update), 8).clips.file)
    epochs = torch.cat(files).view(4, 24)
    assert torch.equal(epochs.sort(dim=1).values, torch.arange(24).expand(4, 24))
    assert not torch.equal(epochs[0], epochs[1])


def test_mixtures_weigh_sets_and_count_paths_from_their_file(sprites, tmp_path):
    write_sprite_videos(tmp_path / "few", 6, SPRITES, seed=6)
    broken_list(tmp_path / "list", sprites, broken=0)
    mixture = tmp_path / "mixture.json"
    entries = [{"videos": "list/list.csv", "weight": 0.25}, {"videos": "few", "weight": 0.75}]
    mixture.write_text(json.dumps(entries))
    sources = open_sources(mixture)
    assert [len(one) for one in sources.sets] == [30, 6]
    assert sources.weights == (0.25, 0.75)
    experiment = tiny_video_experiment(updates=2, probed=None, cache=False)
    workshop = VideoWorkshop(
        experiment, build_objective(experiment), sources, RunDirectory(tmp_path / "none")
    )
    stage = workshop.stage(experiment.phases[0])
    drawn = stage.sample(torch.Generator().manual_seed(0), 4000).clips.file
    assert abs(float((drawn >= 24).float().mean()) - 0.75) < 0.03  # 24 of the list are learned from
    (result,) = train_video(experiment, tmp_path / "run", TrainOptions(data=mixture))
    assert result.updates == 2


def test_wrong_data_is_refused_before_a_run_begins(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.json").write_text("no json")
    (tmp_path / "list.json").write_text('["kinetics.csv"]')
    (tmp_path / "gone.csv").write_text("gone.mp4 3\n")
    for name, words in (
        ("nowhere", "there is no such file"),
        ("empty", "holds no video files"),
        ("text.json", "text.json is no mixture of videos"),
        ("list.json", 'expected JSON such as [{"videos": "kinetics.csv", "weight": 0.2}'),
        ("gone.csv", "line 1: there is no file"),
    ):
        with pytest.raises(InputError) as refused:
            train_video(tiny_video_experiment(), tmp_path / "run", TrainOptions(data=tmp_path / name))
        assert words in str(refused.value)
    assert not (tmp_path / "run" / "card.json").exists()


def test_a_collapse_is_said_while_training_and_in_the_card(sprites, tmp_path, monkeypatch):
    looks, said = [], []
    real = MaskedLatents.encode

    def encode(self, clips):
        looks.append(1)
        tokens = real(self, clips)
        return tokens if len(looks) <= 2 else torch.ones_like(tokens)

    monkeypatch.setattr(MaskedLatents, "encode", encode)
    options = TrainOptions(data=sprites, on_progress=lambda progress: said.extend(progress.warnings))
    (phase,) = tiny_video_experiment().phases
    twice = tiny_video_experiment(phases=(replace(phase, fit=replace(phase.fit, health_every=2)),))
    (result,) = train_video(twice, tmp_path / "run", options)
    card = RunDirectory(tmp_path / "run").read_card()["stages"]["pretraining"]
    for words in (result.warnings, card["warnings"], said):
        assert any("the latent has collapsed" in one for one in words)
        assert any("standard deviation (median over its dimensions) fell to 0" in one for one in words)


@pytest.mark.slow
def test_two_processes_train_what_one_would(sprites, tmp_path):
    for world in (1, 2):
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        answer = subprocess.run(
            [sys.executable, *(torchrun if world > 1 else []), str(SCRIPT), str(sprites), str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert answer.returncode == 0, answer.stderr[-3000:]
    for name in EXPERIMENTS:
        one, two = tmp_path / "1" / name, tmp_path / "2" / name
        for row, other in zip(rows_of(one), rows_of(two), strict=True):
            for metric in ("loss", "masked_0", "masked_1", "gradient_norm"):
                assert row[metric] == pytest.approx(other[metric], abs=1e-5), (row["update"], metric)
        assert rows_of(one)[-1]["held_out/loss"] == pytest.approx(rows_of(two)[-1]["held_out/loss"], abs=1e-5)
        expected = read_weights(one / "weights.safetensors").tensors
        tensors = read_weights(two / "weights.safetensors").tensors
        assert set(expected) == set(tensors)
        for key, value in expected.items():
            torch.testing.assert_close(tensors[key], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [None, 40])
@pytest.mark.parametrize("cache", [False, True])
def test_videos_larger_than_clips_are_scaled_whatever_is_kept(tmp_path, cache, size):
    write_sprite_videos(tmp_path / "large", 12, replace(SPRITES, size=64), seed=5)
    experiment = growing_video_experiment(cache=cache, probed=None)
    clips = replace(experiment.clips, size=size)
    experiment = replace(experiment, clips=clips)
    sources, run = open_sources(tmp_path / "large"), RunDirectory(tmp_path / "run")
    workshop = VideoWorkshop(experiment, build_objective(experiment), sources, run)
    for phase, side in zip(experiment.phases, (32, 48), strict=True):
        stage = workshop.stage(phase)
        batch = stage.load(stage.sample(torch.Generator().manual_seed(0), 2))
        assert batch.clips.shape[-2:] == (side, side)
        assert torch.isfinite(torch.tensor(torch.no_grad()(stage.evaluate)()["held_out/loss"]))


def test_a_predictor_that_is_entered_by_another_door_is_no_unit_of_its_own(sprites, tmp_path):
    plain = tiny_video_experiment()
    dense = replace(plain, objective=replace(plain.objective, context_weight=0.5))
    for experiment, guarded in ((plain, True), (dense, False)):
        objective = build_objective(experiment)
        workshop = VideoWorkshop(experiment, objective, open_sources(sprites), RunDirectory(tmp_path))
        stage = workshop.stage(experiment.phases[0])
        assert stage.shard_units is not None
        units = stage.shard_units()
        assert objective.encoder in units
        assert (objective.predictor in units) == guarded


def test_the_target_goes_on_in_a_second_phase_from_where_it_was(sprites, tmp_path, monkeypatch):
    updates = []
    monkeypatch.setattr(MaskedLatents, "after_update", lambda self, update: updates.append(update))
    train_video(EXPERIMENTS["growing"], tmp_path / "run", TrainOptions(data=sprites))
    assert updates == list(range(1, 2 * UPDATES + 1))
