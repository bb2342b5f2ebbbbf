"""Annotation files of Something-Something v2 and EPIC-KITCHENS-100, written here in their formats."""

import json
from pathlib import Path

import pytest
import torch
from tiny_videos import numbered_clip, numbers_of

from jepaplan.data.annotations import (
    Anticipation,
    epic_actions,
    epic_classes,
    epic_kitchens,
    something_something,
)
from jepaplan.data.video import write_video
from jepaplan.data.video_clips import ClipConfig, VideoClips
from jepaplan.types import InputError

LABELS = {"Holding something next to something": "1", "Approaching something with your camera": "0"}
ENTRIES = [
    {
        "id": "78687",
        "label": "holding potato next to vicks vaporub bottle",
        "template": "Holding [something] next to [something]",
        "placeholders": ["potato", "vicks vaporub bottle"],
    },
    {
        "id": "42326",
        "label": "approaching chair with your camera",
        "template": "Approaching [something] with your camera",
        "placeholders": ["chair"],
    },
]
HEADING = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,"
    "stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
)
ROWS = (
    "P01_01_0,P01,P01_01,00:00:01.089,00:00:00.14,00:00:03.37,8,202,open door,open,3,door,3,['door'],[3]\n"
    "P01_01_1,P01,P01_01,00:00:02.629,00:00:04.50,00:00:06.00,262,370,turn on light,turn-on,6,light,114,"
    "\"['light', 'lamp']\",\"[114, 5]\"\n"
    "P02_07_4,P02,P02_07,01:00:05.349,01:02:07.50,01:02:08.5,331,414,close door,close,4,door,3,['door'],[3]\n"
)


@pytest.fixture
def something(tmp_path):
    (tmp_path / "something-something-v2-labels.json").write_text(json.dumps(LABELS))
    (tmp_path / "something-something-v2-train.json").write_text(json.dumps(ENTRIES))
    return tmp_path


def read_something(folder, name="something-something-v2-train.json"):
    return something_something(
        folder / name, folder / "something-something-v2-labels.json", folder / "videos"
    )


def test_something_something_templates_are_classes(something):
    found = read_something(something)
    assert found.name == "something-something-v2-train"
    assert found.paths == (something / "videos/78687.webm", something / "videos/42326.webm")
    assert found.labels["action"].tolist() == [1, 0]
    assert found.classes["action"] == (
        "Approaching something with your camera",
        "Holding something next to something",
    )


def test_the_test_file_has_no_labels(something):
    (something / "test.json").write_text(json.dumps([{"id": "1"}, {"id": "2"}]))
    found = read_something(something, "test.json")
    assert found.labels == {}
    assert len(found) == 2


@pytest.mark.parametrize(
    "text,words",
    [
        (
            json.dumps([*ENTRIES, {"id": "1", "template": "Eating [something]"}]),
            "entry 2: 'Eating something'",
        ),
        (json.dumps([*ENTRIES, {"template": "x"}]), 'entry 2: expected an object with an "id"'),
        (json.dumps([*ENTRIES, {"id": "3"}]), "2 of 3 entries"),
        ("{}", "expected a list"),
        ("[", "cannot be read as JSON"),
    ],
)
def test_odd_something_something_files(something, text, words):
    (something / "odd.json").write_text(text)
    with pytest.raises(InputError, match=words):
        read_something(something, "odd.json")


def test_odd_label_files(something):
    for table in ({"a": "0", "b": "2"}, {"a": "zero"}, ["a"], {}):
        (something / "something-something-v2-labels.json").write_text(json.dumps(table))
        with pytest.raises(InputError, match=r"labels\.json"):
            read_something(something)


@pytest.fixture
def kitchen(tmp_path):
    (tmp_path / "EPIC_100_train.csv").write_text(HEADING + ROWS)
    return tmp_path


def test_epic_kitchens_segments_and_labels(kitchen):
    (kitchen / "videos").mkdir()
    (kitchen / "videos/P02_07.MP4").touch()
    found = epic_kitchens(kitchen / "EPIC_100_train.csv", kitchen / "videos")
    assert found.paths[:2] == (kitchen / "videos/P01/videos/P01_01.MP4",) * 2
    assert found.paths[2] == kitchen / "videos/P02_07.MP4"
    assert found.labels["verb"].tolist() == [3, 6, 4]
    assert found.labels["noun"].tolist() == [3, 114, 3]
    assert found.labels["action"].tolist() == [0, 2, 1]
    expected = [[0.14, 3.37], [4.5, 6.0], [3727.5, 3728.5]]
    assert torch.allclose(found.segments, torch.tensor(expected, dtype=torch.float64))


def test_actions_are_shared_between_training_and_validation(kitchen):
    lines = ROWS.splitlines(keepends=True)
    (kitchen / "train.csv").write_text(HEADING + lines[0] + lines[2])
    (kitchen / "validation.csv").write_text(HEADING + lines[1] + lines[2])
    known = epic_actions(kitchen / "train.csv")
    assert known == ((3, 3), (4, 3))
    assert epic_kitchens(kitchen / "validation.csv", kitchen, known).labels["action"].tolist() == [-1, 1]
    both = epic_actions(kitchen / "validation.csv", kitchen / "train.csv")
    assert both == ((3, 3), (4, 3), (6, 114))


def test_anticipation_sees_what_was_before(kitchen):
    found = epic_kitchens(
        kitchen / "EPIC_100_train.csv", kitchen, anticipation=Anticipation(ahead=1.0, context=4.0)
    )
    # The first action begins before one second has passed: nothing could be seen.
    assert found.labels["verb"].tolist() == [6, 4]
    expected = [[0.0, 3.5], [3722.5, 3726.5]]
    assert torch.allclose(found.segments, torch.tensor(expected, dtype=torch.float64))
    with pytest.raises(InputError, match="late enough"):
        epic_kitchens(kitchen / "EPIC_100_train.csv", kitchen, anticipation=Anticipation(ahead=4000.0))


def test_the_clip_that_is_loaded_ends_where_the_segment_does(kitchen):
    write_video(kitchen / "P01_01.MP4", numbered_clip(30), 5)  # frame k at k / 5 seconds
    found = epic_kitchens(
        kitchen / "EPIC_100_train.csv", kitchen, anticipation=Anticipation(ahead=1.0, context=2.0)
    )
    clips = VideoClips([found], ClipConfig(frames=3, fps=2.5))
    batch = clips.load(clips.at(torch.tensor([0]), 1.0))
    assert numbers_of(batch.clips).tolist() == [[13, 15, 17]]  # 3.4 s is the last before 3.5 s
    assert batch.labels["noun"].tolist() == [114]


def test_a_test_file_without_classes(kitchen):
    (kitchen / "test.csv").write_text(
        "narration_id,participant_id,video_id,start_timestamp,stop_timestamp\n"
        "P01_11_0,P01,P01_11,00:00:00.00,00:00:01.00\n"
    )
    assert epic_kitchens(kitchen / "test.csv", kitchen).labels == {}


@pytest.mark.parametrize(
    "old,new,words",
    [
        ("00:00:04.50", "4.5 s", "line 3: '4.5 s' is no time"),
        ("00:00:06.00", "00:00:02.00", "line 3: the action stops"),
        ("turn-on,6,", "turn-on,six,", "line 3: verb_class should be an integer; got 'six'"),
        ("video_id,", "film,", r"lacks the columns \['video_id'\]"),
        (",door,3,['door'],[3]\nP01_01_1", "\nP01_01_1", "line 2: 15 fields"),
    ],
)
def test_odd_epic_files_are_refused_by_line(kitchen, old, new, words):
    text = HEADING + ROWS
    assert old in text
    (kitchen / "odd.csv").write_text(text.replace(old, new))
    with pytest.raises(InputError, match=words):
        epic_kitchens(kitchen / "odd.csv", kitchen)


def test_files_that_are_not_there_or_empty(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        epic_kitchens(tmp_path / "none.csv", tmp_path)
    with pytest.raises(InputError, match="no such file"):
        something_something(tmp_path / "none.json", tmp_path / "none.json", tmp_path)
    (tmp_path / "empty.csv").write_text(HEADING)
    with pytest.raises(InputError, match="no rows"):
        epic_kitchens(tmp_path / "empty.csv", tmp_path)


def test_class_names_by_number(tmp_path):
    file = Path(tmp_path / "EPIC_100_verb_classes.csv")
    file.write_text("id,key,instances\n1,put,\"['put', 'place']\"\n0,take,\"['take', 'pick-up']\"\n")
    assert epic_classes(file) == ("take", "put")
    file.write_text("id,key,instances\n1,put,[]\n2,take,[]\n")
    with pytest.raises(InputError, match="0 to 1"):
        epic_classes(file)
