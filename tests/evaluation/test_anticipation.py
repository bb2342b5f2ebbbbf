"""What lies ahead of a clip: ids, guesses and recall by hand, and a future that only the predictor knows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from jepaplan.data.sprite_videos import BouncingConfig, grid_cell
from jepaplan.envs.sprites import bouncing_path
from jepaplan.evaluation.anticipation import (
    CODE,
    AheadConfig,
    TokensAhead,
    bin_centres,
    constant_velocity,
    future_ids,
    hits_at,
    mean_class_recall,
    nearness,
    place_codes,
)
from jepaplan.evaluation.video_probe_features import FeatureConfig, encode_clips, fresh_module
from jepaplan.evaluation.video_probe_sweep import Sweep
from jepaplan.evaluation.video_probes import AttentiveProbe, LinearProbe, draw_splits, probe_features
from jepaplan.models.masked_predictor import MaskedPredictor, MaskedPredictorConfig
from jepaplan.models.video_vit import VideoTransformer, VideoTransformerConfig
from jepaplan.types import InputError

TINY = VideoTransformerConfig(frames=4, image=32, patch=8, tubelet=2, width=48, depth=2, heads=2)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_ids_of_the_future_by_hand():
    """The published offset: tokens of the clip, then rows x columns x int(seconds x rate / tubelet)."""
    assert future_ids((4, 2, 3), 2, AheadConfig(seconds=1.0, rate=8.0)).tolist() == list(range(48, 54))
    assert future_ids((4, 2, 3), 2, AheadConfig(seconds=0.0)).tolist() == list(range(24, 30))
    assert future_ids((4, 2, 3), 2, AheadConfig(seconds=0.99, rate=4.0))[0] == 30
    assert future_ids((1, 1, 1), 1, AheadConfig(seconds=0.3, rate=10.0)).tolist() == [4]


def test_tokens_ahead_are_the_encoders_and_the_predictors():
    def build():
        encoder = VideoTransformer(TINY)
        predictor = MaskedPredictor(48, MaskedPredictorConfig(width=24, depth=2, heads=2))
        return TokensAhead(encoder, predictor, AheadConfig(seconds=1.0, rate=4.0, mask_index=1))

    both = fresh_module(build, seeded(0))
    clips = torch.randint(0, 256, (3, 4, 3, 32, 32), dtype=torch.uint8, generator=seeded(1))
    found = encode_clips(both, clips, FeatureConfig(kept="float32"))
    alone = encode_clips(both.encoder, clips, FeatureConfig(kept="float32"))
    torch.testing.assert_close(found[:, :32, :48], alone)
    ids = torch.arange(32).expand(3, -1)
    by_hand = both.predictor(alone, ids, 64 + ids[:, :16], (2, 4, 4), 1)
    torch.testing.assert_close(found[:, 32:, :48], by_hand, atol=1e-5, rtol=1e-5)
    sooner = both.predictor(alone, ids, 32 + ids[:, :16], (2, 4, 4), 1)
    assert not torch.allclose(found[:, 32:, :48], sooner, atol=1e-4)


def test_every_token_is_told_its_place_and_no_two_alike():
    grid, ids = (2, 4, 4), torch.arange(48)  # a clip of two tubelets, and one moment after it
    codes = place_codes(ids, grid)
    assert codes.shape == (48, CODE)
    assert torch.pdist(codes).min() > 0.1
    assert codes[0].tolist() == [0.0] * 4 + [1.0] * 4 + ([0.0] * 6 + [1.0] * 6) * 2
    torch.testing.assert_close(codes[21, 8:], codes[5, 8:])  # the same place, later
    encoder = fresh_module(lambda: VideoTransformer(TINY), seeded(0))
    clips = torch.randint(0, 256, (3, 4, 3, 32, 32), dtype=torch.uint8, generator=seeded(1))
    whole = FeatureConfig(kept="float32")
    placed = encode_clips(TokensAhead(encoder, None, AheadConfig()).eval(), clips, whole)
    torch.testing.assert_close(placed[..., :48], encode_clips(encoder, clips, whole))
    torch.testing.assert_close(placed[2, :, 48:], codes[:32])


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), seconds=st.floats(0, 4))
def test_bouncing_on_is_what_the_world_does(seed, seconds):
    """From the last known state, the guess with walls finds the very cell that the label names."""
    config = BouncingConfig()
    low, high = config.box
    generator = seeded(seed)
    start = low + (high - low) * torch.rand(40, 2, generator=generator)
    velocity = 60 * torch.rand(40, 2, generator=generator) - 30
    places, speeds = bouncing_path(start, velocity, torch.tensor([1.9, 1.9 + seconds]), config.box)
    guess = constant_velocity(places[:, 0], speeds[:, 0], seconds, config.box)
    torch.testing.assert_close(guess, places[:, 1], atol=1e-3, rtol=1e-4)
    best = nearness(guess, bin_centres(config)).argmax(dim=1)
    assert (best == grid_cell(places[:, 1], config)).float().mean() > 0.97


def test_guesses_by_hand():
    places, velocities = torch.tensor([[1.0, 2.0], [9.0, 5.0]]), torch.tensor([[2.0, -1.0], [4.0, 0.0]])
    ahead = constant_velocity(places, velocities, 0.5)
    assert ahead.tolist() == [[2.0, 1.5], [11.0, 5.0]]
    assert constant_velocity(places, velocities, 0.5, (0.0, 10.0)).tolist() == [[2.0, 1.5], [9.0, 5.0]]


def test_every_cell_is_nearest_to_its_own_centre():
    config = BouncingConfig(bins=3)
    centres = bin_centres(config)
    assert grid_cell(centres, config).tolist() == list(range(9))
    assert nearness(centres, centres).argmax(dim=1).tolist() == list(range(9))


def test_hits_by_hand():
    scores = torch.tensor([[0.1, 0.5, 0.4], [0.7, 0.1, 0.2], [0.3, 0.3, 0.3]])
    labels = torch.tensor([2, 2, 0])
    assert hits_at(scores, labels, 1).tolist() == [False, False, False]
    assert hits_at(scores, labels, 2).tolist() == [True, True, False]  # equal scores are no knowledge
    assert hits_at(scores, labels, 3).tolist() == [True, True, True]
    with pytest.raises(InputError, match="k=4"):
        hits_at(scores, labels, 4)
    with pytest.raises(InputError, match="finite"):
        hits_at(scores * float("nan"), labels, 1)


def test_recall_is_averaged_over_classes_not_over_items():
    """Class 0: 3 of 4, class 2: 0 of 1; class 1 is not there."""
    hits = torch.tensor([True, True, True, False, False])
    found = mean_class_recall(hits, torch.tensor([0, 0, 0, 0, 2]), seeded(0))
    assert found.mean == pytest.approx((0.75 + 0.0) / 2)
    assert found.low < found.mean < found.high
    seeds = torch.stack([hits, ~hits])
    both = mean_class_recall(seeds, torch.tensor([0, 0, 0, 0, 2]), seeded(0))
    assert both.mean == pytest.approx((0.5 + 0.5) / 2)


def test_the_interval_of_a_perfect_recall_is_not_a_point():
    found = mean_class_recall(torch.ones(3, 20, dtype=torch.bool), torch.arange(20) % 4, seeded(0))
    assert found.mean == found.high == 1.0
    assert 0.8 < found.low < 0.9
    nothing = mean_class_recall(torch.zeros(20, dtype=torch.bool), torch.arange(20) % 4, seeded(0))
    assert nothing.mean == nothing.low == 0.0
    assert 0.1 < nothing.high < 0.2


def test_the_intervals_cover_the_recall_they_estimate():
    """Classes of unequal size with hit rates of their own; the truth is the mean of the rates."""
    rates, shares = torch.tensor([0.9, 0.5, 0.2]), torch.tensor([0.6, 0.25, 0.15])
    covered = 0
    for seed in range(40):
        generator = seeded(seed)
        labels = torch.multinomial(shares, 200, replacement=True, generator=generator)
        hits = torch.rand(200, generator=generator) < rates[labels]
        found = mean_class_recall(hits, labels, generator, resamples=1000)
        covered += found.low <= float(rates.mean()) <= found.high
    assert covered >= 34


def test_a_future_that_only_the_further_tokens_know():
    """Tokens of the clip are noise; those ahead name the label: recall at one of a probe over two seeds."""
    generator = seeded(2)
    labels = torch.randint(4, (200,), generator=generator)
    seen = torch.randn(200, 6, 8, generator=generator)
    ahead = torch.randn(200, 4, 8, generator=generator) + 8 * functional.one_hot(labels, 8)[:, None]
    splits = draw_splits(labels, seeded(3))
    sweep = Sweep(learning_rates=(1e-2,), weight_decays=(0.01,), epochs=25, batch=32)
    probes = (LinearProbe(sweep=sweep), AttentiveProbe(depth=1, heads_per_block=2, sweep=sweep))

    def recall(features, probe):
        wanted = labels[splits.test]
        results = [probe_features(features, labels, splits, probe, seeded(seed)) for seed in range(2)]
        hits = torch.stack([hits_at(result.probabilities, wanted, 1) for result in results])
        return mean_class_recall(hits, wanted, seeded(4))

    assert all(recall(torch.cat([seen, ahead], dim=1), probe).low > 0.6 for probe in probes)
    assert all(recall(seen, probe).high < 0.5 for probe in probes)
