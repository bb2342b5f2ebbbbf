"""Pictures of worlds as SVG: scenery, recorded paths, maps of a distance.

Lines and texts take their colours from CSS variables with fallbacks, so one picture serves a light page, a
dark page and a file opened by itself. Coordinates are the world's pixels.

    kind of `Patch`                       drawn as
    border                                a line around
    wall                                  a solid rectangle
    pit                                   a rectangle in the colour of danger
    one-way door left, right, up, down    a pale rectangle with an arrow
    key                                   a small ring in a pale rectangle
    door                                  a barred rectangle
    any other                             a dashed outline that names itself
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from jepaplan.data.frames import frame_to_picture
from jepaplan.interfaces import World
from jepaplan.types import InputError, Patch

STYLES = {
    "border": 'fill="none" stroke="var(--wall, #5b6472)" stroke-width="0.8"',
    "wall": 'fill="var(--wall, #5b6472)"',
    "pit": 'fill="var(--pit, #b4472e)" fill-opacity="0.75"',
    "one-way door": 'fill="var(--gate, #3f8f7a)" fill-opacity="0.3"',
    "key": 'fill="var(--key, #c79a1b)" fill-opacity="0.25"',
    "door": 'fill="var(--key, #c79a1b)" fill-opacity="0.75" stroke="var(--wall, #5b6472)" stroke-width="0.6"',
}
UNKNOWN_STYLE = 'fill="none" stroke="var(--wall, #5b6472)" stroke-width="0.4" stroke-dasharray="1 1"'
# Which way an arrow points; y grows downwards.
ARROWS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
PATH_STYLE = 'fill="none" stroke="var(--path, #2563eb)" stroke-linecap="round" stroke-linejoin="round"'
BANDS = 14  # equal steps of the colour scale: their edges read as contour lines
MARGIN = 4  # units between the tiles of a contact sheet
ROUND = 2.0  # units kept around a border line


@dataclass(frozen=True, kw_only=True)
class MapPicture:
    """A distance to one goal from everywhere, drawn."""

    title: str
    svg: str
    low: float
    high: float
    unit: str


def scenery_shapes(patches: Sequence[Patch]) -> str:
    """What does not move, as SVG shapes."""
    return "".join(_patch(patch) for patch in patches)


def _patch(patch: Patch) -> str:
    (left, top), (right, bottom) = patch.low, patch.high
    name, _, way = patch.kind.rpartition(" ")
    kind = name if way in ARROWS else patch.kind
    box = f'x="{left:g}" y="{top:g}" width="{right - left:g}" height="{bottom - top:g}"'
    if kind not in STYLES:
        return f"<rect {box} {UNKNOWN_STYLE}><title>{escape(patch.kind)}</title></rect>"
    x, y, size = (left + right) / 2, (top + bottom) / 2, min(right - left, bottom - top)
    mark = ""
    if way in ARROWS:
        mark = _arrow((x, y), ARROWS[way], 0.35 * size)
    elif kind == "key":
        mark = (
            f'<circle cx="{x:g}" cy="{y:g}" r="{0.25 * size:g}" fill="none" stroke="var(--key, #c79a1b)" '
            'stroke-width="1"/>'
        )
    return f"<rect {box} {STYLES[kind]}/>{mark}"


def _arrow(middle: tuple[float, float], way: tuple[float, float], reach: float) -> str:
    """A shaft through `middle` and two barbs at its tip."""
    (x, y), (dx, dy) = middle, (way[0] * reach, way[1] * reach)
    tip = (x + dx, y + dy)
    barbs = [(tip[0] - 0.7 * (dx + side * dy), tip[1] - 0.7 * (dy + side * dx)) for side in (1, -1)]
    path = f"M{x - dx:g} {y - dy:g}L{tip[0]:g} {tip[1]:g}" + "".join(
        f"M{tip[0]:g} {tip[1]:g}L{barb[0]:g} {barb[1]:g}" for barb in barbs
    )
    return f'<path d="{path}" fill="none" stroke="var(--gate, #3f8f7a)" stroke-width="1"/>'


def view_of(world: World, patches: Sequence[Patch]) -> tuple[float, float, float, float]:
    """Corner, width and height of what a picture shows: within the border line, else all pixels."""
    for patch in patches:
        if patch.kind == "border":
            (left, top), (right, bottom) = patch.low, patch.high
            return left - ROUND, top - ROUND, right - left + 2 * ROUND, bottom - top + 2 * ROUND
    _, height, width = world.image
    return -0.5, -0.5, float(width), float(height)


def polyline(points: Float[Tensor, "K 2"], width: float = 0.7, extra: str = "") -> str:
    """A path through `points`."""
    return f'<polyline points="{_points(points)}" {PATH_STYLE} stroke-width="{width:g}" {extra}/>'


def goal_mark(x: float, y: float) -> str:
    """A ring with a cross: the goal."""
    return (
        f'<g fill="none" stroke="var(--goal, #d97706)" stroke-width="0.9">'
        f'<circle cx="{x:g}" cy="{y:g}" r="2.4"/>'
        f'<path d="M{x - 1:g} {y:g}h2M{x:g} {y - 1:g}v2"/></g>'
    )


def start_mark(x: float, y: float) -> str:
    """A small open ring: the start."""
    return (
        f'<circle cx="{x:g}" cy="{y:g}" r="1.4" fill="var(--page, #ffffff)" stroke="var(--path, #2563eb)" '
        'stroke-width="0.7"/>'
    )


def framed(shapes: str, description: str, view: tuple[float, float, float, float]) -> str:
    """A whole SVG picture, with words for those who do not see it."""
    box = " ".join(f"{number:g}" for number in view)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" role="img" '
        f'aria-label="{escape(description)}">'
        f"<title>{escape(description)}</title>{shapes}</svg>"
    )


def contact_sheet(world: World, states: Float[Tensor, "B T W"], columns: int = 6) -> str:
    """Recorded walks side by side, each in its own layout: what the data look like at a glance."""
    if columns < 1 or states.shape[-1] != world.state_width or len(states) < 1:
        raise InputError(
            f"a contact sheet needs a column, a walk and states of {world.state_width} numbers; got "
            f"columns={columns} and states {tuple(states.shape)}"
        )
    pitch, tiles = max(world.image[1:]) + MARGIN, list[str]()
    for number, walk in enumerate(states):
        row, column = divmod(number, columns)
        path = world.positions(walk)
        end = path[-1].tolist()
        dot = f'<circle cx="{end[0]:.2f}" cy="{end[1]:.2f}" r="1.6" fill="var(--path, #2563eb)"/>'
        shapes = scenery_shapes(world.scenery(walk[0])) + polyline(path) + start_mark(*path[0].tolist()) + dot
        tiles.append(f'<g transform="translate({column * pitch} {row * pitch})">{shapes}</g>')
    width = min(columns, len(states)) * pitch
    height = math.ceil(len(states) / columns) * pitch
    words = f"{len(states)} recorded paths in their layouts; each begins at an open ring and ends at a dot"
    return framed("".join(tiles), words, (0.0, 0.0, float(width - MARGIN), float(height - MARGIN)))


def frame_picture(frame: UInt8[Tensor, "C height width"], description: str) -> str:
    """What the encoder sees, enlarged without smoothing; two channels are a dot and walls."""
    _, height, width = frame.shape
    pixels = _dot_and_walls(frame) if len(frame) == 2 else np.asarray(frame_to_picture(frame))
    return (
        f'<img class="pixels" alt="{escape(description)}" src="{_png(pixels)}" '
        f'width="{width}" height="{height}">'
    )


def _dot_and_walls(frame: UInt8[Tensor, "2 height width"]) -> UInt8[np.ndarray, "height width 3"]:
    """The dot in one colour, the walls in another."""
    dot, walls = frame.float()[..., None] / 255
    dark, warm, grey = (
        torch.tensor(colour) for colour in ((13.0, 17, 28), (255.0, 196, 84), (96.0, 116, 150))
    )
    picture = dark + walls * (grey - dark)
    picture = picture + dot * (warm - picture)
    return picture.round().to(torch.uint8).numpy()


def map_picture(
    world: World,
    values: Float[Tensor, "rows columns"],
    goal: Float[Tensor, " W"],
    words: tuple[str, str],
) -> MapPicture:
    """A map of distances from `probes.distance_map`; `words` are its title and its unit. Near is bright."""
    title, unit = words
    known = values[values.isfinite()]
    if known.numel() == 0:
        raise InputError(f"the map {title!r} has no finite value; compute it with `probes.distance_map`")
    low, high = float(known.min()), float(known.max())
    # the dearest places of a learned map can be outliers: the scale ends where 99 % of the map does
    top = float(known.double().quantile(0.99))
    share = ((values - low) / max(top - low, 1e-12)).clamp(0, 1)
    band = (share * BANDS).floor().clamp(max=BANDS - 1) / (BANDS - 1)
    colours = torch.tensor(colormaps["viridis_r"](band.nan_to_num().numpy())) * 255
    colours[..., 3] = torch.where(values.isnan(), 0, 255)
    _, height, width = world.image
    # a pixel's centre is at its integer coordinate, so the picture begins half a pixel before it
    image = (
        f'<image href="{_png(colours.round().to(torch.uint8).numpy())}" x="-0.5" y="-0.5" '
        f'width="{width}" height="{height}" '
        'preserveAspectRatio="none" style="image-rendering:pixelated"/>'
    )
    description = f"Map of the {title} to the goal from everywhere, {low:.1f} to {high:.1f} {unit}"
    patches = world.scenery(goal)
    mark = goal_mark(*world.positions(goal).tolist())
    svg = framed(image + scenery_shapes(patches) + mark, description, view_of(world, patches))
    return MapPicture(title=title, svg=svg, low=low, high=high, unit=unit)


def colour_scale() -> Sequence[str]:
    """The colours of the maps' bands, near to far, as CSS colours."""
    rows = colormaps["viridis_r"]([band / (BANDS - 1) for band in range(BANDS)])
    return [f"rgb({red * 255:.0f} {green * 255:.0f} {blue * 255:.0f})" for red, green, blue, _ in rows]


def _points(points: Float[Tensor, "K 2"]) -> str:
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in points.tolist())


def _png(pixels: UInt8[np.ndarray, "height width *channels"]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
