"""Sets of videos: what folders and lists say, what is odd about them, and splits that only names decide."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.data.video_sets import VideoSet
from jepaplan.types import InputError


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_a_folder_is_every_video_below_it_in_order_of_name(tmp_path):
    touch(tmp_path, "b.mp4", "a/z.WEBM", "a/notes.txt", "c.mkv")
    found = VideoSet.folder(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in found.paths] == ["a/z.WEBM", "b.mp4", "c.mkv"]
    assert found.labels == {}


def test_folders_without_videos(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        VideoSet.folder(tmp_path / "none")
    touch(tmp_path, "notes.txt")
    with pytest.raises(InputError, match="holds no video files"):
        VideoSet.folder(tmp_path)


@pytest.mark.parametrize(
    "text", ["a b.mp4 3\n\nc.mp4 -1\n", "a b.mp4::3\nc.mp4::-1", "a b.mp4 :: 3\r\nc.mp4 -1\r\n"]
)
def test_lists_of_paths_and_labels(tmp_path, text):
    touch(tmp_path, "a b.mp4", "c.mp4")
    (tmp_path / "list.csv").write_text(text, newline="")
    found = VideoSet.listed(tmp_path / "list.csv")
    assert found.paths == (tmp_path / "a b.mp4", tmp_path / "c.mp4")
    assert found.labels["label"].tolist() == [3, -1]


def test_paths_count_from_another_folder_if_asked(tmp_path):
    touch(tmp_path, "films/a.mp4")
    (tmp_path / "list.csv").write_text("a.mp4 0\n" + f"{tmp_path / 'films' / 'a.mp4'} 1\n")
    found = VideoSet.listed(tmp_path / "list.csv", tmp_path / "films")
    assert found.paths == (tmp_path / "films" / "a.mp4",) * 2


def test_lists_without_labels(tmp_path):
    touch(tmp_path, "a b.mp4", "c.mp4")
    (tmp_path / "list.csv").write_text("a b.mp4\nc.mp4\n")
    np.save(tmp_path / "list.npy", np.array(["a b.mp4", "c.mp4"]))
    for name in ("list.csv", "list.npy"):
        found = VideoSet.listed(tmp_path / name)
        assert [path.name for path in found.paths] == ["a b.mp4", "c.mp4"]
        assert found.labels == {}


def test_odd_lists_are_refused_by_line(tmp_path):
    touch(tmp_path, "a.mp4")
    file = tmp_path / "list.csv"

    def refusal(text):
        file.write_text(text)
        with pytest.raises(InputError) as told:
            VideoSet.listed(file)
        return str(told.value)

    assert "line 3" in refusal("a.mp4 1\n\nb.mp4 2\n")
    assert "there is no file" in refusal("a.mp4 1\n\nb.mp4 2\n")
    assert "line 2: 'a.mp4' does not end in an integer label" in refusal("a.mp4 1\na.mp4\n")
    assert "line 2: 'a.mp4 two'" in refusal("a.mp4 1\na.mp4 two\n")
    assert "is empty" in refusal("\n \n")
    file.write_text("a.mp4 1\nb.mp4 2\n")
    assert len(VideoSet.listed(file, missing="skip")) == 2
    with pytest.raises(InputError, match="no such file"):
        VideoSet.listed(tmp_path / "none.csv")
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as text"):
        VideoSet.listed(file)


def test_arrays_that_could_run_code_or_are_no_paths_are_refused(tmp_path):
    file = tmp_path / "list.npy"
    np.save(file, np.array(["a.mp4", 3], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="could run code"):
        VideoSet.listed(file)
    np.save(file, np.arange(3))
    with pytest.raises(InputError, match="expected a list of paths"):
        VideoSet.listed(file)


def numbered_set(count, folder="films", order=None):
    order = torch.arange(count) if order is None else order
    paths = tuple(Path(folder) / f"{number}.mp4" for number in order.tolist())
    return VideoSet(name="numbered", paths=paths, labels={"number": order})


@settings(deadline=None, max_examples=30)
@given(count=st.integers(10, 60), seed=st.integers(0, 99))
def test_splits_share_nothing_and_only_names_decide(count, seed):
    parts = numbered_set(count).split((0.7, 0.1, 0.2), seed)
    numbers = [part.labels["number"].tolist() for part in parts]
    assert sorted(number for part in numbers for number in part) == list(range(count))
    assert [len(part) for part in parts] == [
        round(count * 0.7),
        round(count * 0.8) - round(count * 0.7),
        count - round(count * 0.8),
    ]
    for part in parts:
        assert [path.stem for path in part.paths] == [
            str(number) for number in part.labels["number"].tolist()
        ]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    again = numbered_set(count, "elsewhere/films", order).split((0.7, 0.1, 0.2), seed)
    assert [sorted(part.labels["number"].tolist()) for part in again] == [sorted(part) for part in numbers]


def test_another_seed_splits_otherwise():
    one, other = (numbered_set(100).split((0.5, 0.5), seed)[0].labels["number"].tolist() for seed in (0, 1))
    assert 30 < len(set(one) & set(other)) + 10 < 50  # 25 are expected in common, give or take 5


def test_parts_of_one_file_stay_together():
    paths = tuple(Path(f"films/{number // 5}.mp4") for number in range(50))
    segments = torch.stack([torch.arange(50.0), torch.arange(50.0) + 1], dim=-1)
    whole = VideoSet(name="parts", paths=paths, segments=segments)
    train, test = whole.split((0.6, 0.4), 0)
    assert not set(train.paths) & set(test.paths)
    assert [
        (path.stem, int(start) // 5) for path, (start, _) in zip(train.paths, train.segments, strict=True)
    ] == [(path.stem, int(path.stem)) for path in train.paths]


def test_sets_that_do_not_fit_together():
    paths = (Path("a.mp4"), Path("b.mp4"))
    with pytest.raises(InputError, match="at least one file"):
        VideoSet(name="x", paths=())
    with pytest.raises(InputError, match="3 labels of action for 2 files"):
        VideoSet(name="x", paths=paths, labels={"action": torch.arange(3)})
    with pytest.raises(InputError, match=r"b\.mp4 ends before it begins"):
        VideoSet(name="x", paths=paths, segments=torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
    with pytest.raises(InputError, match="a part would be empty"):
        VideoSet(name="x", paths=paths).split((0.9, 0.1), 0)
    with pytest.raises(InputError, match="add up to 1"):
        VideoSet(name="x", paths=paths).split((0.5, 0.4), 0)
