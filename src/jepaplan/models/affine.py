"""`nn.Linear` that plans and trains faster: on processors with AVX-512, oneDNN's products.

Planning is matrix products, and torch takes them from MKL, which on processors of other makers than its own
runs a slower path. oneDNN, built into the same torch, compiles its products for the instructions it finds:
benchmarks/results has the ratio. torch reaches it for float32 through an operator without a public name, the
one its own compiler emits, which also spares bfloat16 some bookkeeping. Where that is missing, on other
devices, in other dtypes, under autocast and inside vmap or a compiler this is `nn.Linear`. The sums are taken
in another order: results differ in the last digits.

For rows x, weight W and the gradient g of W x + b, all three of

    W x + b            rows x weight
    g W                gradient of the rows
    g' x               gradient of the weight, or its transpose, whichever copies the narrower factor

are products of the one kind that oneDNN is asked for, rows with a transposed weight. Processor time on one
core of an AMD EPYC with AVX-512, float32, median [range] of paired rounds, torch's default product against
this: one layer of 128 to 384 channels on 4096 rows, forward and backward, 16.4 ms [16.0-17.9] against 10.0;
a training step of the `nano` video model on 16 clips 0.98 s [0.93-0.99] against 0.76 [0.67-0.79]. Gradients
are float32 only, and first derivatives only.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_DTYPES = (torch.float32, torch.bfloat16)
_ROWS = 64  # of float32: 16 of width 256 take 60 µs with oneDNN and 41 without, and 1.7 times with gradients


class Affine(nn.Linear):
    """A drop-in `nn.Linear`: the same parameters, the same names in a checkpoint."""

    def forward(self, input: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        """W x + b."""
        return affine(input, self.weight, self.bias)


def affine(
    rows: Float[Tensor, "*batch I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None
) -> Float[Tensor, "*batch O"]:
    """W x + b for every row, with first derivatives; by oneDNN where that is known to be faster."""
    return product(rows, weight, bias) if takes_onednn(rows, weight) else F.linear(rows, weight, bias)


def takes_onednn(rows: Tensor, weight: Float[Tensor, "O I"]) -> bool:
    """Whether products of these are oneDNN's: it can be asked for them, and they are known to be faster."""
    usable = rows.device.type == "cpu" and rows.dtype == weight.dtype and rows.dtype in _DTYPES
    if rows.dtype == torch.float32:
        usable = usable and rows.numel() >= _ROWS * rows.shape[-1]
    elif torch.is_grad_enabled():
        usable = False
    # a weight that is a slice would fall back to a reference loop, a hundred times slower
    return usable and weight.is_contiguous() and not others_choose() and available()


def product(
    rows: Float[Tensor, "*batch I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None
) -> Float[Tensor, "*batch O"]:
    """OneDNN's W x + b, without asking whether it is there."""
    if torch.is_grad_enabled():
        return _Product.apply(rows, weight, bias)  # pyright: ignore[reportReturnType]
    return _product(rows, weight, bias)


@functools.cache
def available() -> bool:
    """Whether this torch has the operator, answers rightly, and the processor is of the kind that gains."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    exact = torch.eye(3, 2), torch.arange(8.0).view(4, 2), torch.ones(4)
    try:
        # a private operator may change its arguments in any release: try it once, on numbers known by heart
        for dtype in _DTYPES:
            rows, weight, bias = (part.to(dtype) for part in exact)
            if not torch.equal(_product(rows, weight, bias), F.linear(rows, weight, bias)):
                return False
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False
    return True


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


def others_choose() -> bool:
    """Whether a compiler, a lower precision or vmap and its like choose how things are computed."""
    return (
        torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
        or torch._C._are_functorch_transforms_active()  # pyright: ignore[reportPrivateUsage]
    )


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return _product(rows, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        of_rows = of_weight = of_bias = None
        flat = gradient.reshape(-1, gradient.shape[-1])
        if ctx.needs_input_grad[0]:
            # a transposed weight is small: copying it costs less than the slower product of a view
            of_rows = _product(gradient, weight.T.contiguous(), None)
        if ctx.needs_input_grad[1]:
            of_weight = _product_of_columns(flat, rows.reshape(-1, rows.shape[-1]))
        if ctx.needs_input_grad[2]:
            of_bias = flat.sum(0)
        return of_rows, of_weight, of_bias


def _product_of_columns(left: Float[Tensor, "R O"], right: Float[Tensor, "R I"]) -> Float[Tensor, "O I"]:
    """Left' right; the first factor of oneDNN's product is copied, so let it be the narrower one."""
    if left.shape[1] <= right.shape[1]:
        return _product(left.T.contiguous(), right.T, None)
    return _product(right.T.contiguous(), left.T, None).T.contiguous()
