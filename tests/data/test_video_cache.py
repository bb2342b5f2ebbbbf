"""The cache of decoded frames: the same clips as from the files, made once, and refused when cut short."""

import os

import pytest
import torch
from tiny_videos import numbered_clip

from jepaplan.data import video_cache
from jepaplan.data.video import write_video
from jepaplan.data.video_cache import cache_videos
from jepaplan.data.video_clips import ClipConfig, VideoClips
from jepaplan.data.video_sets import VideoSet
from jepaplan.types import InputError


@pytest.fixture
def films(tmp_path):
    """Films of three lengths and two shapes, and one that cannot be read."""
    folder = tmp_path / "films"
    folder.mkdir()
    for number, (frames, height) in enumerate([(6, 16), (9, 32), (20, 16)]):
        write_video(folder / f"{number}.mp4", numbered_clip(frames, height, 32), 8)
    (folder / "broken.mp4").touch()
    return VideoSet.folder(folder)


@pytest.mark.parametrize("threads", [1, 2])
def test_clips_are_those_of_the_files(films, tmp_path, threads):
    config = ClipConfig(frames=4, size=8, threads=threads)
    plain = VideoClips([films], config)
    cached = VideoClips([films], config, cache=cache_videos(tmp_path / "cache", [films, films], config))
    sample = plain.sample(torch.Generator().manual_seed(0), 32)
    one, other = plain.load(sample), cached.load(sample)
    assert torch.equal(one.clips, other.clips)
    assert torch.equal(one.file, other.file)
    assert [path.name for path in plain.unreadable()] == ["broken.mp4"]
    assert plain.unreadable() == cached.unreadable()


def test_it_is_made_once_and_anew_when_anything_changed(films, tmp_path, monkeypatch):
    made = []
    decode = video_cache._decode
    monkeypatch.setattr(
        video_cache, "_decode", lambda path, config: (made.append(path), decode(path, config))[1]
    )
    config = ClipConfig(size=8)
    progress = []
    cache_videos(
        tmp_path / "cache", [films], config, progress=lambda done, count: progress.append((done, count))
    )
    assert progress[-1] == (4, 4)
    assert len(made) == 4
    cache_videos(tmp_path / "cache", [films], ClipConfig(size=8, frames=2))
    assert len(made) == 4
    cache_videos(tmp_path / "cache", [films], ClipConfig(size=16))
    cache_videos(tmp_path / "cache", [films.select(torch.tensor([0, 1]))], config)
    assert len(made) == 4 + 4 + 2
    os.utime(films.paths[0], (1, 1))
    cache_videos(tmp_path / "cache", [films], config)
    assert len(made) == 4 + 4 + 2 + 4


def test_what_is_not_whole_is_refused(films, tmp_path):
    folder, config = tmp_path / "cache", ClipConfig(size=8)
    cache_videos(folder, [films], config)
    (data,), (index,) = folder.glob("*.bytes"), folder.glob("*.json")
    whole, text = data.read_bytes(), index.read_text()
    data.write_bytes(whole[:-1])
    with pytest.raises(InputError, match="cut short; delete"):
        cache_videos(folder, [films], config)
    data.unlink()
    with pytest.raises(InputError, match="has 0 bytes"):
        cache_videos(folder, [films], config)
    data.write_bytes(whole)
    for wrong in (text[:-20], "{}", text.replace("decoded video 1", "decoded video 0")):
        index.write_text(wrong)
        with pytest.raises(InputError, match="delete"):
            cache_videos(folder, [films], config)


def test_a_cache_that_was_stopped_leaves_nothing_behind(films, tmp_path):
    def stop(done, count):
        raise KeyboardInterrupt

    folder, config = tmp_path / "cache", ClipConfig(size=8)
    with pytest.raises(KeyboardInterrupt):
        cache_videos(folder, [films], config, progress=stop)
    assert list(folder.iterdir()) == []
    cache_videos(folder, [films], config)


def test_files_that_were_not_cached_are_refused(films, tmp_path):
    config = ClipConfig(size=8)
    cache = cache_videos(tmp_path / "cache", [films.select(torch.tensor([0]))], config)
    with pytest.raises(InputError, match="is not in this cache"):
        cache.timing(films.paths[1])


def test_many_items_decode_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(video_cache, "BLOCK", 2)
    for number in range(5):
        write_video(tmp_path / f"{number}.mp4", numbered_clip(3, first=number), 8)
    films, config = VideoSet.folder(tmp_path), ClipConfig(frames=3, fps=None)
    cached = VideoClips([films], config, cache=cache_videos(tmp_path / "cache", [films], config))
    plain = VideoClips([films], config)
    sample = plain.at(torch.arange(5), 0.0)
    assert torch.equal(plain.load(sample).clips, cached.load(sample).clips)
