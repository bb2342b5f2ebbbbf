"""Partial collapse is warned about in words; a run that learns is left in peace."""

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from jepaplan.data.clips import ClipBatch
from jepaplan.data.tubelet_masks import MaskConfig, draw_masks
from jepaplan.objectives.masked_latents import MaskedLatents, MaskedLatentsConfig
from jepaplan.training.health import CollapseLimits, CollapseWatch, Peaks, assess, fallen, running_probe
from jepaplan.types import InputError

GRID = (2, 2, 2)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class TinyEncoder(nn.Module):
    """One hidden layer, token by token."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(96, 64), nn.Tanh(), nn.Linear(64, 16))

    def forward(self, clips, keep=None):
        tokens = clips.view(-1, 2, 2, 3, 2, 4, 2, 4).permute(0, 1, 4, 6, 2, 3, 5, 7).reshape(-1, 8, 96)
        return self.body(tokens if keep is None else torch.take_along_dim(tokens, keep[..., None], 1))


class LearnedPredictor(nn.Module):
    """Mean of the context and the place asked for."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16 + 8, 64), nn.Tanh(), nn.Linear(64, 16))

    def forward(self, context, context_ids, target_ids, grid, mask_index=0):
        mean = context.mean(1, keepdim=True).expand(-1, target_ids.shape[1], -1)
        return self.body(torch.cat([mean, nn.functional.one_hot(target_ids, 8).to(mean)], dim=-1))


class TrivialPredictor(nn.Module):
    """Whatever is asked, the mean of the context."""

    def forward(self, context, context_ids, target_ids, grid, mask_index=0):
        return context.mean(1, keepdim=True).expand(-1, target_ids.shape[1], -1)


def coloured_clips(count, generator):
    """A colour of its own for each token, so little can be predicted; the label is the brightest channel."""
    colours = torch.randint(0, 256, (count, 2, 3, 2, 2), generator=generator, dtype=torch.uint8)
    clips = colours.repeat_interleave(2, 1).repeat_interleave(4, 3).repeat_interleave(4, 4)
    return clips, colours.float().mean((1, 3, 4)).argmax(1)


def looks_of_training(predictor, ema, rate, updates=120, every=10):
    """Train, and look at the latent's health every few updates: update, health, loss."""
    torch.manual_seed(0)
    objective = MaskedLatents(TinyEncoder(), predictor, MaskedLatentsConfig(ema=ema, ema_updates=updates))
    optimiser = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=rate)
    (fitted, labels), (held, held_labels) = (coloured_clips(200, seeded(seed)) for seed in (1000, 1001))
    watch, looks, loss = CollapseWatch(), [], torch.tensor(math.nan)
    for update in range(updates + 1):
        if update % every == 0:
            latents = objective.encode(held).mean(1)
            accuracy = running_probe(objective.encode(fitted).mean(1), labels, latents, held_labels)
            health = watch.judge(dataclasses.replace(assess(latents), probe_accuracy=accuracy))
            looks.append((update, health, loss.item()))
        clips, _ = coloured_clips(32, seeded(update))
        masks = draw_masks(GRID, 32, (MaskConfig(blocks=1, spatial_scale=0.5),), seeded(update))
        loss, _ = objective(ClipBatch(clips, masks))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        objective.after_update(update + 1)
    return looks


def test_a_collapsing_run_is_warned_about_while_its_loss_falls():
    """No moving average and a predictor that copies: a constant latent is the cheapest answer."""
    looks = looks_of_training(TrivialPredictor(), (0.0, 0.0), 1e-2)
    warned = [update for update, health, _ in looks if any("fell to" in word for word in health.warnings)]
    assert warned
    assert warned[0] <= 60
    assert looks[-1][0] in warned
    assert looks[-1][2] < 0.3 * looks[1][2]  # nothing in the loss would have told
    # The limits for one look alone say nothing: it is the fall that counts.
    assert not any("has collapsed" in word for _, health, _ in looks[:7] for word in health.warnings)


def test_the_same_clips_learned_with_a_moving_average_raise_no_warning():
    looks = looks_of_training(LearnedPredictor(), (0.99, 0.999), 3e-3)
    assert [health.warnings for _, health, _ in looks] == [[]] * len(looks)
    assert looks[-1][1].probe_accuracy > 0.8


def test_a_constant_encoder_is_warned_about_at_once():
    assert "has collapsed" in CollapseWatch().judge(assess(torch.ones(50, 8))).warnings[0]


def health_of(scale=1.0, rank=8, probe=None, seed=0):
    latents = torch.zeros(100, 8)
    latents[:, :rank] = torch.randn(100, rank, generator=seeded(seed))
    # Turned, so that no dimension is dead, and away from the origin, so that the spread depends on the scale.
    turn = torch.linalg.qr(torch.randn(8, 8, generator=seeded(5)))[0]
    return dataclasses.replace(assess(scale * latents @ turn + 1.0), probe_accuracy=probe)


@pytest.mark.parametrize(
    "before, after, word",
    [
        ({"rank": 8}, {"rank": 3}, "effective rank fell"),
        ({"scale": 1.0}, {"scale": 0.3}, "standard deviation"),
        ({"scale": 1.0}, {"scale": 0.3}, "spread beside its size fell"),
        ({"probe": 0.8}, {"probe": 0.6}, "running probe's accuracy fell to 0.6 from 0.8"),
    ],
)
def test_each_fall_is_named(before, after, word):
    watch = CollapseWatch(CollapseLimits(settle=0))
    assert watch.judge(health_of(**before)).warnings == []
    words = watch.judge(health_of(**after)).warnings
    assert any(word in sentence for sentence in words), words
    assert watch.judge(health_of(**before, seed=1)).warnings == []  # recovered


def test_small_falls_and_rises_are_no_news():
    watch = CollapseWatch(CollapseLimits(settle=0))
    for look in ({"scale": 1.0, "probe": 0.5}, {"scale": 0.6, "probe": 0.4}, {"scale": 3.0, "probe": 0.9}):
        assert watch.judge(health_of(**look)).warnings == []


def test_the_rank_of_random_weights_is_forgotten():
    high, low = health_of(rank=8), health_of(rank=3)
    for ranks, warned in (((high, high, low, low), False), ((high, high, high, low), True)):
        watch = CollapseWatch(CollapseLimits(settle=2))
        words = [word for health in ranks for word in watch.judge(health).warnings]
        assert any("effective rank" in word for word in words) == warned


def test_a_run_that_was_killed_remembers_by_its_learning_curves():
    looks = [health_of(scale=scale, probe=0.9) for scale in (1.0, 2.0, 1.5)]
    rows = [
        {"update": 1, "loss": 0.5},
        *({"update": 10 * n, **look.metrics()} for n, look in enumerate(looks)),
    ]
    through = CollapseWatch()
    for look in looks:
        through.judge(look)
    resumed = CollapseWatch(history=lambda: json.loads(json.dumps(rows)))
    fall = health_of(scale=0.4, probe=0.5)
    assert resumed.judge(fall).warnings == through.judge(fall).warnings != []
    assert resumed.peaks == through.peaks
    saved = json.loads(json.dumps(dataclasses.asdict(through.peaks)))
    assert Peaks(**saved) == through.peaks


def test_curves_that_lag_behind_do_not_hide_what_was_seen():
    rows = []
    watch = CollapseWatch(history=lambda: rows)
    watch.judge(health_of(scale=2.0))
    assert watch.judge(health_of(scale=0.5)).warnings


def test_what_is_not_a_number_is_no_best():
    peaks = Peaks().after({"health/effective_rank": math.nan, "health/spread": 0.5}, CollapseLimits(settle=0))
    assert peaks.best == {"health/spread": 0.5}
    assert fallen({"health/spread": 0.4}, peaks.best, CollapseLimits()) == []


def test_the_probes_accuracy_is_in_the_learning_curves_where_there_is_one():
    assert health_of(probe=0.7).metrics()["health/probe_accuracy"] == 0.7
    assert "health/probe_accuracy" not in health_of().metrics()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), scale=st.floats(1e-3, 1e3), classes=st.integers(2, 5))
def test_a_linear_rule_is_found_whatever_the_scale_and_no_rule_is_chance(seed, scale, classes):
    labels = torch.randint(classes, (600,), generator=seeded(seed))
    centres = 4 * torch.eye(classes, 12)
    latents = scale * (centres[labels] + 0.3 * torch.randn(600, 12, generator=seeded(seed + 1)) + 7)
    assert running_probe(latents[:400], labels[:400], latents[400:], labels[400:]) > 0.98
    shuffled = labels[torch.randperm(600, generator=seeded(seed + 2))]
    accuracy = running_probe(latents[:400], shuffled[:400], latents[400:], shuffled[400:])
    chance = 1 / classes
    assert abs(accuracy - chance) < 5 * math.sqrt(chance * (1 - chance) / 200) + 0.05


def test_the_probe_is_the_ridge_regression_that_a_loop_of_descent_finds():
    labels = torch.randint(3, (60,), generator=seeded(0))
    latents = torch.randn(60, 5, generator=seeded(1)) + nn.functional.one_hot(labels, 5)
    inputs = ((latents - latents.mean(0)) / latents.std(0, unbiased=False)).double()
    answers = nn.functional.one_hot(labels, 3).double()
    weights = torch.zeros(5, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights, bias], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-15)

    def loss():
        optimiser.zero_grad()
        value = (inputs @ weights + bias - answers).square().sum(1).mean() + 0.3 * weights.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    expected = ((inputs @ weights + bias).argmax(1) == labels).double().mean().item()
    assert running_probe(latents, labels, latents, labels, ridge=0.3) == expected


def test_a_constant_latent_answers_with_the_most_frequent_label():
    labels = torch.tensor([0, 1, 1, 1, 2])
    point = torch.full((5, 4), 3.0) + 1e-7 * torch.randn(5, 4, generator=seeded(0))
    assert running_probe(point, labels, point, labels) == pytest.approx(0.6)


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(InputError, match="two labelled latents or more"):
        running_probe(torch.zeros(1, 2), torch.zeros(1).long(), torch.zeros(3, 2), torch.zeros(3).long())
    with pytest.raises(InputError, match="between 0 and 1"):
        CollapseLimits(rank=1.5)
    with pytest.raises(InputError, match="settle counts looks"):
        CollapseLimits(settle=-1)
