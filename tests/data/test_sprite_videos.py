"""Generated videos: labels independent of each other, motion in no single frame, answers that are true."""

import hashlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.data.sprite_videos import (
    APPEARANCES,
    BouncingConfig,
    SpriteConfig,
    balanced_labels,
    bouncing_states,
    draw_bounces,
    draw_motion_scenes,
    grid_cell,
    open_sprite_videos,
    write_bouncing_videos,
    write_sprite_videos,
)
from jepaplan.data.video import open_video
from jepaplan.data.video_clips import ClipConfig, VideoClips
from jepaplan.data.video_sets import VideoSet
from jepaplan.envs.sprites import MOTIONS, draw_scenes
from jepaplan.types import InputError

SMALL = SpriteConfig(size=32, radius=(3.5, 4.5), frames=6)
PAIRS = len(MOTIONS) * len(APPEARANCES)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def digests(folder):
    return [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()
    ]


@settings(deadline=None)
@given(count=st.integers(1, 3 * PAIRS), seed=st.integers(0, 99))
def test_every_motion_meets_every_appearance_equally_often(count, seed):
    motion, appearance = balanced_labels(count, len(MOTIONS), seeded(seed))
    table = torch.zeros(len(MOTIONS), len(APPEARANCES), dtype=torch.int64)
    table.index_put_((motion, appearance), torch.ones(count, dtype=torch.int64), accumulate=True)
    assert set(table.flatten().tolist()) <= {count // PAIRS, count // PAIRS + 1}


def test_the_number_of_a_file_tells_no_label():
    count = 10 * PAIRS
    number = torch.arange(count).double()
    for labels in balanced_labels(count, len(MOTIONS), seeded(0)):
        ranks = [number[labels == label].mean() / count - 0.5 for label in labels.unique()]
        chance = 1 / math.sqrt(12 * count / len(ranks))
        assert max(map(abs, ranks)) < 4 * chance
        successors = (labels[1:] == labels[:-1]).double().mean()
        assert float(successors) == pytest.approx(1 / len(ranks), abs=4 / math.sqrt(len(ranks) * count))


@pytest.fixture(scope="module")
def scenes():
    """Scenes of all motions, and their motions."""
    motion, appearance = balanced_labels(10 * PAIRS, len(MOTIONS), seeded(0))
    return draw_motion_scenes(motion, appearance, SMALL, seeded(1)), motion


def test_places_and_headings_are_uniform_in_every_frame_of_every_motion(scenes):
    """On a circle the mean of exp(i k angle) over n uniform draws is about 1 / sqrt(n), for k = 1, 2."""
    drawn, motion = scenes
    angles = torch.cat([drawn.centre * (2 * math.pi / SMALL.size), drawn.heading[..., None]], dim=-1)
    lengths = []
    for number in range(len(MOTIONS)):
        for wave in (1, 2):
            part = torch.polar(torch.ones(()), wave * angles[motion == number])
            lengths.append(part.mean(0).abs().square() * len(part))
    lengths = torch.stack(lengths).flatten()
    # n |mean|^2 follows the exponential law of mean 1; so many numbers rarely exceed log(numbers) + 6.
    assert lengths.max() < math.log(len(lengths)) + 6
    assert float(lengths.mean()) == pytest.approx(1, abs=0.15)


def test_two_places_of_a_clip_keep_their_distance(scenes):
    drawn, _ = scenes
    apart = (drawn.centre[:, 0] - drawn.centre[:, 1]).remainder(SMALL.size)
    assert torch.minimum(apart, SMALL.size - apart).min() > SMALL.size / 3 - 1e-3


def test_one_frame_tells_appearance_but_not_motion(scenes):
    """The nearest class mean, a linear reader, judges clips that it has not seen by one of their frames."""
    drawn, motion = scenes
    pictures = draw_scenes(drawn)
    half = len(motion) // 2

    def right(features, labels):
        means = torch.stack([features[:half][labels[:half] == k].mean(0) for k in labels.unique()])
        return float((torch.cdist(features[half:], means).argmin(1) == labels[half:]).double().mean())

    chance, error = 1 / len(MOTIONS), math.sqrt(0.1 * 0.9 / half)
    for frame in (0, SMALL.frames // 2, SMALL.frames - 1):
        pixels = pictures[:, frame].float().flatten(1)
        assert right(pixels, motion) < chance + 3 * error
        assert right(pixels.unflatten(1, (3, -1)).mean(-1), drawn.colour) > 0.35


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sprites") / "set"
    return folder, write_sprite_videos(folder, 40, SMALL, seed=3)


def test_files_and_lists_say_the_same(written):
    folder, films = written
    assert len(films) == 40
    assert films.classes == {"motion": MOTIONS, "appearance": APPEARANCES}
    for kind in ("motion", "appearance"):
        listed = VideoSet.listed(folder / f"{kind}.csv")
        assert listed.paths == films.paths
        assert torch.equal(listed.labels["label"], films.labels[kind])
    with open_video(films.paths[0]) as video:
        assert (len(video.timestamps), video.fps, video.height, video.width) == (6, 8, 32, 32)
    again = open_sprite_videos(folder)
    assert again.paths == films.paths
    assert again.classes == films.classes


def test_the_seed_decides_every_byte(written, tmp_path):
    folder, _ = written
    write_sprite_videos(tmp_path / "same", 40, SMALL, seed=3)
    assert digests(tmp_path / "same") == digests(folder)
    write_sprite_videos(tmp_path / "other", 40, SMALL, seed=4)
    assert not set(digests(tmp_path / "other")) & set(digests(folder))


def test_writing_again_changes_nothing_and_other_videos_are_refused(written):
    folder, films = written
    before = digests(folder)
    assert write_sprite_videos(folder, 40, SMALL, seed=3).paths == films.paths
    assert digests(folder) == before
    with pytest.raises(InputError, match="something else"):
        write_sprite_videos(folder, 40, SMALL, seed=4)
    with pytest.raises(InputError, match="no generated videos"):
        open_sprite_videos(folder / "clips")


def test_writing_that_was_stopped_leaves_nothing(tmp_path):
    def stop(done, count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_sprite_videos(tmp_path / "set", 4, SMALL, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_decoded_sprites_move_as_their_label_says(tmp_path):
    """The centre of what differs from the ground, as an angle on the torus, advances in the direction."""
    config = SpriteConfig(frames=16, second_sprite=0.0, turns=False)
    films = write_sprite_videos(tmp_path / "set", 40, config)
    clips = VideoClips([films], ClipConfig(frames=16, fps=None))
    batch = clips.load(clips.at(torch.arange(40), 0.0))
    pictures = batch.clips.float()
    ground = pictures.median(dim=1, keepdim=True).values
    sprite = (pictures - ground).abs().sum(2).sub(40).clamp(min=0)
    wave = torch.polar(torch.ones(64), torch.arange(64) * (2 * math.pi / 64))
    across = torch.stack([(sprite.sum(2) * wave).sum(-1), (sprite.sum(3) * wave).sum(-1)], dim=-1)
    step = (across[:, 1:] * across[:, :-1].conj()).sum(1).angle()  # x and y, summed over the clip
    angle = torch.atan2(step[:, 1], step[:, 0])
    found = (angle / (2 * math.pi / 8)).round().long() % 8
    assert (found == batch.labels["motion"]).double().mean() > 0.95


@pytest.fixture(scope="module")
def bouncing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bouncing") / "set"
    config = BouncingConfig()
    return folder, config, write_bouncing_videos(folder, 48, config, seed=0)


def test_the_last_frame_shows_the_sprite_where_the_states_say(bouncing):
    folder, _, films = bouncing
    clips = VideoClips([films], ClipConfig(frames=8, fps=4.0))
    pictures = clips.load(clips.at(torch.arange(48), 1.0)).clips.float()
    ground = pictures.median(dim=1).values
    sprite = (pictures[:, -1] - ground).abs().sum(1).sub(60).clamp(min=0)
    axis = torch.arange(64.0)
    weight = sprite.sum((-1, -2))
    seen = torch.stack([(sprite.sum(1) * axis).sum(-1), (sprite.sum(2) * axis).sum(-1)], -1) / weight[:, None]
    error = (seen - bouncing_states(folder)[:, :2]).norm(dim=-1)
    assert error.median() < 1.5
    assert (error < 5).double().mean() > 0.9


def test_the_answer_is_where_the_sprite_is_a_second_later(bouncing):
    folder, config, films = bouncing
    place, velocity = bouncing_states(folder).double().split(2, dim=-1)
    low, high = config.box
    for _ in range(1000):
        place = place + velocity / 1000
        over, under = place > high, place < low
        place = torch.where(over, 2 * high - place, torch.where(under, 2 * low - place, place))
        velocity = torch.where(over | under, -velocity, velocity)
    # A place within a hundredth of a pixel of a line may be rounded to either side.
    scaled = (place - low) * config.bins / (high - low)
    clear = ((scaled - scaled.round()).abs() > 0.01).all(-1)
    assert clear.double().mean() > 0.9
    assert torch.equal(grid_cell(place.float(), config)[clear], films.labels["anticipation"][clear])


def test_all_cells_are_equally_likely_and_walls_matter():
    config = BouncingConfig()
    bounces = draw_bounces(16000, config, seeded(0))
    counts = bounces.answer.bincount(minlength=16).double()
    assert ((counts - 1000).square() / 1000).sum() < 38  # chi squared of 15 degrees: one in a thousand
    straight = grid_cell(bounces.state[:, :2] + bounces.state[:, 2:], config)
    resting = grid_cell(bounces.state[:, :2], config)
    # Going straight on is far from always right, and standing still is worse than guessing.
    assert 0.6 < (straight == bounces.answer).double().mean() < 0.8
    assert (resting == bounces.answer).double().mean() < 1 / 16


def test_configurations_that_make_no_sense():
    for wrong, word in (
        ({"size": 33}, "even size"),
        ({"frames": 0}, "frames >= 1"),
        ({"speed": (2.0, 1.0)}, "speed is"),
        ({"second_sprite": 1.5}, "probability"),
        ({"radius": (5.0, 20.0)}, "crowd"),
    ):
        with pytest.raises(InputError, match=word):
            SpriteConfig(**wrong)
    with pytest.raises(InputError, match="bins >= 2"):
        BouncingConfig(bins=1)
    with pytest.raises(InputError, match="at least 1"):
        balanced_labels(0, 10, seeded(0))
