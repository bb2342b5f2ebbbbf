"""`jepaplan probe`: from a video run or released weights to an accuracy, and what is refused."""

import json

import pytest
import torch

from jepaplan.cli import main
from jepaplan.data.sprite_videos import write_sprite_videos
from jepaplan.data.video import write_video
from jepaplan.models.video_vit import VideoTransformer
from jepaplan.recipes import frozen_video
from jepaplan.recipes.frozen_video import Reading, choose_kinds, encode_files, open_frozen, split_by_file
from jepaplan.recipes.video_run import load_video_run
from jepaplan.types import InputError
from tiny_video_studies import SPRITES

QUICK = ["--epochs", "3", "--device", "cpu", "--threads", "1"]


@pytest.fixture(scope="module")
def sprites(tmp_path_factory):
    """40 labelled videos that no run has seen."""
    folder = tmp_path_factory.mktemp("labelled") / "sprites"
    write_sprite_videos(folder, 40, SPRITES, seed=11)
    return folder


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """30 flat grey videos in a list, bright ones of class 7 and dark ones of class 3: easy to tell apart."""
    folder = tmp_path_factory.mktemp("flat")
    lines = []
    for number in range(30):
        level = (30 if number % 2 else 200) + number
        write_video(folder / f"{number}.mp4", torch.full((6, 3, 32, 32), level, dtype=torch.uint8), fps=4)
        lines.append(f"{number}.mp4 {3 if number % 2 else 7}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return folder / "list.csv"


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Random weights in transformers' format."""
    transformers = pytest.importorskip("transformers", reason="writes released weights (extra `hf`)")
    shape = {
        **{"patch_size": 8, "crop_size": 32, "frames_per_clip": 4, "tubelet_size": 2, "hidden_size": 48},
        **{"num_attention_heads": 2, "num_hidden_layers": 2, "pred_hidden_size": 24, "mlp_ratio": 4},
        **{"pred_num_attention_heads": 2, "pred_num_hidden_layers": 2, "pred_num_mask_tokens": 2},
    }
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("released") / "vjepa2-tiny"
    transformers.VJEPA2Model(transformers.VJEPA2Config(**shape)).save_pretrained(folder)
    return folder


def probe(capsys, *arguments):
    code = main(["probe", *map(str, arguments), *QUICK])
    said = capsys.readouterr()
    return code, said.out, said.err


def refused(capsys, *arguments):
    code, out, err = probe(capsys, *arguments)
    assert (code, out) == (2, "")
    return " ".join(err.replace("│", " ").split())


def test_every_kind_of_label_gets_an_accuracy_with_its_interval(tiny_video_run, sprites, capsys):
    code, out, err = probe(capsys, tiny_video_run, "--data", sprites)
    assert code == 0
    for kind in ("motion", "appearance"):
        assert f"{kind}: learned from " in out
        assert f"probing {kind}: 3/3" in err  # epochs
    assert "test accuracy, 95 %" in out
    assert "chance: accuracy of always naming the commonest class" in out
    assert "encoding videos: 40/40" in err
    assert "could not be read" not in err


def test_rows_as_json_depend_on_the_seed_alone(tiny_video_run, sprites, capsys):
    arguments = (tiny_video_run, "--data", sprites, "--labels", "motion", "--json")
    code, out, _ = probe(capsys, *arguments)
    (row,) = json.loads(out)
    assert code == 0
    assert (row["labels"], row["classes"], len(row["settings"]), row["seed"]) == ("motion", 10, 6, 0)
    assert row["train"] + row["validation"] + row["test"] == 40
    low, high = row["interval"]
    assert low <= row["accuracy"] == row["correct"] / row["test"] <= high
    assert row["chosen"] in row["settings"]
    assert row["unreadable"] == {}
    assert json.loads(probe(capsys, *arguments)[1]) == [row]
    (other,) = json.loads(probe(capsys, *arguments, "--seed", "1")[1])
    assert other["settings"] != row["settings"]


def test_what_can_be_told_apart_is_told_apart(tiny_video_run, flat, capsys):
    (row,) = json.loads(probe(capsys, tiny_video_run, "--data", flat, "--head", "linear", "--json")[1])
    assert (row["labels"], row["classes"]) == ("label", 2)
    assert row["accuracy"] == 1.0
    assert row["chance"] <= 0.75
    attentive = ("--depth", "2", "--views", "2", "--epochs", "20", "--frames", "2", "--fps", "2", "--json")
    code = main(["probe", str(tiny_video_run), "--data", str(flat), *attentive, "--threads", "1"])
    (row,) = json.loads(capsys.readouterr().out)
    assert (code, row["accuracy"], row["views"], row["probe"]["depth"]) == (0, 1.0, 2, 2)
    assert (row["clips"]["frames"], row["clips"]["fps"]) == (2, 2.0)


def test_the_target_encoder_is_frozen_and_sees_the_runs_clips(tiny_video_run, sprites):
    frozen, run = open_frozen(tiny_video_run), load_video_run(tiny_video_run)
    assert (frozen.clips.frames, frozen.clips.size) == (4, 32)
    clips = frozen_clips(frozen, sprites)
    found = encode_files(frozen, clips, torch.arange(6), Reading(views=2))
    assert found.features.shape == (6, 2, 32, 48)
    batch = clips.load(clips.views(torch.arange(6), 2))
    with torch.no_grad():
        due = run.objective.encode(batch.clips).unflatten(0, (6, 2))
    torch.testing.assert_close(found.features.float(), due, atol=2e-3, rtol=0)
    pooled = encode_files(frozen, clips, torch.arange(6), Reading(views=2, pooled=True)).features
    torch.testing.assert_close(pooled[:, :, 0], due.mean(dim=2), atol=2e-3, rtol=0)


def frozen_clips(frozen, folder):
    where = frozen_video.Labelled(data=folder)
    return frozen_video.VideoClips(frozen_video.open_labelled(where), frozen.clips)


def test_released_weights_see_clips_as_they_were_trained_on(released, sprites, capsys):
    frozen = open_frozen(released)
    clips = frozen_clips(frozen, sprites)
    found = encode_files(frozen, clips, torch.arange(3), Reading())
    weights = frozen_video.load_folder(released)
    clip = clips.load(clips.views(torch.arange(3), 1)).clips
    with torch.no_grad():
        due = weights.encode(weights.preprocessing.prepare(clip))
    torch.testing.assert_close(found.features[:, 0].float(), due, atol=3e-3, rtol=0)
    code, out, _ = probe(capsys, released, "--data", sprites, "--labels", "motion", "--json")
    (row,) = json.loads(out)
    assert (code, row["encoder"], row["sha256"]) == (0, "vjepa2-tiny", weights.sha256)


def test_files_of_metas_need_the_size_they_were_trained_on(tiny_video_run, tmp_path, flat, capsys):
    pytest.importorskip("transformers")
    path = tmp_path / "weights.pt"
    torch.save({}, path)
    assert "write --image 256 or --image 384" in refused(capsys, path, "--data", flat)
    assert "but no weights named 'target_encoder'" in refused(capsys, path, "--data", flat, "--image", "32")
    assert "--image belongs to a file of Meta's" in refused(
        capsys, tiny_video_run, "--data", flat, "--image", "32"
    )


def test_unreadable_files_are_left_out_counted_and_named(tiny_video_run, flat, tmp_path, capsys):
    lines = [f"{flat.parent / line}" for line in flat.read_text().splitlines()]
    for name in ("broken", "empty"):
        (tmp_path / f"{name}.mp4").write_bytes(b"" if name == "empty" else b"no video at all" * 9)
        lines.insert(5, f"{tmp_path / name}.mp4 3")
    listed = tmp_path / "list.csv"
    listed.write_text("\n".join(lines) + "\n")
    code, out, err = probe(capsys, tiny_video_run, "--data", listed, "--head", "linear", "--json")
    (row,) = json.loads(out)
    assert code == 0
    assert "2 of 32 videos could not be read and were left out:" in err
    assert f"{tmp_path / 'broken'}.mp4: " in err
    assert set(row["unreadable"]) == {str(tmp_path / "broken.mp4"), str(tmp_path / "empty.mp4")}
    assert row["train"] + row["validation"] + row["test"] == 30
    assert row["accuracy"] == 1.0  # no file was replaced by another under its label


def test_annotations_of_something_something(tiny_video_run, flat, tmp_path, capsys):
    entries = [
        {"id": str(number), "template": f"{'Dimming' if number % 2 else 'Lighting'} [something]"}
        for number in range(30)
    ]
    (tmp_path / "validation.json").write_text(json.dumps(entries))
    (tmp_path / "labels.json").write_text(json.dumps({"Dimming something": "1", "Lighting something": "0"}))
    files = ("--annotations", tmp_path / "validation.json", "--classes", tmp_path / "labels.json")
    found = ("--data", flat.parent, "--suffix", ".mp4", "--head", "linear", "--json")
    code, out, _ = probe(capsys, tiny_video_run, *files, *found)
    (row,) = json.loads(out)
    assert (code, row["labels"], row["accuracy"]) == (0, "action", 1.0)
    assert "--classes something-something-v2-labels.json" in refused(
        capsys, tiny_video_run, *files[:2], "--data", flat.parent
    )
    assert "belong to --annotations" in refused(capsys, tiny_video_run, *files[2:], "--data", flat.parent)


def test_annotations_of_epic_kitchens_keep_parts_of_a_video_together(tiny_video_run, flat, tmp_path, capsys):
    rows = [
        f"P01,{number},00:00:0{second}.0,00:00:0{second}.9,{number % 2},{second}"
        for number in range(20)
        for second in (0, 1)
    ]
    heading = "participant_id,video_id,start_timestamp,stop_timestamp,verb_class,noun_class"
    (tmp_path / "epic.csv").write_text("\n".join([heading, *rows]) + "\n")
    files = ("--annotations", tmp_path / "epic.csv", "--data", flat.parent, "--suffix", ".mp4")
    code, out, _ = probe(capsys, tiny_video_run, *files, "--labels", "verb", "--head", "linear", "--json")
    (row,) = json.loads(out)
    assert (code, row["labels"], row["accuracy"]) == (0, "verb", 1.0)
    assert row["test"] % 2 == row["train"] % 2 == 0
    with_classes = (*files, "--classes", tmp_path / "epic.csv")
    assert "leave --classes out" in refused(capsys, tiny_video_run, *with_classes)


def test_parts_of_one_file_are_on_one_side(sprites):
    names = [sprites / str(number // 3) for number in range(60)]
    splits = split_by_file(names, torch.arange(60) // 3 % 4, torch.Generator().manual_seed(0))
    sides = [
        {names[item] for item in part.tolist()} for part in (splits.train, splits.validation, splits.test)
    ]
    assert sum(len(side) for side in sides) == len(set(names)) == 20
    assert sum(len(part) for part in (splits.train, splits.validation, splits.test)) == 60


def test_features_that_do_not_fit_are_refused_before_they_are_computed(
    tiny_video_run, sprites, monkeypatch, capsys
):
    calls = []
    real = VideoTransformer.forward
    monkeypatch.setattr(
        VideoTransformer, "forward", lambda self, *given: calls.append(1) or real(self, *given)
    )
    said = refused(capsys, tiny_video_run, "--data", sprites, "--memory", "0.0001")
    assert "features of 40 files x 1 views x 32 tokens x 48 numbers take 0.000123 GB" in said
    assert "--memory 0.000129" in said
    assert "--files 32" in said
    assert "--head linear" in said
    assert len(calls) == 1  # the first block tells how many tokens there are
    some = ("--data", sprites, "--memory", "0.0001", "--files", "32", "--labels", "motion", "--json")
    (row,) = json.loads(probe(capsys, tiny_video_run, *some)[1])
    assert row["train"] + row["validation"] + row["test"] == 32


def test_wrong_input_is_refused_in_words(tiny_video_run, sprites, flat, tmp_path, capsys):
    assert "no labels of smell; the kinds there are: appearance, motion" in refused(
        capsys, tiny_video_run, "--data", sprites, "--labels", "smell"
    )
    unlabelled = refused(capsys, tiny_video_run, "--data", flat.parent)
    assert "the videos have no labels" in unlabelled
    assert '"path label"' in unlabelled
    lines = [f"{flat.parent / line}" for line in flat.read_text().splitlines()]
    few, same = tmp_path / "few.csv", tmp_path / "same.csv"
    few.write_text("\n".join(lines[:9]) + "\n")
    same.write_text("\n".join(lines[::2]) + "\n")
    assert "so it needs 12 or more that can be read and have a label; got 9" in refused(
        capsys, tiny_video_run, "--data", few
    )
    assert "all 15 videos have the label 7" in refused(capsys, tiny_video_run, "--data", same)
    assert "nowhere: there is no such" in refused(capsys, tiny_video_run, "--data", tmp_path / "nowhere")
    assert "neither a run (card.json) nor released weights" in refused(capsys, tmp_path, "--data", flat)
    assert "--frames 3 does not divide into tubelets of 2" in refused(
        capsys, tiny_video_run, "--data", flat, "--frames", "3"
    )
    for options, words in (
        (("--views", "0"), "--views is at least 1; got 0"),
        (("--memory", "0"), "--memory is GB, more than 0"),
        (("--head", "linear", "--depth", "2"), "--depth and --sweep belong to --head attentive"),
    ):
        assert words in refused(capsys, tiny_video_run, "--data", flat, *options)


def test_runs_that_plan_are_sent_to_evaluate(tiny_run, flat, capsys):
    said = refused(capsys, tiny_run, "--data", flat)
    assert "does not describe the pretraining of a video encoder" in said
    assert "`jepaplan evaluate RUN`" in said


def test_kinds_of_labels_are_all_or_those_asked_for(tiny_video_run, sprites):
    frozen = open_frozen(tiny_video_run)
    clips = frozen_clips(frozen, sprites)
    with pytest.raises(InputError, match="no labels of scent"):
        choose_kinds(clips, ["scent"])
    assert choose_kinds(clips, []) == ("appearance", "motion")
