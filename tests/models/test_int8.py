"""Products of 8-bit integers give nearly what the trained predictor gives, row by row, and hide nothing."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from jepaplan.data.normalise import ActionNormaliser, PixelNormaliser
from jepaplan.models import int8 as module
from jepaplan.models.encoders import CompactConfig, CompactEncoder
from jepaplan.models.int8 import Int8Predictor, products_are_right, rounded
from jepaplan.models.predictors import MLPPredictor, PredictorConfig
from jepaplan.models.world_model import LatentWorldModel
from jepaplan.recipes.system import in_int8
from jepaplan.types import InputError

multiplies = pytest.mark.skipif(not products_are_right(), reason="this processor has no exact 8-bit products")


def trained(width: int = 24, actions: int = 2, seed: int = 0, **shape: object) -> MLPPredictor:
    """A predictor with weights of all kinds."""
    torch.manual_seed(seed)
    made = MLPPredictor(width, actions, PredictorConfig(**{"hidden": 32, "layers": 2, **shape}))
    for norm in made.norms:
        if isinstance(norm, nn.LayerNorm):
            nn.init.normal_(norm.weight, 1.0, 0.3)
            nn.init.normal_(norm.bias, 0.2, 0.3)
    return made.eval().requires_grad_(False)


def by_definition(predictor: MLPPredictor, latent: Tensor, action: Tensor) -> Tensor:
    """Every weight and every row replaced by the nearest multiples of its scale; all else in float64."""
    width, hidden = predictor.latent_width, latent.double()
    for number, linear in enumerate([predictor.first, *predictor.hidden, predictor.last]):
        weight, bias = linear.weight.double(), linear.bias.double()
        norm = predictor.norms[number] if number < len(predictor.norms) else None
        if isinstance(norm, nn.LayerNorm):
            weight, bias = weight - weight.mean(dim=0), bias - bias.mean()
        bias = bias + action.double() @ weight[:, width:].T if number == 0 else bias
        weight = weight[:, :width] if number == 0 else weight
        levels = 127 if number == 0 else 254
        hidden = nearest(hidden, levels) @ nearest(weight, 127).T + bias
        if isinstance(norm, nn.LayerNorm):
            hidden = hidden / (hidden.square().mean(dim=1, keepdim=True) + norm.eps).sqrt()
            hidden = hidden * norm.weight.double() + norm.bias.double()
        hidden = hidden if norm is None else hidden.relu()
    held = predictor.config.held
    moved = hidden + latent[:, held:].double() if predictor.config.residual else hidden
    return torch.cat([latent[:, :held].double(), moved], dim=1)


def nearest(rows: Tensor, levels: int) -> Tensor:
    scale = rows.abs().amax(dim=1, keepdim=True) / levels
    return torch.where(scale > 0, (rows / scale).round() * scale, 0.0)


SHAPES = {
    "paper": {"layers": 4},
    "plain": {"norm": False},
    "one layer": {"layers": 1, "norm": False},
    "change": {"residual": True, "norm": False},
    "scene": {"residual": True, "held": 10},
}


@multiplies
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_it_is_what_rounding_by_row_and_by_output_gives(shape: str):
    exact = trained(**SHAPES[shape])
    latent, action = 3 * torch.randn(200, 24), torch.randn(200, 2)
    wanted = by_definition(exact, latent, action)
    found = Int8Predictor(exact)(latent, action)
    # A number in the middle between two levels may go to either, and one level is all that it moves.
    off = (found.double() - wanted).abs().amax(dim=1)
    assert float(off.quantile(0.8)) < 1e-5 * float(wanted.abs().max())
    assert float(off.max()) < 0.02 * float(wanted.std())


@multiplies
@given(
    width=st.integers(1, 70),
    actions=st.integers(1, 5),
    hidden=st.sampled_from([1, 7, 16, 33, 64]),
    layers=st.integers(1, 3),
    norm=st.booleans(),
    residual=st.booleans(),
    rows=st.integers(1, 40),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
@settings(max_examples=60, deadline=None)
@torch.no_grad()
def test_it_is_near_and_every_row_is_its_own(
    width: int, actions: int, hidden: int, layers: int, norm: bool, residual: bool, rows: int, scale: float
):
    exact = trained(width, actions, rows, hidden=hidden, layers=layers, norm=norm, residual=residual)
    rough = Int8Predictor(exact)
    latent, action = scale * torch.randn(rows, width), torch.randn(rows, actions)
    found, wanted = rough(latent, action), exact(latent, action)
    assert found.dtype == torch.float32
    if hidden >= 16 and rows * width >= 16:  # few numbers have few roundings to even out
        size = (wanted - latent if residual else wanted).square().mean().sqrt()
        assert float((found - wanted).square().mean().sqrt()) < 0.1 * float(size)
    row = rows // 2
    assert torch.equal(rough(latent[row : row + 1], action[row : row + 1])[0], found[row])


@multiplies
@torch.no_grad()
def test_a_usual_width_is_off_by_about_a_percent():
    exact = trained(128, hidden=256, residual=True)
    latent, action = torch.randn(500, 128), torch.randn(500, 2)
    wanted = exact(latent, action)
    off = (Int8Predictor(exact)(latent, action) - wanted).abs().mean() / (wanted - latent).abs().mean()
    assert 0.001 < float(off) < 0.02


@multiplies
@torch.no_grad()
def test_what_never_changes_never_changes():
    exact = trained(residual=True, held=10)
    latent = torch.randn(9, 24)
    found = Int8Predictor(exact)(latent, torch.randn(9, 2))
    assert torch.equal(found[:, :10], latent[:, :10])
    assert not torch.isclose(found[:, 10:], latent[:, 10:]).any()


@multiplies
@torch.no_grad()
def test_nothing_is_divided_by_nothing():
    """Rows of zeros, outputs without weights, and units that all sleep."""
    awake, asleep = trained(norm=False), trained(norm=False)
    awake.hidden[0].weight[3] = 0
    asleep.first.bias.fill_(-100)
    asleep.first.weight.zero_()
    latent, action = torch.zeros(4, 24), torch.zeros(4, 2)
    latent[2:], action[2:] = torch.randn(2, 24), torch.randn(2, 2)
    for exact in (awake, asleep):
        found, wanted = Int8Predictor(exact)(latent, action), exact(latent, action)
        torch.testing.assert_close(found, wanted, atol=0.02 * float(wanted.std()), rtol=0)
    assert Int8Predictor(awake)(latent[:0], action[:0]).shape == (0, 24)


@multiplies
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("norm", [True, False])
@torch.no_grad()
def test_what_is_no_number_stays_none_in_its_row(number: float, norm: bool):
    """What a processor divides by zero has a sign; written down it has none."""
    rough = Int8Predictor(trained(norm=norm))
    latent, action = torch.randn(6, 24), torch.randn(6, 2)
    calm = rough(latent, action)
    latent[1, 5], action[4, 0] = number, number
    action[5] = torch.zeros(2) / torch.zeros(2)
    found = rough(latent, action)
    spoiled = torch.tensor([1, 4, 5])
    assert found[spoiled].isnan().all()
    calm[spoiled] = found[spoiled]
    assert torch.equal(found.nan_to_num(), calm.nan_to_num())


def test_weights_are_the_nearest_and_use_all_levels():
    weight = torch.randn(20, 50) * torch.logspace(-3, 3, 20)[:, None]
    found = rounded(weight)
    assert found.numbers.abs().amax(dim=1).tolist() == [127] * 20
    off = (found.scale[:, None] * found.numbers - weight).abs()
    assert (off <= 0.501 * found.scale[:, None]).all()


@multiplies
def test_it_can_be_copied_and_sent():
    rough, latent, action = Int8Predictor(trained()), torch.randn(3, 24), torch.randn(3, 2)
    for twin in (copy.deepcopy(rough), pickle.loads(pickle.dumps(rough))):
        assert torch.equal(twin(latent, action), rough(latent, action))


@multiplies
def test_gradients_are_refused_and_not_wrong():
    rough = Int8Predictor(trained())
    with pytest.raises(InputError, match=r"no gradients.* --precision bf16 or fp32"):
        rough(torch.randn(3, 24), torch.randn(3, 2, requires_grad=True))
    with pytest.raises(InputError, match=r"under vmap"):
        torch.vmap(rough)(torch.randn(3, 4, 24), torch.randn(3, 4, 2))


@multiplies
@torch.no_grad()
def test_other_dtypes_come_back_as_they_were():
    rough, latent, action = Int8Predictor(trained()), torch.randn(3, 24), torch.randn(3, 2)
    for dtype in (torch.float64, torch.bfloat16):
        found = rough(latent.to(dtype), action)
        assert found.dtype == dtype
        assert torch.equal(found, rough(latent.to(dtype).float(), action).to(dtype))


@pytest.fixture
def exact_products(monkeypatch):
    """As if this processor had them; what is found out about others is forgotten afterwards."""
    monkeypatch.setattr(module, "_product", lambda rows, weight: (rows.long() @ weight.long()).int())
    products_are_right.cache_clear()
    yield
    products_are_right.cache_clear()


@pytest.mark.usefixtures("exact_products")
def test_what_it_is_not_written_for_is_named():
    with pytest.raises(InputError, match=r"written for predictors with relu; this one has gelu"):
        Int8Predictor(trained(activation="gelu"))
    broken = trained()
    broken.last.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"predictor's last.weight holds numbers"):
        Int8Predictor(broken)
    with pytest.raises(InputError, match=r"predictor is on meta; take --device cpu, or plan with"):
        Int8Predictor(trained(seed=1).to("meta"))


@pytest.mark.usefixtures("exact_products")
def test_a_machine_with_wrong_sums_is_told_apart(monkeypatch):
    def saturating(rows: Tensor, weight: Tensor) -> Tensor:
        return (rows.long() @ weight.long()).clamp(max=2**15 * 100).int()

    def missing(rows: Tensor, weight: Tensor) -> Tensor:
        raise RuntimeError("not compiled in")

    assert products_are_right()
    for product in (saturating, missing):
        monkeypatch.setattr(module, "_product", product)
        products_are_right.cache_clear()
        with pytest.raises(InputError, match=r"no exact products of 8-bit integers; plan with"):
            Int8Predictor(trained())


@multiplies
def test_only_a_predictor_that_is_one_network_is_rounded():
    encoder = CompactEncoder(CompactConfig(image_size=16, latent_width=24, channels=(4, 4)))
    pixels = PixelNormaliser(torch.tensor([0.1, 0.2]), torch.tensor([0.5, 0.4]), (2, 16, 16))
    actions = ActionNormaliser(torch.zeros(2), torch.ones(2))
    made = LatentWorldModel(encoder, trained(), pixels, actions)
    assert isinstance(in_int8(made).predictor, Int8Predictor)
    assert isinstance(made.predictor, MLPPredictor)
    made.predictor = nn.Identity()
    with pytest.raises(InputError, match=r"written for an MLPPredictor, and this run has a Identity"):
        in_int8(made)


@multiplies
@pytest.mark.parametrize("inputs", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("outputs", [1, 2, 9, 64])
def test_products_are_exact_at_every_width(inputs: int, outputs: int):
    """Of one input torch's operator gives anything at all."""
    rows = torch.randint(-127, 128, (5, inputs), dtype=torch.int8)
    weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    assert torch.equal(module._product(rows, weight.T).long(), rows.long() @ weight.T.long())
