import pytest
import torch
import torch.nn.functional as F

from jepaplan.models import affine as module
from jepaplan.models.affine import Affine, affine, available, takes_onednn
from jepaplan.models.predictors import MLPPredictor, PredictorConfig


@pytest.mark.parametrize("rows", [1, 7, 512])
@pytest.mark.parametrize("shape", [(64, 256), (256, 64), (18, 5)])
def test_without_gradients_the_product_is_that_of_linear(rows: int, shape: tuple[int, int]):
    generator = torch.Generator().manual_seed(rows)
    given, weight = torch.randn(rows, shape[0], generator=generator), torch.randn(shape[::-1]) / 8
    with torch.no_grad():
        torch.testing.assert_close(
            affine(given, weight, torch.ones(shape[1])), F.linear(given, weight, torch.ones(shape[1]))
        )


def test_it_keeps_leading_axes_and_other_dtypes():
    linear = Affine(3, 4)
    with torch.no_grad():
        assert linear(torch.randn(2, 5, 3)).shape == (2, 5, 4)
        assert linear.double()(torch.randn(2, 3, dtype=torch.float64)).dtype == torch.float64
        assert linear.bfloat16()(torch.randn(2, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(("inputs", "outputs"), [(24, 72), (72, 24), (24, 24)])
def test_faster_products_are_linear_layers_with_the_same_gradients(inputs, outputs):
    torch.manual_seed(0)
    layer, rows = Affine(inputs, outputs), torch.randn(5, 17, inputs, requires_grad=True)
    direction = torch.randn(5, 17, outputs)
    found = torch.autograd.grad(layer(rows), (rows, *layer.parameters()), direction)
    plain = F.linear(rows, layer.weight, layer.bias)
    expected = torch.autograd.grad(plain, (rows, *layer.parameters()), direction)
    torch.testing.assert_close(layer(rows), plain, rtol=1e-5, atol=1e-5)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        assert one.is_contiguous()


def test_faster_products_step_aside_where_they_cannot_go():
    layer, rows = Affine(8, 6), torch.randn(4, 3, 8)
    each = torch.func.vmap(layer)(rows)
    torch.testing.assert_close(each, layer(rows))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(rows).dtype == torch.bfloat16
        with torch.no_grad():
            assert layer(rows).dtype == torch.bfloat16
    twice = Affine(8, 6).double()
    assert torch.autograd.gradgradcheck(twice, rows.double().requires_grad_())


@pytest.mark.skipif(not module.available(), reason="oneDNN's product is not used on this processor")
def test_second_derivatives_of_faster_products_are_refused_not_wrong():
    layer, rows = Affine(8, 6), torch.randn(64, 8, requires_grad=True)
    (first,) = torch.autograd.grad(layer(rows).square().sum(), rows, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_a_torch_without_the_operator_still_plans(monkeypatch: pytest.MonkeyPatch):
    class Nothing:
        def __getattr__(self, name: str) -> object:
            raise AttributeError(name)

    module.available.cache_clear()
    monkeypatch.setattr(torch.ops, "mkldnn", Nothing(), raising=False)
    try:
        assert not module.available()
        with torch.no_grad():
            assert torch.equal(affine(torch.eye(2), torch.eye(2), torch.zeros(2)), torch.eye(2))
    finally:
        monkeypatch.undo()
        module.available.cache_clear()


def test_imagination_follows_weights_that_change_after_the_first_step():
    predictor = MLPPredictor(6, 2, PredictorConfig(hidden=8, layers=2))
    latent, action = torch.randn(3, 6), torch.randn(3, 2)
    with torch.no_grad():
        predictor(latent, action)
        predictor.first.weight.mul_(2.0)
        planned = predictor(latent, action)
    torch.testing.assert_close(planned, predictor(latent, action).detach())
    other = MLPPredictor(6, 2, PredictorConfig(hidden=8, layers=2))
    predictor.load_state_dict(other.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(predictor(latent, action), other(latent, action))
        assert predictor.to(torch.bfloat16)(latent.bfloat16(), action).dtype == torch.bfloat16


def test_a_predictor_that_holds_less_than_nothing_is_refused():
    with pytest.raises(ValueError, match="write 0 for none"):
        PredictorConfig(held=-1)


@pytest.mark.parametrize(
    "dtype, rows, gradients, faster",
    [
        (torch.float32, 63, False, False),
        (torch.float32, 64, False, True),
        (torch.float32, 64, True, True),
        (torch.bfloat16, 1, False, True),
        (torch.bfloat16, 64, True, False),
        (torch.float64, 64, False, False),
    ],
)
def test_few_rows_are_not_worth_what_a_call_of_onednn_costs(
    dtype: torch.dtype, rows: int, gradients: bool, faster: bool
):
    with torch.set_grad_enabled(gradients):
        given = torch.zeros(rows, 8, dtype=dtype), torch.zeros(4, 8, dtype=dtype)
        assert takes_onednn(*given) == (faster and available())
