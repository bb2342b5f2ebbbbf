"""Features of clips and the baselines a pretrained encoder has to beat, on clips whose answer is known."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from jepaplan.data.clips import ClipNormaliser
from jepaplan.evaluation.video_probe_features import (
    FeatureConfig,
    encode_clips,
    fresh_module,
    middle_frame_repeated,
    pixel_features,
    shuffled_time,
)
from jepaplan.evaluation.video_probe_supervised import LabelledClips, SupervisedConfig, train_supervised
from jepaplan.evaluation.video_probe_sweep import Sweep
from jepaplan.evaluation.video_probes import AttentiveProbe, LinearProbe, draw_splits, probe_features
from jepaplan.models.video_vit import VideoTransformer, VideoTransformerConfig
from jepaplan.types import InputError

TINY = VideoTransformerConfig(frames=4, image=32, patch=8, tubelet=2, width=48, depth=2, heads=2)
WHOLE = FeatureConfig(kept="float32")
SWEEP = Sweep(learning_rates=(1e-2, 3e-3), weight_decays=(0.01,), epochs=10, batch=32)
QUERY = AttentiveProbe(depth=1, heads_per_block=2, sweep=SWEEP)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def noise_clips(seed, items, frames=4, size=32):
    shape = (items, frames, 3, size, size)
    return torch.randint(0, 256, shape, generator=seeded(seed), dtype=torch.uint8)


def moving_clips(seed, items):
    """A bar that goes right or left (class 1), from anywhere on a ring: any one frame is like any other."""
    generator = seeded(seed)
    labels = torch.arange(items) % 2
    start = torch.randint(32, (items,), generator=generator)
    clips = torch.randint(0, 60, (items, 4, 3, 32, 32), generator=generator, dtype=torch.uint8)
    for item in range(items):
        for frame in range(4):
            left = int(start[item]) + (1 - 2 * int(labels[item])) * 4 * frame
            clips[item, frame, :, :, [(left + column) % 32 for column in range(6)]] = 230
    return clips, labels


def tiny_encoder(seed=0):
    return fresh_module(lambda: VideoTransformer(TINY), seeded(seed))


def test_features_do_not_depend_on_the_batch_nor_on_the_axis_of_views():
    clips, encoder = noise_clips(0, 6), tiny_encoder()
    whole = encode_clips(encoder, clips, WHOLE)
    parts = encode_clips(encoder, clips, FeatureConfig(batch=4, kept="float32"))
    views = encode_clips(encoder, clips.unflatten(0, (3, 2)), WHOLE)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(views.flatten(0, 1), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whole, encoder(ClipNormaliser()(clips)), atol=1e-5, rtol=1e-5)
    assert encode_clips(encoder, clips, FeatureConfig()).dtype == torch.float16


def test_bfloat16_stays_near():
    clips, encoder = noise_clips(1, 4), tiny_encoder()
    whole = encode_clips(encoder, clips, WHOLE)
    rough = encode_clips(encoder, clips, FeatureConfig(kept="float32", precision="bfloat16"))
    assert 0 < (rough - whole).abs().mean() < 0.02 * whole.abs().mean()


def test_features_too_large_for_half_precision_are_refused():
    class Loud(nn.Module):
        def forward(self, clips):
            return 1e6 * clips.flatten(1)[:, None, :4]

    with pytest.raises(InputError, match="kept='float32'"):
        encode_clips(Loud(), noise_clips(2, 2), FeatureConfig())
    assert encode_clips(Loud(), noise_clips(2, 2), WHOLE).abs().max() > 1e6


def test_a_fresh_encoder_comes_from_its_generator_alone():
    before = torch.get_rng_state()
    first = tiny_encoder(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    second, third = tiny_encoder(3), tiny_encoder(4)
    for ours, same, other in zip(first.parameters(), second.parameters(), third.parameters(), strict=True):
        assert torch.equal(ours, same)
        assert ours.dim() < 2 or not torch.equal(ours, other)
        assert not ours.requires_grad


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), frames=st.integers(2, 8), views=st.integers(1, 3))
def test_shuffling_time_keeps_every_frame(seed, frames, views):
    clips = noise_clips(seed, 8 * views, frames, 4).unflatten(0, (8, views))
    mixed = shuffled_time(clips, seeded(seed))
    as_sets = [
        {bytes(frame.numpy().tobytes()) for frame in clip}
        for clip in (*clips.flatten(0, 1), *mixed.flatten(0, 1))
    ]
    assert as_sets[: 8 * views] == as_sets[8 * views :]
    assert shuffled_time(clips, seeded(seed)).equal(mixed)


def test_all_orders_of_three_frames_are_equally_likely():
    clips = torch.arange(3, dtype=torch.uint8).view(1, 3, 1, 1, 1).expand(6000, -1, -1, -1, -1)
    mixed = shuffled_time(clips, seeded(5)).flatten(1).long()
    counts = (mixed @ torch.tensor([9, 3, 1])).unique(return_counts=True)[1]
    assert len(counts) == 6
    assert ((counts - 1000).abs() < 5 * (1000 * 5 / 6) ** 0.5).all()


def test_the_middle_frame_is_everywhere():
    clips = noise_clips(6, 4).unflatten(0, (2, 2))
    still = middle_frame_repeated(clips)
    assert all(torch.equal(still[:, :, frame], clips[:, :, 2]) for frame in range(4))


def test_principal_components_are_those_of_the_training_split():
    """Clips that differ by their brightness alone have one component; a test clip changes nothing."""
    brightness = torch.linspace(20, 200, 30).round()
    clips = brightness.to(torch.uint8).view(-1, 1, 1, 1, 1).expand(-1, 4, 3, 32, 32).clone()
    train = torch.arange(20)
    found = pixel_features(clips, train, size=4, width=3)
    assert found.shape == (30, 1, 3)
    along = found[:, 0, 0]
    correlation = torch.corrcoef(torch.stack([along, brightness]))[0, 1].abs()
    assert correlation > 0.9999
    assert found[:, 0, 1:].abs().max() < 1e-3 * along.abs().max()
    clips[25] = noise_clips(7, 1)[0]
    torch.testing.assert_close(pixel_features(clips, train, size=4, width=3)[:20], found[:20])
    with pytest.raises(InputError, match="two training clips"):
        pixel_features(clips, torch.arange(1))


def test_motion_needs_time_and_its_order():
    """A bar's direction: read from any encoder that sees neighbouring frames, not from one frame."""
    clips, labels = moving_clips(8, 200)
    splits, encoder = draw_splits(labels, seeded(9)), tiny_encoder(10)

    def accuracy(of, probe=QUERY):
        return probe_features(encode_clips(encoder, of, WHOLE), labels, splits, probe, seeded(11)).accuracy

    still, mixed = accuracy(middle_frame_repeated(clips)), accuracy(shuffled_time(clips, seeded(12)))
    assert still.low <= 0.5 <= still.high
    assert mixed.low <= 0.5 <= mixed.high
    known = SupervisedConfig(updates=60, batch=32, learning_rates=(2e-3,), evaluations=4,
                             head=AttentiveProbe(depth=1, heads_per_block=2))  # fmt: skip
    bound = train_supervised(
        lambda: VideoTransformer(TINY), LabelledClips(clips, labels), splits, known, seeded(13)
    )
    assert bound.accuracy.low > 0.8
    pixels = probe_features(pixel_features(clips, splits.train), labels, splits, LinearProbe(), seeded(14))
    assert pixels.accuracy.rate < bound.accuracy.rate


def test_the_upper_bound_is_chosen_by_validation():
    """Its best moment over all learning rates; a rate that learns nothing does not win."""
    clips, labels = moving_clips(15, 120)
    splits = draw_splits(labels, seeded(16))
    config = SupervisedConfig(updates=24, batch=32, learning_rates=(1e-9, 2e-3), evaluations=3,
                              head=AttentiveProbe(depth=1, heads_per_block=2))  # fmt: skip
    result = train_supervised(
        lambda: VideoTransformer(TINY), LabelledClips(clips, labels), splits, config, seeded(17)
    )
    assert result.chosen.learning_rate == 2e-3
    assert result.chosen == max(result.validation, key=lambda score: (score.accuracy, -score.loss))
    assert len(result.validation) == 2
    with pytest.raises(InputError, match="evaluations"):
        SupervisedConfig(updates=5, evaluations=6)


def test_a_head_that_learns_alone_first_loses_nothing_to_a_probe():
    """With steps too small to change anything, what is left of training is the probe."""
    clips, labels = moving_clips(18, 160)
    splits, encoder = draw_splits(labels, seeded(19)), tiny_encoder(20)
    sweep = Sweep(learning_rates=(1e-2,), weight_decays=(0.1,), epochs=30, batch=32)
    config = SupervisedConfig(updates=1, learning_rates=(1e-12,), evaluations=1, head_first=sweep,
                              head=AttentiveProbe(depth=1, heads_per_block=2))  # fmt: skip
    bound = train_supervised(
        lambda: copy.deepcopy(encoder), LabelledClips(clips, labels), splits, config, seeded(21)
    )
    probe = AttentiveProbe(depth=1, heads_per_block=2, sweep=sweep)
    read = probe_features(encode_clips(encoder, clips, WHOLE), labels, splits, probe, seeded(22))
    assert read.accuracy.rate > 0.7
    assert abs(bound.accuracy.rate - read.accuracy.rate) < 0.1
    with pytest.raises(InputError, match="one head"):
        SupervisedConfig(head_first=Sweep())
