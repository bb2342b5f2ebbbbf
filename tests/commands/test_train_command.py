"""`jepaplan train`: from the command line to a finished run, and nothing beside it."""

import json

import torch

from jepaplan.cli import main
from tiny_runs import tensor_hashes

FITS = [
    word
    for number in range(3)
    for word in (f"--stages.{number}.fit.updates", "2", f"--stages.{number}.fit.batch", "4")
]
TINY = [
    *FITS,
    *("--stages.0.steps", "3", "--stages.1.steps", "3", "--stages.2.scenes", "2"),
    *("--stages.2.imagination.states", "16", "--stages.2.imagination.walkers", "4"),
    *("--device", "cpu"),
]


def test_trains_the_stages_and_says_what_comes_next(tmp_path, tiny_data, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "a [dim] run"
    before = set(tmp_path.rglob("*"))
    assert main(["train", "wall_big_paths", "--run", str(run), "--data", str(tiny_data), *TINY]) == 0
    said = capsys.readouterr()
    assert f"`jepaplan evaluate {run}` comes next" in said.out
    assert "imagined_value: 2 updates" in said.err
    assert all(run in path.parents or path == run for path in set(tmp_path.rglob("*")) - before)

    again = ["train", "wall_big_paths", "--run", str(run), "--data", str(tiny_data), *TINY, "--json"]
    hashes = tensor_hashes(run)
    assert main(again) == 0
    stages = json.loads(capsys.readouterr().out)
    assert [stage["stage"] for stage in stages] == ["world_model", "predictor", "imagined_value"]
    assert all(stage["updates"] == 2 for stage in stages)
    assert tensor_hashes(run) == hashes


def test_threads_are_an_option(tmp_path, tiny_data, capsys):
    threads = torch.get_num_threads()
    try:
        command = ["train", "wall_big_paths", "--run", str(tmp_path / "run"), "--data", str(tiny_data), *TINY]
        assert main([*command, "--threads", "1"]) == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    capsys.readouterr()


def test_without_a_recipe_lists_them(capsys):
    assert main(["train"]) == 0
    shown = capsys.readouterr().out
    assert "jepaplan train RECIPE --run DIRECTORY [options]" in shown
    assert "wall_small_value_quasimetric_cpu" in shown


def test_unknown_recipes_and_options_suggest_the_nearest(tmp_path, capsys):
    run = ["--run", str(tmp_path / "run")]
    assert main(["train", "wall_big_pths", *run]) == 2
    assert "Did you mean wall_big_paths" in capsys.readouterr().err
    assert main(["train", "wall_big_paths", *run, "--planner.sampels", "3"]) == 2
    assert "--planner.samples" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_wrong_input_is_refused_in_words(tmp_path, tiny_data, capsys):
    def refused(*options):
        code = main(["train", "wall_big_paths", "--run", str(tmp_path / "run"), *options])
        return code, capsys.readouterr().err

    code, said = refused("--data", str(tiny_data), "--encoder.image-size", "32")
    assert (code, "--encoder.image-size 64" in said) == (2, True)
    code, said = refused("--data", str(tmp_path / "none.h5"))
    assert (code, "none.h5: there is no such file" in said) == (2, True)
    code, said = refused("--data", str(tiny_data), "--stages.0.steps", "40")
    assert (code, "windows of 40 actions do not fit" in said) == (2, True)
    code, said = refused("--data", str(tiny_data), "--device", "abacus")
    assert (code, "--device abacus cannot be used here" in said) == (2, True)
    code, said = refused("--data", str(tiny_data), "--stages.0.fit.updates", "0")
    assert code == 2
    assert "updates counts updates or items, so it is at least 1; got 0" in " ".join(said.split())


TINY_VIDEO = [
    *("--phases.0.fit.updates", "2", "--phases.0.fit.batch", "2", "--generated.count", "24"),
    *("--encoder.frames", "4", "--encoder.width", "48", "--encoder.depth", "1", "--encoder.heads", "2"),
    *("--encoder.patch", "16", "--predictor.width", "24", "--predictor.depth", "1"),
    *("--predictor.heads", "2", "--device", "cpu"),
]


def test_a_video_recipe_lists_its_fields(capsys):
    assert main(["train", "video-nano", "--help"]) == 0
    shown = capsys.readouterr().out
    for field in (
        "--encoder.width",
        "--predictor.depth",
        "--masks.0.spatial-scale",
        "--phases.0.fit.updates",
        "--objective.ema",
        "--generated.count",
        "--clips.fps",
        "--held-out",
        "--data",
    ):
        assert field in shown
    assert main(["train"]) == 0
    assert "video_nano" in capsys.readouterr().out


def test_trains_a_video_encoder_and_says_what_comes_next(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", "video-nano", "--run", str(run), *TINY_VIDEO]) == 0
    said = capsys.readouterr()
    assert f"`jepaplan probe {run}` comes next" in said.out
    assert "writing videos: 24/24" in said.err
    assert "decoding videos: 24/24" in said.err
    assert "pretraining: 2 updates" in said.err
    hashes = tensor_hashes(run)
    again = ["train", "video_nano", "--run", str(run), *TINY_VIDEO, "--json"]
    assert main(again) == 0
    (stage,) = json.loads(capsys.readouterr().out)
    assert (stage["stage"], stage["updates"]) == ("pretraining", 2)
    assert tensor_hashes(run) == hashes


def test_wrong_input_for_video_is_refused_in_words(tmp_path, capsys):
    def refused(*options):
        code = main(["train", "video_nano", "--run", str(tmp_path / "run"), *TINY_VIDEO, *options])
        assert code == 2
        return " ".join(capsys.readouterr().err.replace("│", " ").split())

    assert "none.csv: there is no such file" in refused("--data", str(tmp_path / "none.csv"))
    (tmp_path / "empty").mkdir()
    assert "holds no video files" in refused("--data", str(tmp_path / "empty"))
    (tmp_path / "mix.json").write_text('{"videos": "empty"}')
    assert "is no mixture of videos" in refused("--data", str(tmp_path / "mix.json"))
    assert "does not cut into tubelets" in refused("--encoder.frames", "5")
    assert "held_out is a share" in refused("--held-out", "1.5")
    assert not (tmp_path / "run" / "card.json").exists()
