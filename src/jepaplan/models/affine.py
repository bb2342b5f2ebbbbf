"""`nn.Linear` that plans faster: on processors with AVX-512, oneDNN's product instead of the default one.

Planning is matrix products, and torch takes them from MKL, which on processors of other makers than its own
runs a slower path. oneDNN, built into the same torch, compiles its products for the instructions it finds:
benchmarks/results has the ratio. torch reaches it for float32 through an operator without a public name, the
one its own compiler emits, which also spares bfloat16 some bookkeeping; where that is missing, where
gradients flow, on other devices and in other dtypes this is `nn.Linear`. The sums are taken in another order:
results differ in the last digits.
"""

import functools

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_DTYPES = (torch.float32, torch.bfloat16)


class Affine(nn.Linear):
    """A drop-in `nn.Linear`: the same parameters, the same names in a checkpoint."""

    def forward(self, input: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        """W x + b."""
        return affine(input, self.weight, self.bias)


def affine(
    rows: Float[Tensor, "*batch I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None
) -> Float[Tensor, "*batch O"]:
    """W x + b for every row; by oneDNN where that is known to be faster and nobody asks for gradients."""
    return product(rows, weight, bias) if takes_onednn(rows, weight) else F.linear(rows, weight, bias)


def takes_onednn(rows: Tensor, weight: Float[Tensor, "O I"]) -> bool:
    """Whether products of these are oneDNN's: nobody asks for gradients, and they are known to be faster."""
    usable = rows.device.type == "cpu" and rows.dtype == weight.dtype and rows.dtype in _DTYPES
    # a weight that is a slice would fall back to a reference loop, a hundred times slower
    return usable and not torch.is_grad_enabled() and weight.is_contiguous() and available()


def product(
    rows: Float[Tensor, "*batch I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None
) -> Float[Tensor, "*batch O"]:
    """OneDNN's W x + b, without asking whether it is there."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


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
            if not torch.equal(product(rows, weight, bias), F.linear(rows, weight, bias)):
                return False
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False
    return True
