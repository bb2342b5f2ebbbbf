"""One pass over the rows gives what LayerNorm and ReLU give, wherever it is taken, and hides nothing."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from jepaplan.models import norm_relu as module
from jepaplan.models.norm_relu import norm_relu, relu


@pytest.fixture(autouse=True)
def one_thread():
    """Where the loop is taken, whatever machine this is."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def norm_of(width: int) -> nn.LayerNorm:
    norm = nn.LayerNorm(width)
    generator = torch.Generator().manual_seed(width)
    with torch.no_grad():
        norm.weight.uniform_(-1, 2, generator=generator)
        norm.bias.normal_(generator=generator)
    return norm


@given(
    rows=st.integers(1, 9),
    width=st.sampled_from([1, 2, 7, 16, 33, 256]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
    shift=st.sampled_from([0.0, -3.0]),
)
@settings(max_examples=60, deadline=None)
@torch.no_grad()
def test_it_is_the_norm_and_the_activation(
    rows: int, width: int, dtype: torch.dtype, scale: float, shift: float
):
    norm = norm_of(width)
    numbers = scale * (torch.randn(rows, width, generator=torch.Generator().manual_seed(rows)) + shift)
    given_ = numbers.to(dtype)
    wanted = F.relu(F.layer_norm(given_.double(), (width,), norm.weight.double(), norm.bias.double()))
    # bfloat16 has eight binary digits
    torch.testing.assert_close(
        norm_relu(norm, given_.clone()).double(),
        wanted,
        rtol=2**-8 if dtype == torch.bfloat16 else 1e-5,
        atol=2e-5,
    )


@torch.no_grad()
def test_the_loop_is_what_is_taken():
    """In place without gradients; else the sums would be torch's, and slower ones."""
    for dtype in (torch.float32, torch.bfloat16):
        rows = torch.randn(4, 8).to(dtype)
        assert module._fits_loop(norm_of(8), rows)
        assert norm_relu(norm_of(8), rows) is rows


@pytest.mark.parametrize(
    "case", ["gradients", "double", "threads", "strided", "half norm", "autocast", "plain"]
)
def test_elsewhere_torch_is_asked(case: str):
    norm, rows = norm_of(8), torch.randn(4, 8)
    kept = rows.clone()
    if case == "gradients":
        rows.requires_grad_()
        norm_relu(norm, rows).sum().backward()
        assert rows.grad is not None
        assert torch.equal(rows.detach(), kept)
        return
    with torch.no_grad():
        if case == "double":
            norm, rows = norm.double(), rows.double()
        elif case == "half norm":
            norm, rows = norm.bfloat16(), rows.bfloat16()
        elif case == "threads":
            torch.set_num_threads(module._THREADS + 1)
        elif case == "strided":
            rows = rows.T.contiguous().T
        elif case == "plain":
            norm = nn.LayerNorm(8, elementwise_affine=False)
        with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
            assert not module._fits_loop(norm, rows)
            assert torch.equal(norm_relu(norm, rows.clone()), F.relu(norm(rows)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_what_is_no_number_stays_none(dtype: torch.dtype):
    """A model that diverged must be seen to have diverged."""
    rows = torch.randn(3, 8).to(dtype)
    rows[0, 3], rows[1, 5] = torch.nan, torch.inf
    found: Tensor = norm_relu(norm_of(8), rows)
    assert found[:2].isnan().all()
    assert found[2].isfinite().all()


def test_the_activation_in_bfloat16_is_relu_to_the_bit():
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    numbers = every[~every.isnan()]  # all there are, both zeros and both infinities among them
    found = relu(numbers.clone())
    assert torch.equal(found, F.relu(numbers))
    assert not found.signbit().any()
    with torch.autocast("cpu", torch.bfloat16):  # a training's held-out loss must not hide what went wrong
        assert relu(-every[every.isnan()]).isnan().all()
    graded = torch.randn(5, dtype=torch.bfloat16, requires_grad=True)
    assert torch.equal(relu(graded), F.relu(graded))
