"""Pictures of the two rooms as SVG: layouts, recorded paths, maps of a distance.

Lines and texts take their colours from CSS variables with fallbacks, so one picture serves a light page, a
dark page and a file opened by itself. Coordinates are the world's pixels.
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import torch
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from jepaplan.envs.wall import WallConfig, WallLayouts
from jepaplan.types import InputError

WALL_STYLE = 'fill="var(--wall, #5b6472)"'
PATH_STYLE = 'fill="none" stroke="var(--path, #2563eb)" stroke-linecap="round" stroke-linejoin="round"'
BANDS = 14  # equal steps of the colour scale: their edges read as contour lines
THUMBNAIL = 68  # units per tile of a contact sheet: one picture and its margin


@dataclass(frozen=True, kw_only=True)
class MapPicture:
    """A distance to one goal from everywhere, drawn."""

    title: str
    svg: str
    low: float
    high: float
    unit: str


def room_shapes(config: WallConfig, wall_x: float, door_y: float) -> str:
    """The border and the wall with its door, as SVG shapes."""
    low, high, half = config.low, config.high, config.wall_half_width
    top, bottom = door_y - config.door_half_width, door_y + config.door_half_width
    x, width = wall_x - half, 2 * half
    return (
        f'<rect x="{low:g}" y="{low:g}" width="{high - low:g}" height="{high - low:g}" fill="none" '
        'stroke="var(--wall, #5b6472)" stroke-width="0.8"/>'
        f'<rect x="{x:g}" y="{low:g}" width="{width:g}" height="{top - low:g}" {WALL_STYLE}/>'
        f'<rect x="{x:g}" y="{bottom:g}" width="{width:g}" height="{high - bottom:g}" {WALL_STYLE}/>'
    )


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


def framed(
    shapes: str, description: str, view: tuple[float, float, float, float] = (2.0, 2.0, 59.0, 59.0)
) -> str:
    """A whole SVG picture of one room, with words for those who do not see it."""
    box = " ".join(f"{number:g}" for number in view)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" role="img" '
        f'aria-label="{escape(description)}">'
        f"<title>{escape(description)}</title>{shapes}</svg>"
    )


def path_picture(
    config: WallConfig, wall: tuple[float, float], path: Float[Tensor, "T 2"], goal: tuple[float, float]
) -> str:
    """One episode at a glance: the whole path and the goal."""
    shapes = room_shapes(config, *wall) + goal_mark(*goal) + polyline(path)
    return framed(shapes + start_mark(*path[0].tolist()), "The path of one episode through the two rooms")


def contact_sheet(
    config: WallConfig, layouts: WallLayouts, paths: Float[Tensor, "B T 2"], columns: int = 6
) -> str:
    """Recorded paths side by side, each in its own layout: what the data look like at a glance."""
    if columns < 1 or len(paths) != len(layouts.wall_x):
        raise InputError(
            f"a contact sheet needs a column and one layout per path; got columns={columns}, "
            f"{len(paths)} paths and {len(layouts.wall_x)} layouts"
        )
    tiles = []
    places = zip(layouts.wall_x.tolist(), layouts.door_y.tolist(), paths, strict=True)
    for number, (wall_x, door_y, path) in enumerate(places):
        row, column = divmod(number, columns)
        end = path[-1].tolist()
        dot = f'<circle cx="{end[0]:.2f}" cy="{end[1]:.2f}" r="1.6" fill="var(--path, #2563eb)"/>'
        shapes = room_shapes(config, wall_x, door_y) + polyline(path) + start_mark(*path[0].tolist()) + dot
        tiles.append(f'<g transform="translate({column * THUMBNAIL} {row * THUMBNAIL})">{shapes}</g>')
    width = min(columns, len(paths)) * THUMBNAIL
    height = math.ceil(len(paths) / columns) * THUMBNAIL
    words = f"{len(paths)} recorded paths in their layouts; each begins at an open ring and ends at a dot"
    return framed("".join(tiles), words, (0.0, 0.0, width - 4.0, height - 4.0))


def frame_picture(frame: UInt8[Tensor, "2 height width"], description: str) -> str:
    """What the encoder sees, enlarged without smoothing: the dot in one colour, the walls in another."""
    dot, walls = frame.float()[..., None] / 255
    dark, warm, grey = (
        torch.tensor(colour) for colour in ((13.0, 17, 28), (255.0, 196, 84), (96.0, 116, 150))
    )
    picture = dark + walls * (grey - dark)
    picture = picture + dot * (warm - picture)
    return (
        f'<img class="pixels" alt="{escape(description)}" src="{_png(picture.round().to(torch.uint8))}" '
        'width="64" height="64">'
    )


def map_picture(
    config: WallConfig,
    values: Float[Tensor, "rows columns"],
    wall: tuple[float, float],
    goal: tuple[float, float],
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
    size = config.size
    # a pixel's centre is at its integer coordinate, so the picture begins half a pixel before it
    image = (
        f'<image href="{_png(colours.round().to(torch.uint8))}" x="-0.5" y="-0.5" '
        f'width="{size}" height="{size}" '
        'preserveAspectRatio="none" style="image-rendering:pixelated"/>'
    )
    description = f"Map of the {title} to the goal from everywhere, {low:.1f} to {high:.1f} {unit}"
    svg = framed(image + room_shapes(config, *wall) + goal_mark(*goal), description)
    return MapPicture(title=title, svg=svg, low=low, high=high, unit=unit)


def colour_scale() -> Sequence[str]:
    """The colours of the maps' bands, near to far, as CSS colours."""
    rows = colormaps["viridis_r"]([band / (BANDS - 1) for band in range(BANDS)])
    return [f"rgb({red * 255:.0f} {green * 255:.0f} {blue * 255:.0f})" for red, green, blue, _ in rows]


def _points(points: Float[Tensor, "K 2"]) -> str:
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in points.tolist())


def _png(pixels: UInt8[Tensor, "height width channels"]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
