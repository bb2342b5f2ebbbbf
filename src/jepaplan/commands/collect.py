"""`jepaplan collect WORLD --out FILE.h5`: record one of our worlds, or any gymnasium environment."""

import json
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import tyro

from jepaplan.commands.console import RESULTS, ProgressBoard, progress_board
from jepaplan.data.collect import collect_gym, record_world
from jepaplan.data.walks import find_walker, takes
from jepaplan.envs.worlds import WORLDS, named, nearest
from jepaplan.recipes.experiment import RecordingConfig
from jepaplan.types import InputError

WALK_OPTIONS = {"trajectories": 1000, "states": 64, "crossing_fraction": 0.5}
GYMNASIUM_OPTIONS = {"episodes": 100, "steps": 1000}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to record and where to."""

    world: tyro.conf.Positional[str]
    """One of our worlds, such as wall-big or OneWayDoor (capitals and hyphens do not matter), or the id of a
    gymnasium environment with pictures and continuous actions: jepaplan/WallBig-v0, or package:Name-v0 to
    import its package first."""
    out: Path
    """File to write; an existing one is never overwritten."""
    trajectories: int | None = None
    """How many walks; our worlds only (1000 where not given)."""
    states: int | None = None
    """Frames of each walk, one more than its actions; our worlds only (64 where not given)."""
    crossing_fraction: float | None = None
    """Share of the walks that change room, 0 to 1; two rooms only (0.5 where not given)."""
    episodes: int | None = None
    """How many episodes; gymnasium environments only (100 where not given)."""
    steps: int | None = None
    """Actions of an episode at most; gymnasium environments only (1000 where not given)."""
    seed: int = 0
    """Of layouts, walks and actions: the same seed records the same file."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the facts as JSON on standard output, and nothing else there."""


def main(arguments: list[str]) -> int:
    """Record, and say what came of it."""
    options = tyro.cli(Options, prog="jepaplan collect", description=__doc__, args=arguments)
    if options.out.exists():
        raise InputError(f"{options.out} exists and is left alone; write another --out, or remove it first")
    began = time.monotonic()
    with progress_board() as board:
        record(options, board)
    facts = {**facts_of(options.out), "seconds": round(time.monotonic() - began, 2)}
    if options.json:
        sys.stdout.write(json.dumps(facts) + "\n")
        return 0
    RESULTS.print(
        f"{facts['path']}: {facts['episodes']:,} episodes, {facts['frames']:,} frames, "
        f"{facts['bytes'] / 1e6:.1f} MB, in {facts['seconds']:.1f} s\ncontent hash {facts['content_hash']}",
        highlight=False,
    )
    RESULTS.print(f"next: jepaplan inspect {options.out}", highlight=False)
    return 0


def record(options: Options, board: ProgressBoard) -> None:
    """Record what the options name."""

    def progress(done: int, total: int) -> None:
        board.report("recording", done, total)

    world = named(options.world)
    if world is not None:
        given = _given(options, WALK_OPTIONS, GYMNASIUM_OPTIONS)
        if options.crossing_fraction is not None and not takes(find_walker(world), "crossing_fraction"):
            raise InputError(f"--crossing-fraction does not belong to {world}: it is for the two rooms")
        record_world(options.out, world, RecordingConfig(world=world, **given), options.seed, progress)
        return
    for module in ("gym_adapters", "tile_gym", "maze_gym"):
        import_module(f"jepaplan.envs.{module}")  # registers our own environments
    given = _given(options, GYMNASIUM_OPTIONS, WALK_OPTIONS)
    try:
        collect_gym(options.out, options.world, **given, seed=options.seed, progress=progress)
    except InputError as error:
        near = nearest(options.world)
        meant = f"Did you mean {near[0]}? " if near else ""
        raise InputError(f"{error}. {meant}Our worlds are {', '.join(WORLDS)}") from error


def facts_of(path: Path) -> dict[str, Any]:
    """Size, counts and hash of a recording that was just written, without reading its frames."""
    with h5py.File(path, "r") as file:
        stored: Any = file  # h5py types every member as a group, a dataset or a type
        return {
            "path": str(path),
            "bytes": path.stat().st_size,
            "episodes": len(stored["lengths"]),
            "frames": len(stored["observations"]),
            "actions": len(stored["actions"]),
            "image": list(stored["observations"].shape[1:]),
            "content_hash": str(file.attrs["content_hash"]),
        }


def _given(options: Options, ours: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """Our options, with defaults; options of the other kind of world are refused."""
    wrong = [name for name in others if getattr(options, name) is not None]
    if wrong:
        flags, due = (", ".join("--" + name.replace("_", "-") for name in names) for names in (wrong, ours))
        raise InputError(f"{flags} does not belong to {options.world}, which takes {due}")
    return {
        name: default if getattr(options, name) is None else getattr(options, name)
        for name, default in ours.items()
    }
