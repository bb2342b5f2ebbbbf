"""Generated mp4 files with labels: `synthetic-motion-v1`, and the bouncing sprite whose place is asked for.

`synthetic-motion-v1` has two labels per clip. Motion is one of eight directions and two turns; appearance is
a shape and a colour. Every motion meets every appearance equally often, up to the remainder of the count, in
a shuffled order. A single frame carries nothing about motion: all that is drawn (places, headings, speeds,
sizes, grounds) is drawn alike for every motion, uniform laws stay uniform (`envs.sprites`), and each frame is
compressed by itself at a constant quality, so that no frame holds traces of its neighbours.

The anticipation task shows a sprite that bounces in a box; the label is the cell of a grid where it will be
some time after the last frame of the file.

Files are laid out as `data.generated_videos` says; `states.csv` holds the place and velocity of the bouncing
sprite in the last frame, x y vx vy, in pixels and pixels per second.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from jepaplan.data.generated_videos import Progress, folder_facts, open_folder, write_folder
from jepaplan.data.video_sets import VideoSet
from jepaplan.envs.sprites import (
    COLOURS,
    DIRECTIONS,
    MOTIONS,
    REACH,
    SHAPES,
    Scenes,
    bouncing_path,
    direction_vectors,
    draw_grounds,
    draw_scenes,
    torus_path,
    turn_signs,
)
from jepaplan.types import InputError, SeedTree

NAME, BOUNCING_NAME = "synthetic-motion-v1", "bouncing-sprite-v1"
APPEARANCES = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
BLOCK = 32  # clips drawn at once


@dataclass(frozen=True, kw_only=True)
class SpriteConfig:
    """How the clips of `synthetic-motion-v1` look; times in seconds, lengths in pixels."""

    size: int = 64
    frames: int = 20
    fps: int = 8
    turns: bool = True  # ten motions; without, the eight directions
    speed: tuple[float, float] = (14.0, 22.0)  # pixels per second, least and most
    turn_speed: tuple[float, float] = (70.0, 130.0)  # degrees per second
    radius: tuple[float, float] = (7.0, 9.0)  # pixels, of the disc of the same area
    second_sprite: float = 0.5  # probability of another sprite, which looks and moves alike
    codec: Literal["h264", "mpeg4"] = "h264"

    def __post_init__(self) -> None:
        _check_frames(self.size, self.frames, self.fps, self.radius)
        _check_range("speed", self.speed)
        _check_range("turn_speed", self.turn_speed)
        if not 0 <= self.second_sprite <= 1:
            raise InputError(f"second_sprite is a probability, in [0, 1]; got {self.second_sprite}")

    @property
    def motions(self) -> tuple[str, ...]:
        """The names of the motion classes."""
        return MOTIONS if self.turns else DIRECTIONS


@dataclass(frozen=True, kw_only=True)
class BouncingConfig:
    """The anticipation task; a file holds what may be seen, the answer lies `ahead` of its last frame."""

    size: int = 64
    frames: int = 15  # one window of 8 frames at half the rate, and no second one
    fps: int = 8
    ahead: float = 1.0  # seconds after the last frame
    bins: int = 4  # cells of the grid per axis
    speed: tuple[float, float] = (14.0, 30.0)  # pixels per second, least and most
    radius: tuple[float, float] = (6.0, 7.0)  # pixels
    codec: Literal["h264", "mpeg4"] = "h264"

    def __post_init__(self) -> None:
        _check_frames(self.size, self.frames, self.fps, self.radius)
        _check_range("speed", self.speed)
        if self.bins < 2 or self.ahead < 0:
            raise InputError(
                f"need bins >= 2 and ahead >= 0 seconds; got bins={self.bins}, ahead={self.ahead}"
            )

    @property
    def box(self) -> tuple[float, float]:
        """Between which coordinates the centre moves, so that no sprite leaves the picture."""
        margin = REACH * self.radius[1] + 0.5
        return margin - 0.5, self.size - margin - 0.5


def write_sprite_videos(
    folder: Path | str,
    count: int,
    config: SpriteConfig | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> VideoSet:
    """Write `count` clips of `synthetic-motion-v1`, with `motion.csv` and `appearance.csv`.

    A folder that holds the very same clips is left as it is.
    """
    config = config or SpriteConfig()
    motion, appearance = balanced_labels(count, len(config.motions), SeedTree(seed).torch("labels"))
    classes = {"motion": config.motions, "appearance": APPEARANCES}
    facts = folder_facts(NAME, count, seed, asdict(config), classes)

    def blocks() -> Iterator[UInt8[Tensor, "U T 3 size size"]]:
        for number, which in enumerate(torch.arange(count).split(BLOCK)):
            generator = SeedTree(seed).torch("clips", number)
            yield draw_scenes(draw_motion_scenes(motion[which], appearance[which], config, generator))

    labels = {"motion": motion, "appearance": appearance}
    return write_folder(Path(folder), facts, labels, blocks(), {}, progress)


def write_bouncing_videos(
    folder: Path | str,
    count: int,
    config: BouncingConfig | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> VideoSet:
    """Write `count` clips of a bouncing sprite, with `anticipation.csv` and `states.csv`."""
    config = config or BouncingConfig()
    bounces = draw_bounces(count, config, SeedTree(seed).torch("paths"))
    names = tuple(f"row {row} column {column}" for row in range(config.bins) for column in range(config.bins))
    facts = folder_facts(BOUNCING_NAME, count, seed, asdict(config), {"anticipation": names})

    def blocks() -> Iterator[UInt8[Tensor, "U T 3 size size"]]:
        for number, which in enumerate(torch.arange(count).split(BLOCK)):
            looks = SeedTree(seed).torch("clips", number)
            scenes = _bouncing_scenes(bounces.places[which], bounces.radius[which], config.size, looks)
            yield draw_scenes(scenes)

    labels, tables = {"anticipation": bounces.answer}, {"states": bounces.state}
    return write_folder(Path(folder), facts, labels, blocks(), tables, progress)


def open_sprite_videos(folder: Path | str) -> VideoSet:
    """The videos that either function wrote, with all their labels and the names of the classes."""
    return open_folder(Path(folder))


def bouncing_states(folder: Path | str) -> Float[Tensor, "B 4"]:
    """Place and velocity of each bouncing sprite in the last frame of its file: x y vx vy."""
    path = Path(folder) / "states.csv"
    try:
        rows = [line.split(" ")[1:] for line in path.read_text(encoding="utf-8").splitlines()]
        return torch.tensor([[float(field) for field in row] for row in rows]).view(len(rows), 4)
    except (OSError, ValueError, RuntimeError) as reason:
        raise InputError(
            f"{path} cannot be read ({reason}); `write_bouncing_videos` writes lines of path x y vx vy"
        ) from reason


def balanced_labels(
    count: int, motions: int, generator: torch.Generator
) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
    """Motion and appearance of each clip: all pairs equally often, up to the remainder, in random order."""
    if count < 1:
        raise InputError(f"count is the number of videos, at least 1; got {count}")
    pairs = motions * len(APPEARANCES)
    # Which pairs the remainder gets is drawn too: else the first motion would be the most frequent.
    cells = torch.cat([torch.randperm(pairs, generator=generator) for _ in range(-(-count // pairs))])[:count]
    cells = cells[torch.randperm(count, generator=generator)]
    return cells % motions, cells // motions


def draw_motion_scenes(
    motion: Int[Tensor, " B"], appearance: Int[Tensor, " B"], config: SpriteConfig, generator: torch.Generator
) -> Scenes:
    """Scenes with these labels; all else is drawn, in the same way for every motion."""
    count, size = len(motion), config.size
    times = torch.arange(config.frames) / config.fps
    first = size * torch.rand(count, 1, 2, generator=generator)
    # The second sprite is away from the first by a third of the torus or more, on both axes.
    away = size * (1 + torch.rand(count, 1, 2, generator=generator)) / 3
    start = torch.cat([first, first + away], dim=1)
    velocity = uniform(config.speed, count, generator)[:, None] * direction_vectors(motion)
    heading = 2 * math.pi * torch.rand(count, 2, 1, generator=generator)
    turn = torch.deg2rad(uniform(config.turn_speed, count, generator)) * turn_signs(motion)
    second = torch.rand(count, generator=generator) < config.second_sprite
    return Scenes(
        centre=torus_path(start, velocity, times, size),
        heading=heading + turn[:, None, None] * times,
        present=torch.stack([torch.ones_like(second), second], dim=1),
        shape=appearance // len(COLOURS),
        colour=appearance % len(COLOURS),
        radius=uniform(config.radius, count, generator),
        stripes=_stripes(count, generator),
        ground=draw_grounds(count, size, generator),
    )


@dataclass(frozen=True, kw_only=True)
class Bounces:
    """How B sprites bounce, and the answers."""

    places: Float[Tensor, "B T 2"]  # what is shown, pixels
    state: Float[Tensor, "B 4"]  # of the last frame: x y vx vy
    answer: Int[Tensor, " B"]  # the cell of the grid, some time later
    radius: Float[Tensor, " B"]


def draw_bounces(count: int, config: BouncingConfig, generator: torch.Generator) -> Bounces:
    """Paths that begin anywhere, in any direction."""
    if count < 1:
        raise InputError(f"count is the number of videos, at least 1; got {count}")
    low, high = config.box
    start = low + (high - low) * torch.rand(count, 2, generator=generator)
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    heading = torch.stack([angle.cos(), angle.sin()], dim=-1)
    velocity = uniform(config.speed, count, generator)[:, None] * heading
    times = torch.arange(config.frames) / config.fps
    times = torch.cat([times, times[-1:] + config.ahead])
    places, velocities = bouncing_path(start, velocity, times, config.box)
    return Bounces(
        places=places[:, :-1],
        state=torch.cat([places[:, -2], velocities[:, -2]], dim=-1),
        answer=grid_cell(places[:, -1], config),
        radius=uniform(config.radius, count, generator),
    )


def grid_cell(places: Float[Tensor, "B 2"], config: BouncingConfig) -> Int[Tensor, " B"]:
    """Row by row, the cell of a grid over the box that a place (x, y) lies in; all are equally likely."""
    low, high = config.box
    cell = ((places - low) * (config.bins / (high - low))).long().clamp(0, config.bins - 1)
    return cell[:, 1] * config.bins + cell[:, 0]


def uniform(law: tuple[float, float], count: int, generator: torch.Generator) -> Float[Tensor, " B"]:
    """Numbers between the two of `law`."""
    return law[0] + (law[1] - law[0]) * torch.rand(count, generator=generator)


def _stripes(count: int, generator: torch.Generator) -> Float[Tensor, "B 2"]:
    waves = uniform((0.4, 0.8), count, generator)
    return torch.stack([waves, uniform((0.0, 2 * math.pi), count, generator)], dim=-1)


def _bouncing_scenes(
    places: Float[Tensor, "B T 2"], radius: Float[Tensor, " B"], size: int, generator: torch.Generator
) -> Scenes:
    """One sprite per clip, of random looks and a heading that stays."""
    count, frames = places.shape[:2]
    heading = 2 * math.pi * torch.rand(count, 1, 1, generator=generator)
    return Scenes(
        centre=places[:, None],
        heading=heading.expand(-1, 1, frames),
        present=torch.ones(count, 1, dtype=torch.bool),
        shape=torch.randint(len(SHAPES), (count,), generator=generator),
        colour=torch.randint(len(COLOURS), (count,), generator=generator),
        radius=radius,
        stripes=_stripes(count, generator),
        ground=draw_grounds(count, size, generator),
    )


def _check_range(name: str, law: tuple[float, float]) -> None:
    if not 0 < law[0] <= law[1]:
        raise InputError(f"{name} is (least, most), both positive; got {law}")


def _check_frames(size: int, frames: int, fps: int, radius: tuple[float, float]) -> None:
    _check_range("radius", radius)
    if size < 16 or size % 2 or frames < 1 or fps < 1:
        raise InputError(
            "need an even size >= 16 (compressed video halves it), frames >= 1 and fps >= 1; "
            f"got size={size}, frames={frames}, fps={fps}"
        )
    if size < 4 * radius[1]:
        raise InputError(f"sprites of radius {radius[1]} crowd a picture of {size} pixels; at most a quarter")
