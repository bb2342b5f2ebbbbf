"""Video files: any frame equals that of a full decode, and words for everything that is no video."""

import builtins
import os
from concurrent.futures import ThreadPoolExecutor

import av
import pytest
import torch
from tiny_videos import encode, numbered_clip, numbers_of, write_sound

from jepaplan.data.video import open_video, write_video
from jepaplan.types import InputError

FRAMES = 60
KINDS = {
    "b_frames.mp4": ("libx264", {"bf": "3", "sc_threshold": "0"}, 12),
    "open_group.mp4": ("libx264", {"bf": "3", "x264-params": "open-gop=1:keyint=24:bframes=3"}, 24),
    "mpeg4.mp4": ("mpeg4", {"bf": "2"}, 12),
    "one_key_frame.mkv": ("libx264", {}, 250),
    "old.avi": ("mpeg4", {"bf": "0"}, 12),
    "net.webm": ("libvpx", {}, 20),
}


def moving_noise():
    """Frames that all differ, with something left of each in the next."""
    generator = torch.Generator().manual_seed(0)
    ground = torch.randint(256, (3, 32, 48), generator=generator, dtype=torch.uint8)
    return torch.stack([ground.roll((shift, 2 * shift), (1, 2)) for shift in range(FRAMES)])


def decode_all(path):
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.stack([torch.from_numpy(frame).permute(2, 0, 1) for frame in frames])


@pytest.fixture(scope="module", params=sorted(KINDS))
def film(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("films") / request.param
    encode(path, moving_noise(), *KINDS[request.param])
    return path, decode_all(path)


def test_frame_k_is_the_kth_frame_of_a_full_decode(film):
    path, every = film
    with open_video(path) as video:
        assert len(video.timestamps) == len(every) == FRAMES
        assert (video.height, video.width) == (32, 48)
        assert video.fps == pytest.approx(25, rel=0.01)
        assert (video.timestamps.diff() > 0).all()
        for number in (0, 59, 23, 24, 25, 11, 12, 1, 58, 40, 0):
            assert torch.equal(video.read(torch.tensor([number]))[0], every[number])
        wanted = torch.tensor([50, 7, 7, 33, 8])
        assert torch.equal(video.read(wanted), every[wanted])


def test_reading_late_frames_does_not_begin_at_the_start(tmp_path):
    path = tmp_path / "film.mp4"
    encode(path, moving_noise(), *KINDS["b_frames.mp4"])
    with open_video(path) as video:
        starts = []
        decode = video._decode
        video._decode = lambda start, *rest: (starts.append(start), decode(start, *rest))[1]
        for number in range(FRAMES):
            video.read(torch.tensor([number]))
    # One decode per call, so no seek missed its frame; and decoding begins at each of the key frames.
    assert len(starts) == FRAMES
    assert len(set(starts)) == FRAMES // 12


def test_threads_that_share_a_video_get_the_right_frames(film):
    path, every = film
    generator = torch.Generator().manual_seed(1)
    wanted = torch.randint(FRAMES, (24, 3), generator=generator)
    with open_video(path) as video, ThreadPoolExecutor(4) as pool:
        for numbers, frames in zip(wanted, pool.map(video.read, wanted), strict=True):
            assert torch.equal(frames, every[numbers])


def test_frames_that_last_unequally_keep_their_times(tmp_path):
    times = [0, 40, 80, 500, 540, 1000]
    encode(tmp_path / "film.mkv", numbered_clip(6), "mpeg4", {}, 1, milliseconds=times)
    with open_video(tmp_path / "film.mkv") as video:
        assert (1000 * video.timestamps).round().tolist() == times
        assert numbers_of(video.read(torch.arange(6))).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("codec", ["h264", "mpeg4"])
def test_what_is_written_is_read_back_at_its_rate(tmp_path, codec):
    path = tmp_path / "film.mp4"
    write_video(path, numbered_clip(20, 16, 24), 8, codec)
    with open_video(path) as video:
        assert video.fps == 8
        assert torch.allclose(video.timestamps, torch.arange(20, dtype=torch.float64) / 8)
        assert numbers_of(video.read(torch.arange(20))).tolist() == list(range(20))


@pytest.mark.parametrize("codec", ["h264", "mpeg4"])
def test_a_frame_holds_no_traces_of_its_neighbours(tmp_path, codec):
    clip = moving_noise()[:3]
    still = clip[1:2].expand(3, -1, -1, -1).contiguous()
    for name, frames in (("moves", clip), ("rests", still)):
        write_video(tmp_path / f"{name}.mp4", frames, 8, codec)
    assert torch.equal(decode_all(tmp_path / "moves.mp4")[1], decode_all(tmp_path / "rests.mp4")[1])


def test_scaling_while_decoding(tmp_path):
    path = tmp_path / "film.mp4"
    write_video(path, numbered_clip(8, 32, 48), 8)
    with open_video(path) as video:
        small = video.read(torch.arange(8), (16, 24))
    assert small.shape == (8, 3, 16, 24)
    assert numbers_of(small).tolist() == list(range(8))


def test_a_file_that_changed_is_gone_through_again(tmp_path):
    path = tmp_path / "film.mp4"
    for frames in (5, 9):
        write_video(path, numbered_clip(frames), 8)
        os.utime(path, (frames, frames))
        with open_video(path) as video:
            assert len(video.timestamps) == frames


def refusal(path, indices=(0,)):
    with pytest.raises(InputError) as told, open_video(path) as video:
        video.read(torch.tensor(indices, dtype=torch.int64))
    assert str(path) in str(told.value)
    return str(told.value)


def test_what_is_no_video(tmp_path):
    path = tmp_path / "a.mp4"
    assert "there is no such file" in refusal(path)
    assert "there is no such file" in refusal(tmp_path)
    for content in (b"", b"not a video" * 50):
        path.write_bytes(content)
        assert "cannot be read as a video" in refusal(path)
    write_sound(path)
    assert "no video stream" in refusal(path)


def test_a_video_cut_short_is_refused(tmp_path):
    path = tmp_path / "a.mp4"
    encode(path, moving_noise(), "mpeg4", {}, 12)
    whole = path.read_bytes()
    for kept in (len(whole) // 2, len(whole) - 200):
        path.write_bytes(whole[:kept])
        refusal(path)


def test_frames_without_times_are_refused_with_a_remedy(tmp_path):
    path = tmp_path / "raw.h264"
    encode(path, moving_noise(), "libx264", {"bf": "2"}, 12)
    assert "frames with a time" in refusal(path)


@pytest.mark.parametrize("indices", [(), (-1,), (0, 8)])
def test_numbers_of_frames_that_are_not_there(tmp_path, indices):
    path = tmp_path / "a.mp4"
    write_video(path, numbered_clip(8), 8)
    assert "has frames 0 to 7" in refusal(path, indices)


def test_odd_sides_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match="must be even"):
        write_video(tmp_path / "a.mp4", numbered_clip(2, 15, 16), 8)


@pytest.mark.parametrize("backend,word", [("pyav", "jepaplan\\[video\\]"), ("torchcodec", 'backend="pyav"')])
def test_a_missing_decoder_is_named(tmp_path, monkeypatch, backend, word):
    path = tmp_path / "a.mp4"
    write_video(path, numbered_clip(2), 8)
    real = builtins.__import__

    def without(name, *rest, **more):
        if name.partition(".")[0] == {"pyav": "av", "torchcodec": "torchcodec"}[backend]:
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=word):
        open_video(path, backend)


def test_torchcodec_numbers_frames_alike(film):
    pytest.importorskip("torchcodec")
    path, every = film
    with open_video(path, "torchcodec") as video:
        wanted = torch.tensor([50, 7, 7, 33, 8])
        assert (video.read(wanted).float() - every[wanted].float()).abs().mean() < 3
