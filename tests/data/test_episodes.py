"""A recording is read back as it was written, or refused with its name and the reason."""

import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.data import sealed_file
from jepaplan.data.episodes import Earned, Episodes, EpisodeWriter, open_episodes
from jepaplan.types import InputError


def images(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def same(one: Episodes, two: Episodes) -> bool:
    names = ("observations", "actions", "states", "proprioception", "starts", "lengths")
    columns = [(getattr(one, name), getattr(two, name)) for name in names]
    return all(a is b is None or torch.equal(a, b) for a, b in columns) and one.manifest == two.manifest


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 99), extra=st.booleans()
)
def test_what_is_written_is_read(tmp_path_factory, steps, seed, extra):
    path = tmp_path_factory.mktemp("round") / "a.h5"
    generator = torch.Generator().manual_seed(seed)
    frames = [torch.randint(0, 256, (n + 1, 3, 4, 5), generator=generator, dtype=torch.uint8) for n in steps]
    actions = [torch.randn(n, 2, generator=generator) for n in steps]
    states = [torch.randn(n + 1, 4, generator=generator) for n in steps]
    with EpisodeWriter(path, {"seed": seed}) as writer:
        for image, action, state in zip(frames, actions, states, strict=True):
            writer.append(image, action, states=state if extra else None)
    read = open_episodes(path)
    assert torch.equal(read.observations, torch.cat(frames))
    assert torch.equal(read.actions, torch.cat(actions))
    assert read.states is None if not extra else torch.equal(read.states, torch.cat(states))
    assert read.proprioception is None
    assert read.lengths.tolist() == steps
    assert read.starts.tolist() == [sum(n + 1 for n in steps[:k]) for k in range(len(steps))]
    assert read.manifest == {"seed": seed}


def test_what_was_earned_is_read_as_it_was_written(tmp_path):
    rewards, success = torch.randn(5, 3), torch.rand(5, 4) > 0.5
    terminal = torch.zeros(5, 3, dtype=torch.bool)
    terminal[::2, -1] = True
    frames, actions = images(5, 4, 2, 5, 5), torch.randn(5, 3, 2)
    with EpisodeWriter(tmp_path / "a.h5", {}) as writer:
        some = Earned(rewards=rewards[:2], terminal=terminal[:2], success=success[:2])
        writer.append(frames[:2], actions[:2], earned=some)
        for one in (2, 3, 4):
            alone = Earned(rewards=rewards[one], terminal=terminal[one], success=success[one])
            writer.append(frames[one], actions[one], earned=alone)
    earned = open_episodes(tmp_path / "a.h5").earned
    assert torch.equal(earned.rewards, rewards.flatten())
    assert torch.equal(earned.terminal, terminal.flatten())
    assert torch.equal(earned.success, success.flatten())
    with h5py.File(tmp_path / "a.h5", "r") as file:
        assert np.array_equal(file["success"][...], success.flatten().numpy())


def test_recordings_that_earned_nothing_are_the_files_they_were(tmp_path):
    """The hash is from before anything could be earned."""
    with EpisodeWriter(tmp_path / "a.h5", {"seed": 0}) as writer:
        frames = torch.arange(4 * 3 * 25, dtype=torch.int64).remainder(251).to(torch.uint8)
        writer.append(frames.view(4, 3, 5, 5), torch.arange(6.0).view(3, 2), torch.arange(8.0).view(4, 2))
    read = open_episodes(tmp_path / "a.h5")
    assert read.content_hash == "9e882b660f44ff9111563912a85242ca2b461e4fdfd9def77dcf221b878bb1be"
    assert read.earned == Earned()


@pytest.mark.parametrize(
    "earned, message",
    [
        (Earned(rewards=torch.zeros(4)), r"rewards \(4,\) do not fit"),
        (Earned(rewards=torch.zeros(3), terminal=torch.zeros(2) > 0), r"terminal \(2,\) do not fit"),
        (Earned(rewards=torch.zeros(3), success=torch.zeros(3) > 0), r"success \(3,\) do not fit"),
        (Earned(rewards=torch.tensor([0.0, torch.inf, 0.0])), "rewards of episode 1 or after hold"),
        (Earned(), r"earlier episodes had columns \['actions', 'rewards'\], this one has \['actions'\]"),
    ],
)
def test_what_was_earned_fits_the_actions_and_frames(tmp_path, earned, message):
    frames, actions = images(4, 2, 5, 5), torch.zeros(3, 2)
    whole = {
        name: torch.zeros(4 if name == "success" else 3, dtype=column.dtype)
        for name, column in (earned.columns() or {"rewards": torch.zeros(3)}).items()
    }
    with EpisodeWriter(tmp_path / "a.h5", {}) as writer:
        writer.append(frames, actions, earned=Earned(**whole))
        with pytest.raises(InputError, match=message):
            writer.append(frames, actions, earned=earned)


def test_many_at_once_is_one_by_one(tmp_path):
    frames, actions = images(7, 4, 2, 5, 5), torch.randn(7, 3, 2)
    with EpisodeWriter(tmp_path / "many.h5", {}) as writer:
        writer.append(frames[:3], actions[:3])
        writer.append(frames[3:], actions[3:])
    with EpisodeWriter(tmp_path / "single.h5", {}) as writer:
        for image, action in zip(frames, actions, strict=True):
            writer.append(image, action)
    assert same(open_episodes(tmp_path / "many.h5"), open_episodes(tmp_path / "single.h5"))
    assert (tmp_path / "many.h5").read_bytes() == (tmp_path / "single.h5").read_bytes()


def test_the_content_hash_is_of_the_content(tmp_path):
    def record(name, manifest, change=0.0):
        with EpisodeWriter(tmp_path / name, manifest) as writer:
            writer.append(images(4, 2, 5, 5), torch.full((3, 2), 1 + change))
        return open_episodes(tmp_path / name).content_hash

    first = record("a", {"note": "first"})
    assert record("b", {"note": "second"}) == first
    assert record("c", {"note": "first"}, change=1e-6) != first


def test_any_hdf5_reader_opens_it(small_path, small):
    with h5py.File(small_path, "r") as file:
        assert np.array_equal(file["observations"][...], small.observations.numpy())
        assert np.array_equal(file["actions"][...], small.actions.numpy())


def test_any_flipped_byte_is_refused(small_path, tmp_path):
    whole = small_path.read_bytes()
    path = tmp_path / "flipped.h5"
    generator = np.random.default_rng(0)
    offsets = {
        0,
        7,
        8,
        20,
        60,
        100,
        511,
        512,
        len(whole) - 1,
        *generator.integers(0, len(whole), 400).tolist(),
    }
    for offset in offsets:
        damaged = bytearray(whole)
        damaged[offset] ^= int(generator.integers(1, 256))
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"flipped\.h5"):
            open_episodes(path)


def test_any_truncation_is_refused(small_path, tmp_path):
    whole = small_path.read_bytes()
    path = tmp_path / "cut.h5"
    for length in [0, 1, 8, 100, 511, 512, 513, len(whole) - 1, *range(600, len(whole), 97)]:
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cut\.h5"):
            open_episodes(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(InputError, match="not the bytes that were written"):
        open_episodes(path)


def test_files_that_are_something_else_are_refused_in_words(tmp_path, small_path):
    cases = {"text.h5": b"not at all", "empty.h5": b""}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["observations"] = np.zeros((3, 2, 4, 4), np.uint8)
    edited = tmp_path / "edited.h5"
    shutil.copy(small_path, edited)
    with h5py.File(edited, "r+") as file:
        file["actions"][0, 0] = 7.0
    (tmp_path / "folder.h5").mkdir()
    reasons = {
        "text.h5": "not an HDF5 file of jepaplan",
        "empty.h5": "is empty",
        "foreign.h5": "HDF5, but not written by jepaplan",
        "edited.h5": "damaged or edited",
        "folder.h5": "no such file",
        "missing.h5": "no such file",
    }
    for name, reason in reasons.items():
        with pytest.raises(InputError, match=reason) as caught:
            open_episodes(tmp_path / name)
        assert name in str(caught.value)


KILLED = """
import os, sys, torch
from jepaplan.data.episodes import EpisodeWriter
with EpisodeWriter(sys.argv[1], {}) as writer:
    for _ in range(40):
        writer.append(torch.randint(0, 256, (6, 2, 8, 8), dtype=torch.uint8), torch.randn(5, 2))
    os._exit(9)
"""


def test_a_killed_recording_leaves_no_file_and_its_remains_say_why(tmp_path):
    path = tmp_path / "killed.h5"
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert not path.exists()
    (remains,) = tmp_path.iterdir()
    with pytest.raises(InputError, match="stopped before it was finished"):
        open_episodes(remains)


FULL = """
import resource, signal, sys, torch
from jepaplan.data.episodes import EpisodeWriter
from jepaplan.types import InputError
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    with EpisodeWriter(sys.argv[1], {}) as writer:
        for _ in range(100):
            writer.append(torch.randint(0, 256, (9, 2, 8, 8), dtype=torch.uint8), torch.randn(8, 2))
except InputError as reason:
    print(reason)
    sys.exit(3)
"""


@pytest.mark.parametrize("limit", [100, 2000, 50_000, 117_000, 130_000])
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, limit):
    """The limits stop the recording at its opening, at its frames and at its closing."""
    path = tmp_path / "full.h5"
    command = [sys.executable, "-c", FULL, str(path), str(limit)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 3, ended.stderr
    assert f"{path}: could not be written" in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_sealing_keeps_the_old_file(tmp_path, small_path, monkeypatch):
    path = tmp_path / "kept.h5"
    shutil.copy(small_path, path)

    def no_space(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sealed_file.os, "fsync", no_space)
    with (
        pytest.raises(InputError, match=r"kept\.h5: could not be written .*No space left"),
        EpisodeWriter(path, {}) as writer,
    ):
        writer.append(images(3, 1, 4, 4), torch.randn(2, 1))
    assert path.read_bytes() == small_path.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["kept.h5"]


def test_an_error_in_the_recording_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), EpisodeWriter(tmp_path / "a.h5", {}) as writer:
        writer.append(images(3, 1, 4, 4), torch.randn(2 // 0, 1))
    with pytest.raises(InputError, match="no episode"), EpisodeWriter(tmp_path / "a.h5", {}):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "frames, actions, extra, message",
    [
        (images(4, 2, 5, 5), torch.randn(4, 2), {}, r"T \+ 1 frames"),
        (images(1, 2, 5, 5), torch.randn(0, 2), {}, "T at least 1"),
        (images(4, 2, 5, 5).float(), torch.randn(3, 2), {}, "uint8"),
        (images(4, 2, 5, 5), torch.tensor([[1.0, 2], [3, float("nan")], [5, 6]]), {}, "not finite"),
        (images(4, 2, 5, 5), torch.tensor([[1.0, 2], [3, float("inf")], [5, 6]]), {}, "not finite"),
        (images(4, 2, 6, 5), torch.randn(3, 2), {}, "images were"),
        (images(4, 2, 5, 5), torch.randn(3, 3), {}, "2 components in earlier episodes, now 3"),
        (
            images(4, 2, 5, 5),
            torch.randn(3, 2),
            {"states": torch.randn(4, 1)},
            "earlier episodes had columns",
        ),
        (images(4, 2, 5, 5), torch.randn(3, 2), {"states": torch.randn(3, 1)}, "columns|do not fit"),
    ],
)
def test_episodes_that_do_not_fit_are_refused(tmp_path, frames, actions, extra, message):
    def record():
        with EpisodeWriter(tmp_path / "a.h5", {}) as writer:
            writer.append(images(4, 2, 5, 5), torch.randn(3, 2))
            writer.append(frames, actions, **extra)

    with pytest.raises(InputError, match=message):
        record()
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_is_json(tmp_path):
    with pytest.raises(InputError, match="manifest"):
        EpisodeWriter(tmp_path / "a.h5", {"world": object()})


def rewritten(path, small_path, change) -> None:
    """A sealed file whose columns are wrong all the same, as a faulty writer would make it."""
    shutil.copy(small_path, path)
    with h5py.File(path, "r+") as file:
        change(file)
    sealed_file.seal(path, path)


def swap(name, value):
    def change(file):
        del file[name]
        if value is not None:
            file[name] = value(np.zeros(0)) if callable(value) else value

    return change


def poison(name):
    def change(file):
        file[name][3, 0] = np.nan

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (poison("actions"), "actions holds a number that is not finite, first in row 3"),
        (poison("states"), "states holds a number that is not finite, first in row 3"),
        (swap("actions", np.zeros((32, 3), np.float32)), r"need 39 frames; the columns hold 32 actions"),
        (swap("states", np.zeros((38, 4), np.float32)), "states has 38 rows"),
        (swap("actions", np.zeros((33, 3), np.float64)), "actions is torch.float64"),
        (swap("lengths", np.array([5, 1, 12, 3, 7, 6])), "need 40 frames"),
        (swap("lengths", np.array([6, 0, 12, 3, 7, 5])), "without gaps"),
        (swap("starts", np.array([0, 6, 8, 21, 25, 34])), "without gaps"),
        (swap("actions", None), "actions"),
        (swap("manifest", "{"), "not a recording that this version reads"),
        (swap("observations", np.zeros((39, 2, 6, 7), np.float32)), "float32"),
    ],
)
def test_columns_that_do_not_fit_are_refused_when_opened(tmp_path, small_path, change, message):
    path = tmp_path / "wrong.h5"
    rewritten(path, small_path, change)
    with pytest.raises(InputError, match=message) as caught:
        open_episodes(path)
    assert "wrong.h5" in str(caught.value)
