"""Lengths of unions of intervals [u_j, max(u_j, v_j)], many at once, with cheap exact gradients.

The core of the interval quasimetric embedding, Wang and Isola, arXiv:2211.15120, equation 1. Two algorithms,
both exact:

`union_lengths` takes pairs (u, v). With starts s_(1) <= ... <= s_(l) and ends e_(1) <= ... <= e_(l) sorted
apart from each other, nothing is open between e_(m) and s_(m+1) exactly if e_(m) < s_(m+1), so with s_(l+1)
= infinity

    |union| = sum_m ( min(e_(m), s_(m+1)) - s_(m) ).

`pairwise_union_lengths` takes all pairs of some u with some v. Each u is sorted once; then v follows in the
order of u, and one scan keeps c_m, the right edge reached by the first m intervals: |union| = sum_m ( c_m -
max(s_m, c_(m-1)) ), with c_0 = s_1.

Every summand is >= 0 and exactly 0 where u = v. The length changes by +1 per unit moved by an end that
closes a covered run, and by -1 per unit of a start that opens one; all other derivatives are 0.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from jepaplan.models.sorting_network import sort_rows, unsort_rows

_CACHED_NUMBERS = 131_072  # sorted at once on a CPU, so that buffers stay in the caches; measured
_SCANNED_NUMBERS = 524_288  # of all pairs, scanned at once on a CPU: fewer buffers, so more of them fit


def union_lengths(source: Float[Tensor, "rows L"], goal: Float[Tensor, "rows L"]) -> Float[Tensor, " rows"]:
    """Length of the union of [source_l, max(source_l, goal_l)] in each row."""
    source, goal = _pad_to_power_of_two(source, goal)
    if torch.is_grad_enabled() and (source.requires_grad or goal.requires_grad):
        return cast(Callable[[Tensor, Tensor], Tensor], _UnionLengths.apply)(source, goal)
    return _by_blocks(source, goal, signs=None)


def pairwise_union_lengths(
    sources: Float[Tensor, "M K L"], goals: Float[Tensor, "N K L"]
) -> Float[Tensor, "M N K"]:
    """Length of the union for every source with every goal, component by component."""
    starts, order = sources.sort(dim=-1)
    return cast(Callable[..., Tensor], _PairwiseUnionLengths.apply)(starts, goals, order)


class _UnionLengths(torch.autograd.Function):
    """The derivatives are signs, found while sorting: one byte per number is all that is kept."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, goal: Tensor) -> Tensor:  # type: ignore[override]
        signs = torch.empty((2, *source.shape), dtype=torch.int8, device=source.device)
        ctx.save_for_backward(signs)
        return _by_blocks(source, goal, signs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        (signs,) = ctx.saved_tensors
        column = gradient[:, None]
        needs_source, needs_goal = ctx.needs_input_grad
        return (column * signs[0] if needs_source else None), (column * signs[1] if needs_goal else None)


def _by_blocks(source: Tensor, goal: Tensor, signs: Tensor | None) -> Tensor:
    rows, intervals = source.shape
    block = max(1, _CACHED_NUMBERS // (2 * intervals)) if source.device.type == "cpu" else max(1, rows)
    lengths = source.new_empty(rows)
    for begin in range(0, rows, block):
        part = slice(begin, begin + block)
        lengths[part] = _block_lengths(source[part], goal[part], None if signs is None else signs[:, part])
    return lengths


def _block_lengths(source: Tensor, goal: Tensor, signs: Tensor | None) -> Tensor:
    """Lengths; `signs` (2, rows, L), where given, receives the derivatives by source and by goal."""
    rows = len(source)
    swaps: list[Tensor] | None = None if signs is None else []
    endpoints = torch.cat([source, torch.maximum(source, goal)])
    # Intervals first, rows last: each exchange of the network is then one long run of memory.
    ordered = sort_rows(endpoints.T.contiguous(), swaps)
    starts, ends = ordered[:, :rows], ordered[:, rows:]
    if signs is not None and swaps is not None:
        flags = torch.ones_like(ordered, dtype=torch.bool)
        torch.gt(starts[1:], ends[:-1], out=flags[1:, :rows])  # a start beyond all earlier ends opens a run
        flags[:-1, rows:] = flags[1:, :rows]  # and the end before it closed one
        opens, closes = unsort_rows(flags, swaps).T.contiguous().view(torch.int8).view(2, rows, -1)
        torch.mul(closes, goal > source, out=signs[1])
        torch.sub(closes - opens, signs[1], out=signs[0])  # the end of an empty interval is the source itself
    torch.minimum(ends[:-1], starts[1:], out=ends[:-1])
    return ends.sub_(starts).sum(0)


def _pad_to_power_of_two(source: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """Add empty intervals [source_1, source_1] until the network can sort them; they change no union."""
    intervals = source.shape[-1]
    missing = (1 << (intervals - 1).bit_length()) - intervals
    if missing == 0:
        return source, goal
    empty = source[..., :1].expand(*source.shape[:-1], missing)
    return torch.cat([source, empty], dim=-1), torch.cat([goal, empty], dim=-1)


class _PairwiseUnionLengths(torch.autograd.Function):
    """Keeps only its inputs and scans again for the derivatives: all pairs of latents never exist at once."""

    @staticmethod
    def forward(ctx: Any, starts: Tensor, goals: Tensor, order: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(starts, goals, order)
        table = goals.flatten(1).T.contiguous()
        lengths = starts.new_empty(len(starts), starts.shape[1], len(goals))
        for part in _blocks_of_sources(starts, goals):
            begins, covered = _scan(starts[part], order[part], table)
            torch.sub(covered[0], begins[0], out=lengths[part].flatten(0, 1))
            covered[1:].sub_(torch.maximum(begins[1:], covered[:-1]))
            lengths[part].flatten(0, 1).add_(covered[1:].sum(0))
        return lengths.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        starts, goals, order = ctx.saved_tensors
        table = goals.flatten(1).T.contiguous()
        by_start, by_table = torch.empty_like(starts), torch.zeros_like(table)
        for part in _blocks_of_sources(starts, goals):
            sources, components, intervals = starts[part].shape
            begins, covered = _scan(starts[part], order[part], table)
            opens, closes = _edges_of_runs(begins, covered)
            from_goal = (
                covered > begins
            )  # asked only where an interval closes a run: there its end is the edge
            weight = gradient[part].mT.reshape(1, -1, len(goals))
            goal_share = weight * (closes & from_goal)
            start_share = weight * ((closes & ~from_goal).view(torch.int8) - opens.view(torch.int8))
            by_start[part] = start_share.sum(-1).view(intervals, sources, components).permute(1, 2, 0)
            # Each source used every row of the table once: back in the table's order, its shares simply add
            # up.
            back = _rows_of_scan(order[part].argsort(dim=-1))
            by_table += goal_share.flatten(0, 1).index_select(0, back).view(sources, -1, len(goals)).sum(0)
        return by_start, by_table.T.reshape(goals.shape), None


def _blocks_of_sources(starts: Tensor, goals: Tensor) -> list[slice]:
    numbers = _SCANNED_NUMBERS if starts.device.type == "cpu" else 64 * _SCANNED_NUMBERS
    block = max(1, numbers // max(1, goals.numel()))
    return [slice(begin, begin + block) for begin in range(0, len(starts), block)]


def _scan(
    starts: Float[Tensor, "m K L"], order: Tensor, table: Float[Tensor, "KL N"]
) -> tuple[Tensor, Tensor]:
    """Sorted starts (L, m K, 1) and the right edges reached by the intervals up to each (L, m K, N)."""
    sources, components, intervals = starts.shape
    offset = torch.arange(components, device=order.device)[:, None] * intervals
    rows = (order + offset).permute(2, 0, 1).flatten()
    ends = table.index_select(0, rows).view(intervals, sources * components, -1)
    begins = starts.permute(2, 0, 1).reshape(intervals, -1, 1)
    torch.maximum(ends, begins, out=ends)
    for earlier, later in pairwise(ends):
        torch.maximum(earlier, later, out=later)
    return begins, ends


def _rows_of_scan(rank: Tensor) -> Tensor:
    """Row of a scan where each number stands, given its rank within its source and component."""
    sources, components, _ = rank.shape
    columns = torch.arange(sources * components, device=rank.device).view(sources, components, 1)
    return (rank * (sources * components) + columns).flatten()


def _edges_of_runs(begins: Tensor, covered: Tensor) -> tuple[Tensor, Tensor]:
    """Which intervals of a scan open a covered run, and which close one."""
    opens = torch.ones_like(covered, dtype=torch.bool)
    closes = torch.ones_like(opens)
    torch.gt(begins[1:], covered[:-1], out=opens[1:])
    torch.gt(covered[1:], covered[:-1], out=closes[1:])  # intervals that reach further than all before them
    closed = torch.zeros_like(opens[0])
    for opening, reaching in zip(opens.flip(0), reversed(closes.unbind(0)), strict=True):
        # From the right: the first interval met that reaches further closes the run; its opening starts the
        # next search.
        seen = closed | reaching
        reaching &= ~closed
        closed = seen & ~opening
    return opens, closes
