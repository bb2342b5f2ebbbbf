import pytest
import torch
import torch.nn.functional as F

from jepaplan.models import affine as module
from jepaplan.models.affine import Affine, affine
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


def test_with_gradients_it_is_nn_linear_to_the_bit():
    given, linear = torch.randn(9, 6, requires_grad=True), Affine(6, 4)
    mine = torch.autograd.grad(linear(given).square().sum(), [given, *linear.parameters()])
    theirs = torch.autograd.grad(
        F.linear(given, linear.weight, linear.bias).square().sum(), [given, *linear.parameters()]
    )
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


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
