"""How fast worlds are walked, drawn, recorded and read back, beside a bare copy of the same frames. One core.

    python benchmarks/recording.py [--rounds 8] [--out benchmarks/results/<date>_<hardware>_recording.md]

Every round runs all rows one after the other, the bare copy first; a ratio is taken within its round,
because shared machines drift by more than the differences of interest. Quoted: medians, and the range over
all rounds.
"""

import argparse
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # the number of threads must be set before

from jepaplan.data.collect import BLOCK_FRAMES
from jepaplan.data.episodes import open_episodes
from jepaplan.data.wall_walks import collect_wall
from jepaplan.data.windows import Windows
from jepaplan.envs.wall import WALL_SMALL, WallWorld
from measuring import Work, as_given, origin, paired, ratios, save, spread

FRAMES = 64 * 200  # of one round of each row
COPY = "bare copy of the same frames (memory to memory)"


@dataclass(frozen=True)
class Row:
    """What is measured, and how many frames one call handles."""

    work: Work
    frames: int


def rows(folder: Path) -> dict[str, Row]:
    world, generator = WallWorld(WALL_SMALL), torch.Generator().manual_seed(0)
    repeat = torch.arange(BLOCK_FRAMES // 64).repeat_interleave(64)
    layouts = world.sample_layouts(BLOCK_FRAMES // 64, generator).select(repeat)
    positions = world.sample_positions(layouts, generator)
    actions = torch.randn(BLOCK_FRAMES, 2, generator=generator)
    recording = folder / "read.h5"
    collect_wall(recording, WALL_SMALL, trajectories=FRAMES // 64)
    episodes = open_episodes(recording)
    source, target = episodes.observations, torch.empty_like(episodes.observations)
    windows = Windows(episodes, 15)
    blocks = FRAMES // BLOCK_FRAMES

    def copy() -> None:
        target.copy_(source)

    def draw() -> None:
        for _ in range(blocks):
            world.render(positions, layouts)

    def walk() -> None:
        for _ in range(blocks):
            world.move(positions, actions, layouts)

    def record() -> None:
        collect_wall(folder / "written.h5", WALL_SMALL, trajectories=FRAMES // 64)

    def read() -> None:
        open_episodes(recording)

    def gather() -> None:
        for _ in range(12):
            windows.gather(windows.sample(64, generator))

    return {
        COPY: Row(copy, FRAMES),
        "physics alone, 1024 worlds per step": Row(walk, blocks * BLOCK_FRAMES),
        "drawing alone, 1024 frames per call, 16 layouts": Row(draw, blocks * BLOCK_FRAMES),
        "recording: physics, drawing, compressing, sealing": Row(record, FRAMES),
        "opening: hash checked, inflated into memory": Row(read, len(source)),
        "random segments of 16 frames, batches of 64": Row(gather, 12 * 64 * 16),
    }


def measure(rounds: int) -> dict[str, list[float]]:
    """Frames per second of every row in every round."""
    with tempfile.TemporaryDirectory() as folder:
        made = rows(Path(folder))
        seconds = paired({name: row.work for name, row in made.items()}, rounds, order=as_given)
    return {name: [made[name].frames / each for each in taken] for name, taken in seconds.items()}


def table(speeds: dict[str, list[float]]) -> str:
    """The page: where the numbers come from, then the numbers."""
    rounds = len(speeds[COPY])
    lines = [
        "# Recording and reading back the wall world",
        "",
        *origin(),
        f"- {rounds} paired rounds of {FRAMES} frames of 2 x 64 x 64 bytes; median [lowest-highest]",
        "",
        "| | frames/s | a bare copy is faster by |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {spread(each, 0)} | {spread(ratios(speeds[COPY], each))} |"
        for name, each in speeds.items()
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=8, help="paired rounds (at least 6 for a finding)")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    page = table(measure(given.rounds))
    print(page)
    save(given.out, page)


if __name__ == "__main__":
    main()
