"""Masked prediction in latent space: beside its definition in loops, who gets gradients, who sees what."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.data.clips import ClipBatch
from jepaplan.data.tubelet_masks import BOTH_RANGES, MaskConfig, TubeletMasks, draw_masks
from jepaplan.models.masked_predictor import MaskedPredictor, MaskedPredictorConfig
from jepaplan.models.video_vit import VideoTransformer, VideoTransformerConfig
from jepaplan.objectives.masked_latents import (
    MaskedLatents,
    MaskedLatentsConfig,
    latent_error,
    target_distances,
)
from jepaplan.training.distributed import Processes, shard
from jepaplan.types import InputError

CONFIG = VideoTransformerConfig(frames=4, image=32, patch=8, tubelet=2, width=48, depth=2, heads=2)
PREDICTOR = MaskedPredictorConfig(width=24, depth=2, heads=2)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def objective(dtype=torch.float64, **config):
    torch.manual_seed(0)
    made = MaskedLatents(
        VideoTransformer(CONFIG), MaskedPredictor(48, PREDICTOR), MaskedLatentsConfig(**config)
    )
    with torch.no_grad():  # away from where the target equals the encoder and mask tokens are zero
        for parameter in made.target.average.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        made.predictor.mask_tokens.normal_()
    return made.to(dtype)


def batch(items=6, seed=0, frames=4, image=32):
    clips = torch.randint(0, 256, (items, frames, 3, image, image), generator=seeded(seed), dtype=torch.uint8)
    grid = (frames // 2, image // 8, image // 8)
    return ClipBatch(clips, draw_masks(grid, items, BOTH_RANGES, seeded(seed + 1)))


def literal(made, given, power, weight):
    """The definition, number by number: mask after mask, item after item, token after token."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    clips = (given.clips.double() / 255 - mean[:, None, None]) / std[:, None, None]
    losses = []
    for masks in given.masks:
        columns = masks.grid[2]
        area = masks.grid[1] * columns
        masked, shown = [], []
        for item in range(len(clips)):
            whole = made.target.average(clips[item : item + 1])[0]
            latents = []
            for token in whole:
                centred = token - token.mean()
                latents.append(centred / (centred.square().mean() + 1e-5).sqrt())
            if made.config.target_norm == "clip":
                table = torch.stack(latents)
                for number in range(table.shape[1]):
                    centred = table[:, number] - table[:, number].mean()
                    table[:, number] = centred / (centred.square().mean() + 1e-5).sqrt()
                latents = list(table)
            context, target = masks.context[item], masks.target[item]
            seen = made.encoder(clips[item : item + 1], context[None])
            predicted, told = made.predictor.predict_everywhere(seen, context[None], target[None], masks.grid)
            for row, token in enumerate(target.tolist()):
                masked.append((predicted[0, row] - latents[token]).abs().pow(power).mean() / power)
            for row, token in enumerate(context.tolist()):
                here = (token // area, token % area // columns, token % columns)
                nearest = min(
                    math.dist(here, (other // area, other % area // columns, other % columns))
                    for other in target.tolist()
                )
                error = (told[0, row] - latents[token]).abs().pow(power).mean() / power
                shown.append(error / math.sqrt(nearest))
        losses.append(torch.stack(masked).mean() + weight * torch.stack(shown).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("power, weight", [(1.0, 0.0), (2.0, 0.0), (1.5, 0.0), (1.0, 0.5)])
def test_the_loss_is_the_published_one(power, weight):
    made, given = objective(loss_exponent=power, context_weight=weight), batch()
    loss, _ = made(given)
    torch.testing.assert_close(loss, literal(made, given, power, weight), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("power, weight", [(1.0, 0.0), (2.0, 0.5)])
def test_targets_may_be_standardised_over_the_tokens_of_a_clip(power, weight):
    made, given = objective(loss_exponent=power, context_weight=weight, target_norm="clip"), batch()
    loss, _ = made(given)
    torch.testing.assert_close(loss, literal(made, given, power, weight), rtol=1e-6, atol=1e-7)
    # What all tokens of a clip have in common is no part of the target.
    usual, _ = objective(loss_exponent=power, context_weight=weight)(given)
    assert not torch.isclose(loss, usual)


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_gradients_are_those_of_the_definition(power):
    made, given = objective(loss_exponent=power), batch(items=3)
    twin = copy.deepcopy(made)
    twin.target.average = copy.deepcopy(made.target.average)
    made(given)[0].backward()
    literal(twin, given, power, 0.0).backward()
    own, expected = dict(made.named_parameters()), dict(twin.named_parameters())
    assert any(parameter.grad is not None for parameter in own.values())
    for name, parameter in own.items():
        if parameter.grad is None:
            assert expected[name].grad is None or not expected[name].grad.any()
        else:
            torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-5, atol=1e-8)


def test_no_gradient_reaches_the_target_and_every_other_weight_gets_one():
    made = objective(context_weight=0.5)
    made(batch())[0].backward()
    for name, parameter in made.named_parameters():
        if name.startswith("target."):
            assert parameter.grad is None
            assert not parameter.requires_grad
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all()
            # Softmax ignores what is added to all keys, so their bias has none but rounding.
            assert parameter.grad.any(), name


def test_the_encoder_sees_shown_tokens_only_and_the_target_sees_all():
    """Other pixels under the mask change no prediction; they do change what is to be predicted."""
    made, given = objective(), batch(items=2)
    masks = given.masks[0]
    clips = made.pixels(given.clips)
    hidden = torch.ones(2, 32, dtype=torch.bool).scatter(1, masks.context, False).view(2, 2, 1, 4, 4)
    pixels = hidden.repeat_interleave(2, 1).repeat_interleave(8, 3).repeat_interleave(8, 4)
    other = torch.where(pixels, torch.randn(clips.shape, generator=seeded(9), dtype=clips.dtype), clips)
    torch.testing.assert_close(made.encoder(other, masks.context), made.encoder(clips, masks.context))
    before, after = made.target.average(clips), made.target.average(other)
    assert not torch.allclose(before, after)


def test_a_process_and_its_neighbours_return_the_loss_of_the_whole_batch():
    made, given = objective(), batch(items=6)
    whole, metrics = made(given)
    parts = [made(shard(given, 6, Processes(rank, 3))) for rank in range(3)]
    torch.testing.assert_close(torch.stack([loss for loss, _ in parts]).mean(), whole)
    for name in ("masked_0", "masked_1", "context_ratio_0", "target_ratio_1"):
        torch.testing.assert_close(torch.stack([part[name] for _, part in parts]).mean(), metrics[name])


def test_the_target_follows_along_the_schedule():
    made = objective(ema=(0.9, 1.0), ema_updates=10)
    for update in (1, 5, 20):
        before = [parameter.clone() for parameter in made.target.average.parameters()]
        with torch.no_grad():
            for parameter in made.encoder.parameters():
                parameter += 0.01
        made.after_update(update)
        decay = min(0.9 + 0.1 * update / 10, 1.0)
        for old, kept, new in zip(
            before, made.target.average.parameters(), made.encoder.parameters(), strict=True
        ):
            torch.testing.assert_close(kept, decay * old + (1 - decay) * new)


def test_in_bf16_the_loss_is_computed_in_fp32_and_is_nearly_the_same():
    made, given = objective(torch.float32), batch()
    exact, _ = made(given)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, metrics = made(given)
    assert rounded.dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in metrics.values())
    assert rounded.item() == pytest.approx(exact.item(), rel=5e-3)
    rounded.backward()
    assert all(p.grad.isfinite().all() for p in made.encoder.parameters())


def test_metrics_tell_what_was_shown_and_how_far_targets_spread():
    made, given = objective(), batch(items=8)
    _, metrics = made(given)
    for index, masks in enumerate(given.masks):
        assert metrics[f"context_ratio_{index}"].item() == pytest.approx(masks.context.shape[1] / 32)
        assert metrics[f"target_ratio_{index}"].item() == pytest.approx(masks.target.shape[1] / 32)
    assert not any(value.requires_grad for value in metrics.values())
    assert metrics["target_std"] > 0.1
    with torch.no_grad():
        made.target.average.norm.weight.zero_()  # every token becomes the same
    _, dead = made(given)
    assert dead["target_std"] == pytest.approx(0.0, abs=1e-6)
    assert dead["target_clip_std"] == pytest.approx(0.0, abs=1e-6)


def test_a_predictor_that_answers_the_mean_token_is_a_constant():
    """Predicting the mean token of all clips makes `masked_over_constant` 1; nothing is hidden here."""
    made, given = objective(loss_exponent=2.0), batch(items=4)
    everything = torch.arange(32).expand(4, 32)
    with torch.no_grad():
        whole = made.target.average(made.pixels(given.clips))
        latents = torch.nn.functional.layer_norm(whole, (48,), eps=1e-5)
        made.predictor.readout.weight.zero_()
        made.predictor.readout.bias.copy_(latents.mean((0, 1)))
    masks = TubeletMasks(everything[:, :4], everything, (2, 4, 4))
    _, metrics = made(ClipBatch(given.clips, (masks,)))
    assert metrics["masked_over_constant"].item() == pytest.approx(1.0)


def test_clips_may_grow_longer_and_larger():
    made = objective(torch.float32)
    for frames, image in ((2, 32), (8, 32), (4, 48)):
        loss, _ = made(batch(items=2, frames=frames, image=image))
        assert loss.isfinite()


def test_features_are_the_target_encoders_without_gradient():
    made, given = objective(), batch()
    features = made.encode(given.clips)
    assert features.shape == (6, 32, 48)
    assert not features.requires_grad
    torch.testing.assert_close(features, made.target.average(made.pixels(given.clips)))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), blocks=st.integers(1, 3))
def test_distances_to_the_nearest_masked_token_are_those_of_the_grid(seed, blocks):
    (masks,) = draw_masks((3, 5, 4), 2, (MaskConfig(blocks=blocks, spatial_scale=0.2),), seeded(seed))
    distances = target_distances(masks)
    assert (distances >= 1).all()
    for item in range(2):
        for row, token in enumerate(masks.context[item].tolist()):
            nearest = min(
                math.dist(
                    (token // 20, token % 20 // 4, token % 4), (other // 20, other % 20 // 4, other % 4)
                )
                for other in masks.target[item].tolist()
            )
            assert distances[item, row].item() == pytest.approx(nearest, rel=1e-6)


def test_the_error_has_a_gradient_of_zero_where_nothing_is_wrong():
    for power in (1.0, 1.3, 2.0):
        predicted = torch.zeros(2, 3, requires_grad=True)
        latent_error(predicted, torch.zeros(2, 3), power).sum().backward()
        assert (predicted.grad == 0).all()


def test_training_predicts_better_than_the_mean_token():
    """Clips of one colour each, so what is hidden follows from what is shown."""
    made = objective(torch.float32, ema=(0.95, 0.99), ema_updates=50)
    optimiser = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=3e-3)
    for update in range(50):
        generator = seeded(update)
        colours = torch.randint(0, 256, (8, 1, 3, 1, 1), generator=generator, dtype=torch.uint8)
        masks = draw_masks((2, 4, 4), 8, BOTH_RANGES, generator)
        loss, metrics = made(ClipBatch(colours.expand(-1, 4, -1, 32, 32), masks))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        made.after_update(update + 1)
    assert metrics["masked_over_constant"] < 0.7
    assert metrics["target_std"] > 0.2


def test_what_does_not_fit_is_refused():
    given = batch(items=2)
    made, wrong = objective(torch.float32), draw_masks((2, 2, 4), 2, BOTH_RANGES, seeded(0))
    with pytest.raises(InputError, match="masks were drawn for a grid"):
        made(ClipBatch(given.clips, wrong))
    with pytest.raises(InputError, match="without masks"):
        made(ClipBatch(given.clips, ()))
    with pytest.raises(InputError, match="predict_everywhere"):
        MaskedLatents(
            VideoTransformer(CONFIG), torch.nn.Linear(48, 48), MaskedLatentsConfig(context_weight=0.5)
        )


@pytest.mark.parametrize(
    "nonsense, words",
    [
        ({"loss_exponent": 0.5}, "loss_exponent is 1 or more"),
        ({"ema": (0.9, 1.1)}, "a decay lies in"),
        ({"ema_updates": 0}, "at least 1"),
        ({"context_weight": -0.5}, "not negative"),
        ({"mask_index": -1}, "counts mask tokens"),
    ],
)
def test_configurations_that_mean_nothing_are_refused(nonsense, words):
    with pytest.raises(InputError, match=words):
        MaskedLatentsConfig(**nonsense)
