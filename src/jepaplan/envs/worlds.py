"""All worlds by name. A world's module is imported when it is asked for, so what it needs may be missing.

To add a world: a class with the methods of `interfaces.World`, a function from its name to it, and a line in
`WORLDS`; a line in `jepaplan.data.walks` says how the worlds of its module are recorded.
"""

import difflib
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from jepaplan.interfaces import World
from jepaplan.types import InputError

_WALL = "jepaplan.envs.wall:wall_world"
_TILES = "jepaplan.envs.tile_rooms:tile_world"
_MAZE = "jepaplan.envs.point_maze:maze_world"

# "module:function"; the function makes the world of that name.
WORLDS: Mapping[str, str] = {
    "WallSmall": _WALL,
    "WallBig": _WALL,
    "WallSmallFixed": _WALL,
    "WallBigFixed": _WALL,
    "WallBigBounce": _WALL,
    "WallBigSlips": _WALL,
    "OpenRoom": _TILES,
    "DeadEnd": _TILES,
    "OneWayDoor": _TILES,
    "Pits": _TILES,
    "BreakingKeys": _TILES,
    "Detour": _TILES,
    "Maze": _MAZE,
    "MazeHard": _MAZE,
}


def find_world(name: str) -> World:
    """The world of that name; an unknown name is refused with the nearest ones."""
    if name not in WORLDS:
        near = nearest(name)
        meant = f" Did you mean {' or '.join(near)}?" if near else ""
        raise InputError(f"there is no world {name!r}.{meant} Known: {', '.join(WORLDS)}")
    module, _, factory = WORLDS[name].partition(":")
    return getattr(import_module(module), factory)(name)


def nearest(name: str) -> list[str]:
    """Names of worlds that look like `name`, the most alike first; case and hyphens do not count."""
    plain = {_plain(known): known for known in WORLDS}
    return [plain[found] for found in difflib.get_close_matches(_plain(name), plain, n=2, cutoff=0.6)]


def named(name: str) -> str | None:
    """The world that `name` means, in any case and with hyphens (wall-big is WallBig); None if none."""
    return {_plain(known): known for known in WORLDS}.get(_plain(name))


def recorded_world(manifest: Mapping[str, Any], where: str) -> World | None:
    """The world that the manifest of the recording `where` names; None if it is none of ours."""
    world = manifest.get("world")
    if isinstance(world, Mapping):
        # The two rooms can be recorded with any geometry, so their manifest may hold all of it.
        from jepaplan.envs.wall import WallConfig, WallWorld

        try:
            return WallWorld(WallConfig(**world))
        except TypeError as reason:
            raise InputError(f"{where}: its world was described by another version ({reason})") from reason
    return find_world(world) if isinstance(world, str) and world in WORLDS else None


def _plain(name: str) -> str:
    return name.replace("-", "").replace("_", "").lower()
