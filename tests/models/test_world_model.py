import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from jepaplan.data.normalise import ActionNormaliser, PixelNormaliser
from jepaplan.interfaces import ActionUnits, WorldModel
from jepaplan.models.encoders import CompactConfig, CompactEncoder
from jepaplan.models.predictors import MLPPredictor, PredictorConfig, to_bfloat16
from jepaplan.models.value_heads import InverseDynamics, QuasimetricHead, QuasimetricHeadConfig
from jepaplan.models.world_model import LatentWorldModel
from jepaplan.recipes.system import in_bfloat16
from jepaplan.types import InputError


def world_model(predictor=None):
    torch.manual_seed(0)
    return LatentWorldModel(
        CompactEncoder(CompactConfig(image_size=16, latent_width=24, channels=(4, 4))),
        predictor or MLPPredictor(24, 2, PredictorConfig(hidden=16, layers=2)),
        PixelNormaliser(torch.tensor([0.1, 0.2]), torch.tensor([0.5, 0.4]), (2, 16, 16)),
        ActionNormaliser(torch.tensor([1.0, -1.0]), torch.tensor([2.0, 0.5])),
    )


def images(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


class Drift(nn.Module):
    """A predictor with a known answer: the latent moves by the action's first component."""

    action_dim = 2

    def forward(self, latent, action):
        return latent + action[:, :1]


def test_it_is_a_world_model():
    model = world_model()
    assert isinstance(model, WorldModel)
    assert isinstance(model.action_units, ActionUnits)
    assert model.stride == 1
    assert model.action_dim == 2


def test_a_rollout_adds_up_the_actions():
    """H actions make H+1 latents, the first is the observed one, and samples stay with their problem."""
    model = world_model(Drift())
    latent = torch.randn(3, 24)
    actions = torch.randn(3, 5, 7, 2)
    paths = model.rollout(latent, actions)
    travelled = F.pad(actions[..., 0].cumsum(-1), (1, 0))
    torch.testing.assert_close(paths, latent[:, None, None] + travelled[..., None])


def test_rollout_unroll_and_step_tell_the_same_future():
    model = world_model().double()
    latent = torch.randn(2, 24, dtype=torch.float64)
    actions = torch.randn(2, 3, 4, 2, dtype=torch.float64)
    paths = model.rollout(latent, actions)
    for problem in range(2):
        for sample in range(3):
            here = latent[problem : problem + 1]
            for step in range(4):
                torch.testing.assert_close(paths[problem, sample, step], here[0])
                here = model.step(here, actions[problem, sample, step][None])
            torch.testing.assert_close(paths[problem, sample, -1], here[0])
    torch.testing.assert_close(model.unroll(latent, actions[:, 1]), paths[:, 1])


def test_encoding_segments_is_encoding_frames():
    model = world_model()
    observations = images(3, 5, 2, 16, 16)
    frames = model.encode_frames(observations)
    torch.testing.assert_close(frames[1], model.encode(observations[1]))


def test_gradients_reach_encoder_and_predictor_through_the_unroll():
    model = world_model()
    encoded = model.encode_frames(images(3, 5, 2, 16, 16))
    model.unroll(encoded[:, 0], torch.randn(3, 4, 2))[:, -1].square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_wrong_inputs_are_told_what_to_write():
    model = world_model()
    with pytest.raises(InputError, match="uint8"):
        model.pixel_encoder(torch.rand(1, 2, 16, 16))
    with pytest.raises(InputError, match="resize"):
        model.encode(images(1, 2, 32, 32))
    with pytest.raises(InputError, match="action_dim=2"):
        model.step(torch.zeros(1, 24), torch.zeros(1, 3))
    with pytest.raises(InputError, match="normalise"):
        model.rollout(torch.zeros(1, 24), torch.zeros(1, 2, 3, 4))
    with pytest.raises(InputError, match="action_dim=2"):
        world_model(MLPPredictor(24, 3))


def test_normalisation_travels_with_the_weights():
    told, fresh = world_model(), world_model()
    fresh.pixel_encoder.pixels = PixelNormaliser.identity((2, 16, 16))
    fresh.actions = ActionNormaliser.identity(2)
    fresh.load_state_dict(told.state_dict())
    observation = images(2, 2, 16, 16)
    torch.testing.assert_close(fresh.encode(observation), told.encode(observation))
    torch.testing.assert_close(
        fresh.action_units.inverse(torch.ones(1, 2)), told.action_units.inverse(torch.ones(1, 2))
    )


@pytest.mark.parametrize("activation", ["relu", "gelu", "mish"])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("residual", [True, False])
def test_the_predictor_is_the_mlp_on_the_concatenation(activation, norm, residual):
    torch.manual_seed(0)
    config = PredictorConfig(hidden=32, layers=3, activation=activation, norm=norm, residual=residual)
    predictor = MLPPredictor(16, 2, config).double()
    latent = torch.randn(5, 16, dtype=torch.float64)
    action = torch.randn(5, 2, dtype=torch.float64)

    literal = torch.cat([latent, action], dim=1)
    for linear, normalise in zip((predictor.first, *predictor.hidden), predictor.norms, strict=True):
        literal = getattr(F, activation)(normalise(linear(literal)))
    literal = predictor.last(literal) + (latent if residual else 0)

    before = latent.clone()
    torch.testing.assert_close(predictor(latent, action), literal)
    with torch.inference_mode():  # in-place activations: same numbers, and the input is left alone
        torch.testing.assert_close(predictor(latent, action), literal)
    assert torch.equal(latent, before)
    assert torch.autograd.gradcheck(predictor, (latent.requires_grad_(), action.requires_grad_()))


def test_a_predictor_that_begins_still_leaves_every_latent_as_it_is():
    config = PredictorConfig(hidden=32, layers=2, residual=True, begins_still=True, held=4)
    latents = torch.randn(5, 16)
    assert torch.equal(MLPPredictor(16, 2, config)(latents, torch.randn(5, 2)), latents)
    with pytest.raises(InputError, match="begins_still needs residual=True"):
        PredictorConfig(begins_still=True)


@pytest.mark.parametrize("residual", [True, False])
def test_no_action_changes_the_held_part_of_a_latent(residual):
    torch.manual_seed(0)
    predictor = MLPPredictor(16, 2, PredictorConfig(hidden=32, layers=2, residual=residual, held=6))
    latent, action = torch.randn(5, 16), torch.randn(5, 2)
    following = predictor(latent, action)
    assert torch.equal(following[:, :6], latent[:, :6])
    assert not torch.isclose(following[:, 6:], predictor(latent, action + 1)[:, 6:]).any()
    with pytest.raises(InputError, match="held=16"):
        MLPPredictor(16, 2, PredictorConfig(held=16))


def test_the_default_predictor_has_the_parameters_of_the_paper():
    parameters = sum(parameter.numel() for parameter in MLPPredictor(512, 2).parameters())
    assert parameters == (514 * 512 + 512) + 4 * (512 * 512 + 512) + 4 * 2 * 512 == 1_318_400


def test_a_quasimetric_of_projections_is_a_quasimetric():
    torch.manual_seed(0)
    head = QuasimetricHead(24, QuasimetricHeadConfig(hidden=32, width=16, components=4)).double()
    x, y, z = torch.randn(3, 50, 24, dtype=torch.float64)
    assert (head(x, x) == 0).all()
    assert (head(x, z) <= head(x, y) + head(y, z) + 1e-9).all()
    assert not torch.allclose(head(x, y), head(y, x))
    torch.testing.assert_close(head.pairwise(x[None], y[None, :7])[0], head(x[:, None], y[:7]))


def test_inverse_dynamics_finds_the_action_that_moved_the_latent():
    torch.manual_seed(0)
    model = InverseDynamics(4, 2, hidden=32)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    latent, action = torch.randn(256, 4), torch.randn(256, 2)
    following = latent + F.pad(action, (0, 2))
    for _ in range(300):
        optimiser.zero_grad()
        loss = (model(latent, following) - action).square().mean()
        loss.backward()
        optimiser.step()
    assert loss < 0.02


def test_norms_keep_their_parameters_when_the_rest_is_bfloat16():
    """The mixture answers in bfloat16, as near to float32 as all of it in bfloat16 does."""
    torch.manual_seed(0)
    exact = MLPPredictor(16, 2, PredictorConfig(hidden=32, layers=2)).requires_grad_(False)
    for norm in exact.norms:
        torch.nn.init.normal_(norm.weight, 1.0, 0.3)
    mixed, plain = to_bfloat16(copy.deepcopy(exact)), copy.deepcopy(exact).bfloat16()
    dtypes = {name: weight.dtype for name, weight in mixed.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if "norms" in name} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if "norms" not in name} == {torch.bfloat16}
    latent, action = torch.randn(64, 16), torch.randn(64, 2)
    half = latent.bfloat16()
    assert mixed(half, action).dtype == torch.bfloat16
    off, plainly_off = (
        (one(half, action).float() - exact(half.float(), action)).abs().mean() for one in (mixed, plain)
    )
    assert off < 1.1 * plainly_off


def test_weights_that_are_no_numbers_are_not_planned_with_in_bfloat16():
    made = world_model()
    with torch.no_grad():
        made.predictor.last.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"predictor's last.weight holds numbers .* --precision fp32"):
        in_bfloat16(made)
