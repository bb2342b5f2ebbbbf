"""LayerNorm and ReLU of a planner's predictor in one pass over the rows.

Between the products of a small network on a processor, torch's LayerNorm is the largest part: it reads a row
more often than it must, most of all in bfloat16, and the activation is one more pass. Without gradients both
are one compiled loop here (`norm_relu_loops`). 4,096 rows of width 256 on one core of an AMD EPYC with
AVX-512, torch's two passes against this one: 0.6 ms and 0.24 in float32, 0.8 to 0.9 and 0.36 in bfloat16 (a
pilot, before the bfloat16 loop lost two passes; what a replan takes is in benchmarks/results). The loop runs
on one core, so with more than two threads, with gradients, under autocast, compilers and vmap, in other
dtypes and on other devices torch's own are taken. Sums are taken in another order: results differ in the last
digits.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jepaplan.models.affine import others_choose

_THREADS = 2  # torch's own passes share the rows among more


def norm_relu(norm: nn.LayerNorm, rows: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    """max(0, norm(row)) of every row; without gradients `rows` is used up."""
    if not _fits_loop(norm, rows):
        return relu(norm(rows))
    # numba takes 0.3 s to import, and who only looks at a run has no use for it
    from jepaplan.models.norm_relu_loops import norm_relu_bfloat16, norm_relu_float32

    weight, bias = norm.weight.detach().numpy(), norm.bias.detach().numpy()
    if rows.dtype == torch.float32:
        norm_relu_float32(rows.numpy(), weight, bias, norm.eps)
    else:
        norm_relu_bfloat16(rows.view(torch.uint16).numpy(), weight, bias, norm.eps)
    return rows


def relu(hidden: Tensor) -> Tensor:
    """max(0, x); without gradients `hidden` is used up."""
    bits = hidden.dtype == torch.bfloat16 and hidden.device.type == "cpu" and not hidden.requires_grad
    if bits and not torch.is_autocast_enabled("cpu"):
        # Negative numbers are negative integers too, and torch clamps those six times faster. A NaN may
        # become zero: who plans in bfloat16 looks for it before (`in_bfloat16`, `WeightedSum.bind`). Under
        # autocast a training is judged, where a NaN has to be seen.
        hidden.view(torch.int16).clamp_min_(0)
        return hidden
    return F.relu(hidden, inplace=not hidden.requires_grad)


def _fits_loop(norm: nn.LayerNorm, rows: Tensor) -> bool:
    plain = rows.device.type == "cpu" and rows.dtype in (torch.float32, torch.bfloat16)
    plain = plain and rows.ndim == 2 and rows.is_contiguous() and not torch.is_grad_enabled()
    mixed = [part.dtype == torch.float32 and part.device == rows.device for part in norm.parameters()]
    return plain and mixed == [True, True] and torch.get_num_threads() <= _THREADS and not others_choose()
