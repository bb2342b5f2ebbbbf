"""How fast worlds are walked, drawn, recorded and read back, beside a bare copy of the same frames. One core.

    python benchmarks/recording.py [--rounds 8] [--out benchmarks/results/<date>_<hardware>_recording.md]

Every round runs all rows one after the other, the bare copy first; a ratio is taken within its round,
because shared machines drift by more than the differences of interest. Quoted: medians, and the range over
all rounds.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # the number of threads must be set before

from jepaplan.data.collect import BLOCK_FRAMES
from jepaplan.data.episodes import open_episodes
from jepaplan.data.wall_walks import collect_wall
from jepaplan.data.windows import Windows
from jepaplan.envs.wall import WALL_SMALL, WallWorld

FRAMES = 64 * 200  # of one round of each row
COPY = "bare copy of the same frames (memory to memory)"


def rows(folder: Path) -> dict[str, Callable[[], int]]:
    """What is measured: each does its work once and returns how many frames it handled."""
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

    def copy() -> int:
        target.copy_(source)
        return FRAMES

    def draw() -> int:
        for _ in range(blocks):
            world.render(positions, layouts)
        return blocks * BLOCK_FRAMES

    def walk() -> int:
        for _ in range(blocks):
            world.move(positions, actions, layouts)
        return blocks * BLOCK_FRAMES

    def record() -> int:
        collect_wall(folder / "written.h5", WALL_SMALL, trajectories=FRAMES // 64)
        return FRAMES

    def read() -> int:
        return len(open_episodes(recording).observations)

    def gather() -> int:
        for _ in range(12):
            windows.gather(windows.sample(64, generator))
        return 12 * 64 * 16

    return {
        COPY: copy,
        "physics alone, 1024 worlds per step": walk,
        "drawing alone, 1024 frames per call, 16 layouts": draw,
        "recording: physics, drawing, compressing, sealing": record,
        "opening: hash checked, inflated into memory": read,
        "random segments of 16 frames, batches of 64": gather,
    }


def measure(rounds: int) -> dict[str, list[float]]:
    """Frames per second of every row in every round."""
    with tempfile.TemporaryDirectory() as folder:
        work = rows(Path(folder))
        speeds: dict[str, list[float]] = {name: [] for name in work}
        for number in range(rounds + 1):
            for name, run in work.items():
                start = time.perf_counter()
                frames = run()
                if number > 0:  # the first round warms up
                    speeds[name].append(frames / (time.perf_counter() - start))
    return speeds


def hardware() -> str:
    """Cores and processor family; nothing that names the machine."""
    family = platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        named = [
            line.split(":", 1)[1].strip() for line in lines if line.startswith(("vendor_id", "cpu family"))
        ]
        family = " family ".join(named[:2]) or family
    return f"{os.cpu_count()} cores, {family}; one core used"


def commit() -> str:
    """The commit measured, marked if files differ from it."""
    command = ["git", "describe", "--always", "--dirty"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return found.stdout.strip() or "unknown"


def table(speeds: dict[str, list[float]], command: str) -> str:
    """The page: where the numbers come from, then the numbers."""
    rounds = len(speeds[COPY])
    lines = [
        "# Recording and reading back the wall world",
        "",
        f"- Command: `{command}`",
        f"- Commit: {commit()}; torch {torch.__version__}, Python {platform.python_version()}",
        f"- Hardware: {hardware()}",
        f"- {rounds} paired rounds of {FRAMES} frames of 2 x 64 x 64 bytes; median [lowest-highest]",
        "",
        "| | frames/s | a bare copy is faster by |",
        "|---|---|---|",
    ]
    for name, each in speeds.items():
        ratios = [reference / speed for reference, speed in zip(speeds[COPY], each, strict=True)]
        ratio = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"
        speed = f"{statistics.median(each):,.0f} [{min(each):,.0f}-{max(each):,.0f}]"
        lines.append(f"| {name} | {speed} | {ratio} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=8, help="paired rounds (at least 6 for a finding)")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    command = " ".join(["python benchmarks/recording.py", *sys.argv[1:]])
    page = table(measure(given.rounds), command)
    print(page)
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(page)


if __name__ == "__main__":
    main()
