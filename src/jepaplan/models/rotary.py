"""Rotary positions on three axes: a token of a clip turns its queries and keys by its time, row and column.

Su et al., "RoFormer", arXiv:2104.09864, section 3.2, on each axis of the grid as V-JEPA 2 does (Assran et
al., arXiv:2506.09985, section 2.1). A head's channels are cut into [time: d | row: d | column: d | rest];
d = 2 floor(floor(width of a head / 3) / 2), and the rest is not turned. Channels 2j and 2j+1 of an axis are
one plane, turned by position * omega_j:

    paper      here
    theta_j    omega_j = base^(-j / (d / 2)), j = 0 ... d/2 - 1; base 10000 in both papers
    m          the token's time, row or column, counted in tubelets and patches

Two layouts of the same table. `interleaved` gives both channels of a plane the same omega_j: a rotation, and
attention then depends on differences of positions only. `tiled` lays the table down twice, omega_0 ...
omega_(d/2-1), omega_0 ..., so the two channels of a plane get different angles: no rotation, but what the
released V-JEPA 2 weights were trained with, and they answer rightly with nothing else.

With few tokens per axis a base of 10000 wastes planes: on an axis of 8, with five planes, all but the first
two turn by less than a tenth of a circle from end to end. A base near the grid's size uses them all.
"""

import functools
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from jepaplan.types import InputError

RopeLayout = Literal["interleaved", "tiled"]
Grid = tuple[int, int, int]  # tubelets, rows, columns

ROPE_BASE = 10_000.0  # of the papers and released weights
_TABLES_KEPT = 32  # grids x widths of a head x layouts x devices x dtypes


@dataclass(frozen=True)
class Rotation:
    """What turns the channels of a head: one row per token, the same for all heads.

    `sin` carries the sign of its place in the plane (minus on even channels), so turning is two products and
    a swap of neighbours; channels that are not turned have cosine 1 and sine 0. Where both channels of a
    plane turn by one angle, `planes` says the same as complex numbers, and turning is one product.
    """

    cos: Float[Tensor, "*#batch N W"]
    sin: Float[Tensor, "*#batch N W"]
    planes: Complex[Tensor, "*#batch N W/2"] | None = None

    def at(self, ids: Int[Tensor, "B K"]) -> "Rotation":
        """The rows of some tokens, for each clip its own."""
        return Rotation(self.cos[ids], self.sin[ids], None if self.planes is None else self.planes[ids])

    def __call__(self, channels: Float[Tensor, "B N heads W"]) -> Float[Tensor, "B N heads W"]:
        """Queries or keys, turned; in at least float32, then back to the dtype that came."""
        # a third of the time on a CPU, but the compiler leaves complex products as they are, unfused
        if self.planes is not None and channels.dtype == self.cos.dtype and not torch.compiler.is_compiling():
            pairs = torch.view_as_complex(channels.unflatten(-1, (-1, 2)))
            return torch.view_as_real(pairs * self.planes.unsqueeze(-2)).flatten(-2)
        neighbours = channels.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        turned = channels * self.cos.unsqueeze(-2) + neighbours * self.sin.unsqueeze(-2)
        return turned.to(channels.dtype)


def turned_channels(head_width: int) -> int:
    """Channels of a head that belong to each of the three axes."""
    return 2 * (head_width // 3 // 2)


def refuse_other_rope(layout: str, base: float) -> None:
    """Layouts that there are, and a base above 1: later planes turn slower."""
    if layout not in ("interleaved", "tiled"):
        raise InputError(f"rope_layout is {layout!r}; write 'interleaved', or 'tiled' for released weights")
    if not 1 < base < float("inf"):
        raise InputError(f"rope_base is a number above 1, {ROPE_BASE:g} for released weights; got {base}")


def refuse_unturnable_heads(width: int, heads: int) -> None:
    """A head needs one plane per axis, and whole planes."""
    if width < 1 or heads < 1 or width % heads:
        raise InputError(
            f"a transformer of width {width} cannot be cut into {heads} heads of equal width; choose heads "
            f"from the divisors of {width}"
        )
    if width // heads < 6 or (width // heads) % 2:
        raise InputError(
            f"{heads} heads of {width} channels are {width // heads} wide; three axes of rotary positions "
            f"need an even width of 6 or more: write heads={max(1, width // 32)} or fewer, or another width"
        )


def grid_ids(
    ids: Int[Tensor, "*batch N"], grid: Grid
) -> tuple[Int[Tensor, "*batch N"], Int[Tensor, "*batch N"], Int[Tensor, "*batch N"]]:
    """Time, row and column of token ids that run through time first; ids beyond the clip are later times."""
    _, rows, columns = grid
    within = ids.remainder(rows * columns)
    time = ids.div(rows * columns, rounding_mode="floor")
    return time, within.div(columns, rounding_mode="floor"), within.remainder(columns)


def rotation_at(
    positions: tuple[Float[Tensor, "*batch N"], Float[Tensor, "*batch N"], Float[Tensor, "*batch N"]],
    head_width: int,
    layout: RopeLayout,
    base: float = ROPE_BASE,
) -> Rotation:
    """The rotation of tokens at any (time, row, column), whole or not; a zero leaves that axis unturned."""
    refuse_other_rope(layout, base)
    planes = turned_channels(head_width) // 2
    # in this order of operations, in the table's own dtype: released weights saw exactly these numbers
    omega = torch.arange(planes, device=positions[0].device, dtype=positions[0].dtype)
    omega = 1.0 / base ** (omega / (planes * 1.0))
    angles = [axis.unsqueeze(-1) * omega for axis in positions]
    if layout == "interleaved":
        angles = [axis.repeat_interleave(2, dim=-1) for axis in angles]
    else:
        angles = [torch.cat([axis, axis], dim=-1) for axis in angles]
    rest = (*angles[0].shape[:-1], head_width - 6 * planes)
    cos = torch.cat([*(axis.cos() for axis in angles), angles[0].new_ones(rest)], dim=-1)
    sin = torch.cat([*(axis.sin() for axis in angles), angles[0].new_zeros(rest)], dim=-1)
    turns = torch.complex(cos[..., ::2], sin[..., ::2]) if layout == "interleaved" else None
    sign = torch.ones(head_width, device=sin.device, dtype=sin.dtype)
    sign[::2] = -1.0
    return Rotation(cos, sin * sign, turns)


def rotation_of_ids(
    ids: Int[Tensor, "*batch N"],
    grid: Grid,
    head_width: int,
    layout: RopeLayout,
    dtype: torch.dtype,
    base: float = ROPE_BASE,
) -> Rotation:
    """The rotation of tokens named by their ids, which may lie beyond the clip."""
    time, row, column = (axis.to(table_dtype(dtype)) for axis in grid_ids(ids, grid))
    return rotation_at((time, row, column), head_width, layout, base)


def rotation_of_grid(
    grid: Grid,
    head_width: int,
    layout: RopeLayout,
    device: torch.device,
    dtype: torch.dtype,
    base: float = ROPE_BASE,
) -> Rotation:
    """The rotation of all tokens of a clip; computed once for each grid, device and dtype."""
    # the compiler looks through the cache, so it is given what lies behind it
    table = _grid_table if torch.compiler.is_compiling() else _kept_grid_table
    return table(grid, head_width, layout, device, table_dtype(dtype), base)


def table_dtype(dtype: torch.dtype) -> torch.dtype:
    """Angles in half precision would confuse neighbours of a long clip, so tables are never below float32."""
    return torch.promote_types(dtype, torch.float32)


def _grid_table(
    grid: Grid,
    head_width: int,
    layout: RopeLayout,
    device: torch.device,
    dtype: torch.dtype,
    base: float = ROPE_BASE,
) -> Rotation:
    ids = torch.arange(grid[0] * grid[1] * grid[2], device=device)
    return rotation_of_ids(ids, grid, head_width, layout, dtype, base)


@functools.lru_cache(maxsize=_TABLES_KEPT)
def _kept_grid_table(
    grid: Grid,
    head_width: int,
    layout: RopeLayout,
    device: torch.device,
    dtype: torch.dtype,
    base: float = ROPE_BASE,
) -> Rotation:
    # A table first asked for in inference mode must not be refused by autograd later.
    with torch.inference_mode(False), torch.no_grad():
        return _grid_table(grid, head_width, layout, device, dtype, base)
