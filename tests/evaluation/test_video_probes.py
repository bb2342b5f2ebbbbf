"""Probes of known features: what they must find, what they cannot find, and that a sweep is no short cut."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from jepaplan.evaluation.video_probe_heads import AttentiveHeads
from jepaplan.evaluation.video_probe_sweep import Items, Sweep, train_heads, view_averages
from jepaplan.evaluation.video_probes import (
    AttentiveProbe,
    LinearProbe,
    Splits,
    best_setting,
    draw_splits,
    probe_features,
    score_settings,
)
from jepaplan.types import InputError

SMALL = Sweep(learning_rates=(1e-2, 1e-3), weight_decays=(0.01, 0.4), epochs=15, batch=32)
LINEAR = LinearProbe(sweep=SMALL)
QUERY = AttentiveProbe(depth=1, heads_per_block=2, sweep=SMALL)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def labels_and_noise(seed, items, tokens=6, width=8, classes=4):
    generator = seeded(seed)
    labels = torch.randint(classes, (items,), generator=generator)
    return labels, torch.randn(items, tokens, width, generator=generator)


@pytest.mark.parametrize("probe", [LINEAR, QUERY, replace(QUERY, depth=2)])
@pytest.mark.parametrize("kept", [torch.float32, torch.float16])
def test_separable_features_are_separated(probe, kept):
    labels, noise = labels_and_noise(0, 240)
    features = (0.3 * noise + functional.one_hot(labels, 8)[:, None]).to(kept)
    result = probe_features(features, labels, draw_splits(labels, seeded(1)), probe, seeded(2))
    assert result.accuracy.rate == 1.0
    assert result.accuracy.low > 0.9
    assert result.commonest < 0.5


@pytest.mark.parametrize("probe", [LINEAR, QUERY])
def test_labels_that_features_do_not_know_stay_at_chance(probe):
    """Twenty intervals of 95 %: hardly more than three miss the truth."""
    covered = 0
    for seed in range(20):
        labels, noise = labels_and_noise(seed, 160)
        short = replace(probe, sweep=replace(SMALL, epochs=2))
        result = probe_features(noise, labels, draw_splits(labels, seeded(seed)), short, seeded(seed))
        covered += result.accuracy.low <= 0.25 <= result.accuracy.high
    assert covered >= 17


def order_features(items, seed, tokens=8, width=12):
    """Half of the tokens say +u, half -u; the label is which half comes first. Places are marked."""
    labels = torch.randint(2, (items,), generator=seeded(seed))
    content = torch.where(torch.arange(tokens) < tokens // 2, 1.0, -1.0) * (2.0 * labels[:, None] - 1)
    places = functional.one_hot(torch.arange(tokens), tokens).float()
    features = torch.zeros(items, tokens, width)
    features[..., 0] = content
    features[..., 1 : 1 + tokens] = 2 * places
    return features + 0.1 * torch.randn(features.shape, generator=seeded(seed + 1)), labels


def test_an_order_of_tokens_is_seen_by_attention_and_not_by_the_mean():
    features, labels = order_features(400, 3)
    splits = draw_splits(labels, seeded(4))
    sweep = replace(SMALL, learning_rates=(1e-2,), epochs=25)
    attentive = probe_features(features, labels, splits, replace(QUERY, sweep=sweep), seeded(5))
    pooled = probe_features(features, labels, splits, replace(LINEAR, sweep=sweep), seeded(5))
    assert attentive.accuracy.rate > 0.95
    assert pooled.accuracy.low <= 0.5 <= pooled.accuracy.high


@pytest.mark.parametrize("depth", [1, 3])
def test_a_sweep_is_its_settings_trained_one_by_one(depth, monkeypatch):
    """Also when a batch is computed in parts: deep heads are, to bound memory."""
    monkeypatch.setattr("jepaplan.evaluation.video_probe_sweep.VALUES_AT_ONCE", 4 * 7 * 6 * 8)
    labels, noise = labels_and_noise(6, 48)
    items, chosen = Items(noise[:, None], labels), torch.arange(40)
    probe = replace(QUERY, depth=depth, sweep=replace(SMALL, epochs=3))

    def probabilities(sweep):
        heads = replace(probe, sweep=sweep).heads(8, 4, seeded(7))
        train_heads(heads, items, chosen, sweep, seeded(8))
        return view_averages(heads, items, torch.arange(48))

    together = probabilities(probe.sweep)
    for number, (rate, decay) in enumerate(probe.sweep.settings):
        alone = probabilities(replace(probe.sweep, learning_rates=(rate,), weight_decays=(decay,)))
        torch.testing.assert_close(together[number], alone[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[0], together[-1], atol=1e-3)


class Transcription(nn.Module):
    """The published attentive classifier, written out for one setting, keys and values of every token."""

    def __init__(self, width, classes, depth, heads, hidden):
        super().__init__()
        self.heads, self.query = heads, nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(width, 1e-6), "qkv": nn.Linear(width, 3 * width),
                           "project": nn.Linear(width, width), **self.mlp(width, hidden)})
            for _ in range(depth - 1)
        )  # fmt: skip
        self.cross = nn.ModuleDict(
            {"norm": nn.LayerNorm(width, 1e-6), "q": nn.Linear(width, width), "k": nn.Linear(width, width),
             "v": nn.Linear(width, width), **self.mlp(width, hidden)}
        )  # fmt: skip
        self.classify = nn.Linear(width, classes)

    @staticmethod
    def mlp(width, hidden):
        return {
            "norm2": nn.LayerNorm(width, 1e-6),
            "fc1": nn.Linear(width, hidden),
            "fc2": nn.Linear(hidden, width),
        }

    def attend(self, q, k, v):
        split = [one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in (q, k, v)]
        weights = (split[0] @ split[1].mT / math.sqrt(split[0].shape[-1])).softmax(-1)
        return (weights @ split[2]).transpose(1, 2).flatten(2)

    def second_half(self, block, x):
        return x + block["fc2"](functional.gelu(block["fc1"](block["norm2"](x))))

    def forward(self, x):
        for block in self.blocks:
            q, k, v = block["qkv"](block["norm"](x)).chunk(3, dim=-1)
            x = self.second_half(block, x + block["project"](self.attend(q, k, v)))
        c = self.cross
        normed, query = c["norm"](x), self.query.expand(len(x), -1, -1)
        query = query + self.attend(c["q"](query), c["k"](normed), c["v"](normed))
        return self.classify(self.second_half(c, query)[:, 0])


def transcribe(heads: AttentiveHeads, number, sizes):
    """Slice `number` of the heads, in the published form."""
    theirs = Transcription(*sizes)

    def put(layer, stacked):
        layer.weight.data.copy_(stacked.weight[number].T)
        layer.bias.data.copy_(stacked.bias[number])

    def put_mlp(block, mlp):
        block["norm2"].weight.data.copy_(mlp.norm.gain[number])
        block["norm2"].bias.data.copy_(mlp.norm.offset[number])
        put(block["fc1"], mlp.widen)
        put(block["fc2"], mlp.narrow)

    for block, ours in zip(theirs.blocks, heads.blocks, strict=True):
        put(block["qkv"], ours.queries_keys_values)
        put(block["project"], ours.project)
        put_mlp(block, ours.mlp)
    theirs.query.data.copy_(heads.query.query[number][None])
    put(theirs.cross["q"], heads.query.ask)
    put(theirs.cross["v"], heads.query.values)
    theirs.cross["k"].weight.data.copy_(heads.query.keys[number].T)
    theirs.cross["k"].bias.data.zero_()
    put_mlp(theirs.cross, heads.query.mlp)
    put(theirs.classify, heads.classify)
    return theirs


@pytest.mark.parametrize("depth", [1, 4])
def test_heads_learn_as_the_published_ones_with_torch_own_optimiser(depth):
    """Ten updates of full batches; the keys' bias, which ours leaves out, never gets a gradient."""
    labels, noise = labels_and_noise(9, 32)
    noise = noise + functional.one_hot(labels, 8)[:, None]
    sweep = Sweep(learning_rates=(3e-3, 1e-3), weight_decays=(0.5,), epochs=10, batch=32)
    probe = AttentiveProbe(depth=depth, heads_per_block=2, sweep=sweep)
    heads = probe.heads(8, 4, seeded(10))
    theirs = [transcribe(heads, number, (8, 4, depth, 2, 32)) for number in range(2)]
    train_heads(heads, Items(noise[:, None], labels), torch.arange(32), sweep, seeded(11))
    for model, (rate, decay) in zip(theirs, sweep.settings, strict=True):
        matrices = [one for one in model.parameters() if one.dim() > 1]
        vectors = [one for one in model.parameters() if one.dim() == 1]
        groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
        for _ in range(10):
            optimizer.zero_grad()
            functional.cross_entropy(model(noise), labels).backward()
            optimizer.step()
            schedule.step()
    ours = heads(noise)
    for number, model in enumerate(theirs):
        torch.testing.assert_close(ours[number], model(noise), atol=1e-4, rtol=1e-4)


def test_views_are_averaged_as_probabilities():
    labels, noise = labels_and_noise(12, 10)
    two = torch.stack([noise, noise.flip(0)], dim=1)
    heads = QUERY.heads(8, 4, seeded(13))
    heads.classify.weight.data.mul_(100)  # sure of itself, so that the two ways to average differ
    found = view_averages(heads, Items(two, labels), torch.arange(10))
    by_hand = (heads(two[:, 0]).softmax(-1) + heads(two[:, 1]).softmax(-1)) / 2
    torch.testing.assert_close(found, by_hand)
    assert not torch.allclose(found, (heads(two[:, 0]) + heads(two[:, 1])).div(2).softmax(-1), atol=1e-4)


def test_more_views_of_a_noisy_clip_tell_more():
    labels, _ = labels_and_noise(15, 500)
    generator = seeded(16)
    features = functional.one_hot(labels, 8)[:, None, None] + 1.5 * torch.randn(
        500, 6, 1, 8, generator=generator
    )
    splits = draw_splits(labels, generator, test=0.5)
    many = probe_features(features, labels, splits, LINEAR, seeded(17))
    one = probe_features(features[:, :1], labels, splits, LINEAR, seeded(17))
    assert many.accuracy.low > one.accuracy.high


def test_the_test_split_has_no_say():
    """Neither the choice nor the standardisation changes when the test split is another."""
    labels, noise = labels_and_noise(18, 200)
    features = noise + 0.5 * functional.one_hot(labels, 8)[:, None]
    splits = draw_splits(labels, seeded(19))
    other, wrong = features.clone(), labels.clone()
    other[splits.test] *= 100
    wrong[splits.test] = (wrong[splits.test] + 1) % 4
    for probe in (LINEAR, QUERY):
        first = probe_features(features, labels, splits, probe, seeded(20))
        second = probe_features(other, wrong, splits, probe, seeded(20))
        assert first.chosen == second.chosen
        assert first.validation == second.validation


def test_a_setting_that_diverges_harms_itself_only():
    labels, noise = labels_and_noise(21, 240)
    features = 0.3 * noise + functional.one_hot(labels, 8)[:, None]
    splits = draw_splits(labels, seeded(22))
    wild, tame = (replace(SMALL, learning_rates=rates) for rates in ((1e30, 1e-2), (1e-2,)))
    result = probe_features(features, labels, splits, replace(QUERY, sweep=wild), seeded(23))
    alone = probe_features(features, labels, splits, replace(QUERY, sweep=tame), seeded(23))
    assert result.chosen.learning_rate == 1e-2
    torch.testing.assert_close(result.probabilities, alone.probabilities, atol=1e-5, rtol=1e-5)
    assert [math.isinf(score.loss) for score in result.validation] == [True, True, False, False]
    with pytest.raises(InputError, match="diverged"):
        best_setting(result.validation[:2])


def test_the_choice_goes_by_accuracy_and_then_by_loss():
    sure, hesitant, wrong = (torch.tensor([[p, 1 - p], [1 - p, p]]) for p in (0.9, 0.6, 0.2))
    sweep = Sweep(learning_rates=(1.0, 2.0, 3.0), weight_decays=(0.0,))
    scores = score_settings(torch.stack([wrong, hesitant, sure]), torch.tensor([0, 1]), sweep)
    assert best_setting(scores) == 2
    assert best_setting(scores[:2]) == 1
    assert scores[2].loss == pytest.approx(-math.log(0.9))
    assert [score.accuracy for score in scores] == [0.0, 1.0, 1.0]


@settings(deadline=None, max_examples=30)
@given(
    sizes=st.lists(st.integers(12, 60), min_size=2, max_size=8),
    seed=st.integers(0, 999),
    test=st.floats(0.15, 0.4),
)
def test_splits_give_every_class_its_share(sizes, seed, test):
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    splits = draw_splits(labels, seeded(seed), test=test)
    together = torch.cat([splits.train, splits.validation, splits.test])
    assert torch.equal(together.sort().values, torch.arange(len(labels)))
    for share, part in ((0.15, splits.validation), (test, splits.test)):
        counts = labels[part].bincount(minlength=len(sizes))
        assert (counts - share * torch.tensor(sizes)).abs().max() < 2.51


def test_no_arc_misses_more_items_than_splits_promise():
    """All arcs between neighbours of the golden ratio's sequence, with their ends and without."""
    for items, promised in ((12, 1.92), (60, 2.51)):
        misses = []
        for count in range(1, items + 1):
            points = np.sort(np.arange(count) * (math.sqrt(5) - 1) / 2 % 1)
            between = np.arange(count) - np.arange(count)[:, None]
            length = points - points[:, None]
            with_ends = np.where(between < 0, between + count, between) + 1
            without = np.where(between <= 0, between + count, between) - 1
            misses.append((with_ends - count * np.where(between < 0, length + 1, length)).max())
            misses.append((count * np.where(between <= 0, length + 1, length) - without).max())
        assert max(misses) == pytest.approx(promised, abs=0.01)


def test_nonsense_is_refused():
    labels, noise = labels_and_noise(27, 20)
    splits = Splits(train=torch.arange(10), validation=torch.arange(10, 15), test=torch.arange(15, 20))
    with pytest.raises(InputError, match="no item twice"):
        Splits(train=torch.arange(10), validation=torch.arange(9, 15), test=torch.arange(15, 20))
    with pytest.raises(InputError, match="class numbers from 0; got -1"):
        probe_features(noise, labels - 1 - labels.min(), splits, LINEAR, seeded(0))
    with pytest.raises(InputError, match="one label per item"):
        probe_features(noise[:, None, None], labels, splits, LINEAR, seeded(0))
    with pytest.raises(InputError, match="heads_per_block"):
        probe_features(noise, labels, splits, AttentiveProbe(heads_per_block=3), seeded(0))
    with pytest.raises(InputError, match="learning_rates"):
        Sweep(learning_rates=())
