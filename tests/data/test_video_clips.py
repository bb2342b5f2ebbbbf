"""Clips: which frames a window holds, how files are drawn, shared by processes, replaced when unreadable."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_videos import encode, numbered_clip, numbers_of

from jepaplan.data.clips import AugmentationConfig
from jepaplan.data.video import write_video
from jepaplan.data.video_clips import Epochs, VideoClips, random_views
from jepaplan.data.video_sets import VideoSet
from jepaplan.data.video_windows import ClipConfig
from jepaplan.training.distributed import Processes, shard
from jepaplan.types import InputError


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Ten films of 20 frames at 8 per second; frame k of each is of level 8 k."""
    folder = tmp_path_factory.mktemp("films")
    for number in range(10):
        write_video(folder / f"{number}.mp4", numbered_clip(20), 8, "mpeg4")
    (folder / "list.csv").write_text("".join(f"{number}.mp4 {number}\n" for number in range(10)))
    return VideoSet.listed(folder / "list.csv")


def test_what_is_decoded_is_the_window(films):
    clips = VideoClips([films], ClipConfig(frames=8, fps=4.0))
    batch = clips.load(clips.at(torch.tensor([3, 7, 0]), 1.0))
    assert numbers_of(batch.clips).tolist() == [[5, 7, 9, 11, 13, 15, 17, 19]] * 3
    assert batch.file.tolist() == batch.labels["label"].tolist() == [3, 7, 0]
    views = clips.load(clips.views(torch.tensor([2, 4]), 3))
    assert numbers_of(views.clips)[:, 0].tolist() == [0, 3, 5, 0, 3, 5]
    assert views.file.tolist() == [2, 2, 2, 4, 4, 4]
    assert numbers_of(clips.load(clips.views(torch.tensor([2]), 1)).clips)[0, 0] == 3


def test_the_generator_alone_decides(films):
    clips = VideoClips([films], ClipConfig())
    one, again, other = (clips.sample(seeded(seed), 64) for seed in (0, 0, 1))
    for name in ("file", "position", "seed"):
        assert torch.equal(getattr(one, name), getattr(again, name))
        assert not torch.equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("threads", [1, 3])
def test_shares_of_processes_are_the_rows_of_the_whole(films, threads):
    views = random_views(AugmentationConfig(), (12, 12))
    clips = VideoClips([films], ClipConfig(frames=4, threads=threads), augment=views)
    sample = clips.sample(seeded(0), 8)
    whole = clips.load(sample)
    parts = [clips.load(shard(sample, 8, Processes(rank, 4))) for rank in range(4)]
    assert torch.equal(whole.clips, torch.cat([part.clips for part in parts]))
    assert torch.equal(whole.labels["label"], torch.cat([part.labels["label"] for part in parts]))
    assert whole.clips.shape == (8, 4, 3, 12, 12)


def test_mixtures_draw_a_file_by_weight_over_length(films):
    few, many = films.select(torch.arange(2)), films.select(torch.arange(2, 10))
    clips = VideoClips([few, many], ClipConfig(), weights=[3.0, 1.0])
    counts = clips.sample(seeded(0), 40000).file.bincount(minlength=10) / 40000
    expected = torch.tensor([3 / 4 / 2] * 2 + [1 / 4 / 8] * 8)
    assert ((counts - expected).abs() < 4 * (expected / 40000).sqrt()).all()
    even = VideoClips([few, many], ClipConfig()).sample(seeded(0), 40000).file.bincount() / 40000
    assert ((even - 0.1).abs() < 4 * math.sqrt(0.1 / 40000)).all()
    assert clips.path(1) == few.paths[1]
    assert clips.path(2) == many.paths[0]


@settings(deadline=None, max_examples=25)
@given(items=st.integers(1, 25), seed=st.integers(0, 99))
def test_an_epoch_shows_every_file_once_wherever_it_begins(films, items, seed):
    clips = VideoClips([films], ClipConfig())
    updates = [clips.sample_epoch(update, items, seed).file for update in range(20)]
    row = torch.cat(updates)
    for first in range(0, len(row) - 9, 10):
        assert sorted(row[first : first + 10].tolist()) == list(range(10))
    # Nothing but the number of the update is needed to go on.
    assert torch.equal(clips.sample_epoch(17, items, seed).file, updates[17])


def test_a_stage_in_epochs_only_needs_the_number_of_its_update(films):
    clips = VideoClips([films], ClipConfig())
    epochs = Epochs(clips, seed=5)
    for update in (0, 7):
        epochs.before_update(update)
        for generator in (seeded(0), seeded(1)):
            assert torch.equal(epochs.sample(generator, 4).seed, clips.sample_epoch(update, 4, 5).seed)


def test_epochs_and_windows_differ_from_each_other(films):
    clips = VideoClips([films], ClipConfig())
    one, two = (clips.sample_epoch(update, 10, 0) for update in (0, 1))
    assert one.file.tolist() != two.file.tolist()
    assert not torch.equal(one.position, two.position)


@pytest.fixture
def broken_films(films, tmp_path):
    """Ten films of which the first three cannot be read, each for its own reason."""
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    broken = (tmp_path / "gone.mp4", tmp_path / "empty.mp4", tmp_path / "text.mp4")
    return VideoSet(name="broken", paths=broken + films.paths[3:], labels=films.labels)


@pytest.mark.parametrize("threads", [1, 3])
def test_unreadable_files_are_replaced_and_named(broken_films, threads):
    clips = VideoClips([broken_films], ClipConfig(frames=4, threads=threads))
    sample = clips.sample(seeded(0), 60)
    wrong = sample.file < 3
    assert wrong.any()
    batch = clips.load(sample)
    assert torch.equal(batch.file[~wrong], sample.file[~wrong])
    assert (batch.file[wrong] >= 3).all()
    assert len(batch.file[wrong].unique()) > 1
    assert torch.equal(batch.labels["label"], batch.file)
    told = clips.unreadable()
    assert sorted(path.name for path in told) == ["empty.mp4", "gone.mp4", "text.mp4"]
    assert all(str(path) in reason for path, reason in told.items())
    # What was found out before changes nothing.
    fresh = VideoClips([broken_films], ClipConfig(frames=4))
    assert torch.equal(clips.load(sample).clips, fresh.load(sample).clips)


def test_a_set_of_which_nothing_can_be_read(tmp_path):
    (tmp_path / "a.mp4").touch()
    clips = VideoClips([VideoSet.folder(tmp_path)], ClipConfig())
    with pytest.raises(InputError, match=r"1 of 1 are unreadable so far, one because: .*a\.mp4"):
        clips.load(clips.sample(seeded(0), 2))


def test_sizes_are_scaled_and_cut_to_the_middle(tmp_path):
    clip = numbered_clip(4, 32, 64)
    clip[:, :, :, :16] = 255  # what is left of the square in the middle is lost
    encode(tmp_path / "wide.mp4", clip, "libx264", {"qp": "5"}, 1)
    write_video(tmp_path / "tall.mp4", numbered_clip(4, 48, 32), 8)
    films = VideoSet.folder(tmp_path)
    clips = VideoClips([films], ClipConfig(frames=4, fps=None, size=16))
    batch = clips.load(clips.at(torch.tensor([0, 1]), 0.0))
    assert batch.clips.shape == (2, 4, 3, 16, 16)
    assert numbers_of(batch.clips).tolist() == [[0, 1, 2, 3]] * 2
    unequal = VideoClips([films], ClipConfig(frames=4, fps=None))
    with pytest.raises(InputError, match="different shapes"):
        unequal.load(unequal.at(torch.tensor([0, 1]), 0.0))


def test_weights_that_make_no_sense(films):
    for weights in ([1.0], [0.0, 0.0], [1.0, -1.0], [1.0, math.nan]):
        with pytest.raises(InputError, match="weights are numbers"):
            VideoClips([films, films], ClipConfig(), weights=weights)
    with pytest.raises(InputError, match="at least one set"):
        VideoClips([], ClipConfig())
