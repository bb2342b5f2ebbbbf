"""The objective of encoders whose latent is a map and a point: known answers, and a dot that it finds."""

import math

import pytest
import torch

from jepaplan.data.normalise import ActionNormaliser, PixelNormaliser
from jepaplan.data.windows import WindowBatch
from jepaplan.models.local_predictor import LocalPredictor, LocalPredictorConfig
from jepaplan.models.scene_map import SceneMapConfig, SceneMapEncoder
from jepaplan.models.world_model import LatentWorldModel
from jepaplan.objectives.moving_point import MovingPointObjective, MovingPointWeights, motion_attention
from jepaplan.objectives.prediction import (
    copy_error,
    prediction_loss,
    relative_prediction_loss,
    scaled_prediction_loss,
)
from jepaplan.objectives.scene import CompanionSegments
from jepaplan.types import InputError

SIDE = 32


def test_attention_costs_nothing_where_something_moved_and_most_where_nothing_did():
    first = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
    second = first.clone()
    first[:, :, 4:8, 8:12] = 200  # cell 1, 2 of 4 x 4
    looks = torch.full((2, 3, 16), -40.0)
    looks[:, :, 1 * 4 + 2] = 40
    assert float(motion_attention(looks, first, second)) == pytest.approx(0, abs=1e-6)
    assert float(motion_attention(torch.zeros(2, 3, 16), first, second)) == pytest.approx(math.log(16))
    assert float(motion_attention(looks.roll(1, -1), first, second)) == pytest.approx(80)
    assert float(motion_attention(looks, first, first)) == 0


def test_relative_errors_do_not_depend_on_the_scale_of_a_number():
    generator = torch.Generator().manual_seed(0)
    encoded, imagined = torch.randn(2, 5, 4, 3, generator=generator)
    loss = relative_prediction_loss(imagined, encoded)
    scale = torch.tensor([0.01, 1.0, 100.0])
    assert torch.allclose(relative_prediction_loss(imagined * scale, encoded * scale), loss)
    still = encoded[:, :1].expand_as(encoded)
    assert float(relative_prediction_loss(still, encoded)) == pytest.approx(1)
    one = encoded[..., :1], imagined[..., :1]
    assert torch.allclose(
        relative_prediction_loss(one[1], one[0]), prediction_loss(one[1], one[0]) / copy_error(one[0])
    )


def walk(count, generator):
    """Dots that step by their actions; two thirds of a picture are a scene of noise that stays."""
    scene = torch.randint(0, 60, (count, 1, SIDE, SIDE), generator=generator)
    place = 8 + 16 * torch.rand(count, 2, generator=generator)
    actions = torch.randn(count, 4, 2, generator=generator)
    path = torch.cat([place[:, None], place[:, None] + actions.cumsum(1)], dim=1)
    path = torch.cat([path, 8 + 16 * torch.rand(count, 1, 2, generator=generator)], dim=1)
    grid = torch.arange(SIDE).float()
    x = (-((grid - path[..., :1]) ** 2) / 3).exp()
    y = (-((grid - path[..., 1:]) ** 2) / 3).exp()
    dots = 190 * y[..., :, None] * x[..., None, :]
    frames = (scene[:, None] + dots[:, :, None]).clamp(max=255).to(torch.uint8)
    batch = WindowBatch(
        actions=actions,
        observations=frames[:, :-1],
        frames=torch.zeros(count, 5, dtype=torch.long),
        episode=torch.arange(count),
        proprioception=None,
    )
    return CompanionSegments(segments=batch, companions=frames[:, -1]), path[:, :-1]


def objective():
    torch.manual_seed(0)
    scene = SceneMapConfig(image_channels=1, image_size=SIDE, channels=16, keypoints=4, map_channels=2)
    model = LatentWorldModel(
        SceneMapEncoder(scene),
        LocalPredictor(scene, 2, LocalPredictorConfig(hidden=32, window=3)),
        PixelNormaliser(torch.tensor([0.2]), torch.tensor([0.2]), (1, SIDE, SIDE)),
        ActionNormaliser.identity(2),
    )
    return model, MovingPointObjective(model.pixel_encoder, model, model.moves_from, 2, MovingPointWeights())


@pytest.mark.slow
def test_it_finds_what_moves_and_predicts_where_it_goes():
    model, learns = objective()
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(learns.parameters(), lr=3e-3)
    for _ in range(250):
        loss, _ = learns(walk(24, generator)[0])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learns.parameters(), 1.0)
        optimiser.step()
    batch, path = walk(128, generator)
    with torch.no_grad():
        _, metrics = learns(batch)
        found = model.places(model.encode_frames(batch.segments.observations))
    assert float(metrics["prediction_over_copy"]) < 0.15
    known = torch.cat([found.flatten(0, 1), torch.ones(found[..., 0].numel(), 1)], dim=1)
    fit = torch.linalg.lstsq(known, path.flatten(0, 1)).solution
    error = (known @ fit - path.flatten(0, 1)).norm(dim=1).median()
    assert float(error) < 1.0  # pixels; a dot's place has a deviation of 5


def test_shrinking_a_latent_gains_nothing():
    generator = torch.Generator().manual_seed(0)
    encoded = torch.randn(64, 5, 3, generator=generator)
    imagined = encoded + 0.1 * torch.randn(64, 5, 3, generator=generator)
    variance = encoded[:, 0].var(dim=0, correction=0)
    expected = ((imagined - encoded)[:, 1:].square().mean(dim=(0, 1)) / variance).mean()
    assert torch.allclose(scaled_prediction_loss(imagined, encoded, variance), expected)
    scale = torch.tensor([0.3, 1.0, 40.0], requires_grad=True)
    loss = scaled_prediction_loss(imagined * scale, encoded * scale, variance * scale.square())
    loss.backward()
    assert torch.allclose(loss, expected)
    assert float((scale.grad * scale.detach()).abs().max()) < 1e-6
    plain = prediction_loss(imagined * scale, encoded * scale)
    assert float(torch.autograd.grad(plain, scale)[0].min()) > 0  # it would have


def test_every_second_segment_is_imagined_on_the_map_of_its_companion():
    model, learns = objective()
    torch.nn.init.normal_(model.predictor.last.weight)
    batch, _ = walk(4, torch.Generator().manual_seed(0))
    other, _ = walk(4, torch.Generator().manual_seed(7))

    def prediction(rows, companions):
        segments = batch.segments
        few = WindowBatch(
            actions=segments.actions[rows],
            observations=segments.observations[rows],
            frames=segments.frames[rows],
            episode=segments.episode[rows],
            proprioception=None,
        )
        return float(learns(CompanionSegments(segments=few, companions=companions[rows]))[1]["prediction"])

    first, second = [0], [0, 1]  # the number of a segment in its batch decides
    assert prediction(first, batch.companions) == prediction(first, other.companions)
    assert prediction(second, batch.companions) != prediction(second, other.companions)
    learns.companion_maps = False
    assert prediction(second, batch.companions) == prediction(second, other.companions)


def test_weights_that_are_none_are_refused():
    with pytest.raises(InputError, match="finite and not negative; got travel=-1"):
        MovingPointWeights(travel=-1.0)
