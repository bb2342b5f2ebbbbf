"""Clips: normalised as ImageNet's pixels are, cropped and mirrored alike in all frames."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.data.clips import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AugmentationConfig,
    ClipBatch,
    ClipNormaliser,
    apply_views,
    crop_box,
    draw_views,
    resize,
)
from jepaplan.data.tubelet_masks import BOTH_RANGES, draw_masks
from jepaplan.training.distributed import Processes, map_tensors, shard
from jepaplan.types import InputError


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=seeded(seed), dtype=torch.uint8)


def test_pixels_are_normalised_channel_by_channel():
    clips = noise(2, 4, 3, 6, 5)
    normalised = ClipNormaliser()(clips)
    for channel in range(3):
        expected = (clips[:, :, channel].float() / 255 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        torch.testing.assert_close(normalised[:, :, channel], expected)


def test_the_statistics_are_saved_with_the_weights():
    assert set(ClipNormaliser().state_dict()) == {"mean", "std"}
    assert ClipNormaliser().double()(noise(1, 2, 3, 4, 4)).dtype == torch.float64


def test_clips_that_are_not_what_they_should_be_are_refused():
    with pytest.raises(InputError, match=r"movedim\(-1, 2\)"):
        ClipNormaliser()(noise(1, 2, 8, 8, 3))
    with pytest.raises(InputError, match="expected uint8"):
        ClipNormaliser()(noise(1, 2, 3, 8, 8).float())
    with pytest.raises(InputError, match="a positive deviation per channel"):
        ClipNormaliser((0.5, 0.5), (0.1, 0.0))


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    height=st.integers(8, 300),
    width=st.integers(8, 300),
    low=st.floats(0.1, 0.9),
)
def test_crops_lie_in_the_frame_and_have_the_area_and_the_shape_asked_for(seed, height, width, low):
    config = AugmentationConfig(area=(low, 1.0))
    views = draw_views(4, config, seeded(seed))
    for item in range(4):
        top, left, tall, wide = crop_box(views, item, height, width)
        assert 0 <= top <= top + tall <= height
        assert 0 <= left <= left + wide <= width
        assert min(tall, wide) >= 1
        # Each side is rounded by half a pixel at most.
        assert (wide - 0.5) / (tall + 0.5) <= 1.35 + 1e-6 or tall == height
        assert (wide + 0.5) / (tall - 0.5) >= 0.75 - 1e-6 or wide == width
        if 0.75 <= width / height <= 1.35:
            assert (tall + 0.5) * (wide + 0.5) >= low * height * width * (1 - 1e-6)


def test_a_frame_that_no_crop_fits_gives_its_middle():
    """A wide frame, crops as large as the frame: none of them fits."""
    config = AugmentationConfig(area=(0.99, 1.0))
    views = draw_views(3, config, seeded(0))
    for item in range(3):
        assert crop_box(views, item, 100, 400) == (0, (400 - 135) // 2, 100, 135)
        assert crop_box(views, item, 400, 100) == ((400 - 133) // 2, 0, 133, 100)


def test_areas_and_mirrors_follow_their_laws():
    views = draw_views(4000, AugmentationConfig(area=(0.3, 1.0), mirror=0.25), seeded(0))
    assert views.area.mean() == pytest.approx(0.65, abs=0.01)
    assert views.aspect.log().mean() == pytest.approx(0.5 * torch.tensor(0.75 * 1.35).log().item(), abs=0.01)
    assert 0.75 <= views.aspect.min() <= views.aspect.max() <= 1.3501
    assert views.mirrored.float().mean() == pytest.approx(0.25, abs=0.03)
    assert not draw_views(500, AugmentationConfig(mirror=0.0), seeded(0)).mirrored.any()


def test_all_frames_of_a_clip_are_seen_through_one_view():
    still = noise(6, 1, 3, 40, 48).expand(-1, 5, -1, -1, -1)
    seen = apply_views(still, draw_views(6, AugmentationConfig(), seeded(1)), (32, 32))
    assert seen.dtype == torch.uint8
    assert (seen == seen[:, :1]).all()
    assert not torch.equal(seen[0], seen[1])


def test_the_whole_frame_is_left_as_it_is_and_mirrored_exactly():
    clips = noise(40, 3, 3, 16, 16)
    config = AugmentationConfig(area=(1.0, 1.0), aspect=(1.0, 1.0), mirror=0.5)
    views = draw_views(40, config, seeded(2))
    seen = apply_views(clips, views, (16, 16))
    for item in range(40):
        expected = clips[item].flip(-1) if views.mirrored[item] else clips[item]
        assert torch.equal(seen[item], expected)
    assert views.mirrored.any()
    assert not views.mirrored.all()


def test_a_crop_shows_what_was_there():
    """Levels rise by one per pixel to the right, so a crop's mean tells where it was taken."""
    ramp = torch.arange(64.0).expand(5, 2, 1, 64, 64)
    views = draw_views(5, AugmentationConfig(mirror=0.0), seeded(4))
    seen = apply_views(ramp, views, (32, 32))
    assert seen.dtype == torch.float32
    for item in range(5):
        _, left, _, width = crop_box(views, item, 64, 64)
        assert seen[item].mean() == pytest.approx(left + (width - 1) / 2, abs=0.05)


def test_clips_of_several_sizes_become_a_batch():
    clips = [noise(4, 3, 30, 40), noise(4, 3, 90, 60)]
    views = draw_views(2, AugmentationConfig(), seeded(5))
    seen = apply_views(clips, views, (24, 32))
    assert seen.shape == (2, 4, 3, 24, 32)
    assert torch.equal(apply_views(clips[:1], shard(views, 2, Processes(0, 2)), (24, 32)), seen[:1])
    with pytest.raises(InputError, match="draw one per clip"):
        apply_views(clips[:1], views, (24, 32))


@given(level=st.integers(0, 255))
def test_resizing_keeps_flat_pictures_flat(level):
    flat = torch.full((2, 3, 20, 30), level, dtype=torch.uint8)
    assert (resize(flat, (7, 45)) == level).all()


def test_batches_are_shared_by_processes_and_moved_whole():
    batch = ClipBatch(noise(6, 4, 3, 32, 32), draw_masks((2, 4, 4), 6, BOTH_RANGES, seeded(0)))
    parts = [shard(batch, 6, Processes(rank, 2)) for rank in range(2)]
    assert torch.equal(torch.cat([part.clips for part in parts]), batch.clips)
    assert torch.equal(torch.cat([part.masks[1].target for part in parts]), batch.masks[1].target)
    moved = map_tensors(lambda tensor: tensor + 1, batch)
    assert torch.equal(moved.masks[0].context, batch.masks[0].context + 1)


def test_masks_of_other_clips_are_refused():
    masks = draw_masks((2, 4, 4), 6, BOTH_RANGES, seeded(0))
    with pytest.raises(InputError, match="draw one mask per clip"):
        ClipBatch(noise(5, 4, 3, 32, 32), masks)
    with pytest.raises(InputError, match="does not divide"):
        ClipBatch(noise(6, 4, 3, 30, 32), masks)


@pytest.mark.parametrize(
    "nonsense, words",
    [
        ({"area": (0.0, 1.0)}, r"shares in \(0, 1\]"),
        ({"aspect": (1.5, 0.5)}, "both positive"),
        ({"mirror": 1.5}, "a probability"),
        ({"attempts": 0}, "at least 1"),
    ],
)
def test_augmentations_that_mean_nothing_are_refused(nonsense, words):
    with pytest.raises(InputError, match=words):
        AugmentationConfig(**nonsense)
