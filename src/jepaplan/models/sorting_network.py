"""A bitonic sorting network on the rows of a matrix: many short lists sorted side by side.

Batcher, "Sorting networks and their applications", AFIPS 1968. Column c of the matrix is one list; comparing
row i with row j is then one `minimum` and one `maximum` over long runs of memory, which beats `torch.sort`
on lists of 4 to 32 numbers (measured in `benchmarks/quasimetric.py`). Where a permutation is needed too, one
byte per comparison remembers who changed places.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def sort_rows(
    values: Float[Tensor, "L columns"], swaps: list[Tensor] | None = None
) -> Float[Tensor, "L columns"]:
    """Each column in ascending order, L a power of two; `swaps` receives what `unsort_rows` needs."""
    spare = torch.empty_like(values)
    result = torch.empty_like(values) if len(values) > 1 else values
    for stride, block in _stages(len(values)):
        low, high = _halves(values, stride)
        if 2 * stride == block and stride > 1:
            # The two sorted halves meet head to tail, which makes their concatenation bitonic.
            high = high.flip(1)
        if swaps is not None:
            swaps.append(low > high)
        low_out, high_out = _halves(result, stride)
        torch.minimum(low, high, out=low_out)
        torch.maximum(low, high, out=high_out)
        values, result, spare = result, spare, result
    return values


def unsort_rows(flags: Bool[Tensor, "L columns"], swaps: list[Tensor]) -> Bool[Tensor, "L columns"]:
    """Carry marks of the sorted numbers back to the rows from which those numbers came. Works in place."""
    for (stride, block), swapped in zip(reversed(_stages(len(flags))), reversed(swaps), strict=True):
        low, high = _halves(flags, stride)
        exchanged = (low ^ high) & swapped
        low ^= exchanged
        high ^= exchanged
        if 2 * stride == block and stride > 1:
            high.copy_(high.flip(1))
    return flags


def _stages(length: int) -> list[tuple[int, int]]:
    """(stride, block) of each stage: blocks of 2, 4, ... rows are merged by strides block/2, ..., 1."""
    stages: list[tuple[int, int]] = []
    block = 2
    while block <= length:
        stride = block // 2
        while stride >= 1:
            stages.append((stride, block))
            stride //= 2
        block *= 2
    return stages


def _halves(values: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Views of the rows that compare as the lower and as the higher partner at distance `stride`."""
    pairs = values.view(-1, 2, stride, values.shape[-1])
    return pairs[:, 0], pairs[:, 1]
