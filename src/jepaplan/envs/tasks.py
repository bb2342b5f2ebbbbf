"""Tasks in the wall worlds, drawn or given: where the wall is, where the dot starts, where it should go."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jepaplan.envs.wall import WallLayouts, WallWorld
from jepaplan.envs.world_gym import Task, refuse_unknown_options
from jepaplan.types import InputError

OPTIONS = ("layout", "start", "goal")


def begin(world: WallWorld, count: int, options: Mapping[str, Any], generator: torch.Generator) -> Task:
    """Tasks as far as `options` says; what it leaves open is drawn, start and goal in different rooms."""
    refuse_unknown_options(options, OPTIONS)
    layouts = world.sample_layouts(count, generator)
    given = {name: _pairs(name, options.get(name), count) for name in OPTIONS}
    if given["layout"] is not None:
        layouts = WallLayouts(given["layout"][:, 0], given["layout"][:, 1])
        _check_layouts(world, layouts)
    drawn = world.sample_opposite(layouts, generator)
    for name in ("start", "goal"):
        _check_free(world, name, given[name], layouts)
    start, goal = given["start"], given["goal"]
    if start is None:
        start = drawn[0] if goal is None else _other_room(goal, drawn, layouts)
    if goal is None:
        goal = _other_room(start, drawn, layouts)
    return world.state(start, layouts), world.state(goal, layouts)


def _pairs(name: str, value: Any, count: int) -> Float[Tensor, "B 2"] | None:
    """Two numbers per world, from two numbers or from one pair per world."""
    if value is None:
        return None
    try:
        pairs = torch.as_tensor(value, dtype=torch.float32)
        wrong = pairs.shape not in ((2,), (count, 2)) or not bool(pairs.isfinite().all())
    except (TypeError, ValueError, RuntimeError):
        wrong, pairs = True, torch.empty(0)
    if wrong:
        meaning = "(wall_x, door_y)" if name == "layout" else "(x, y)"
        raise InputError(
            f"option {name!r} is two finite numbers {meaning} in pixels, or one such pair for each of the "
            f"{count} "
            f"worlds; got {value!r}"
        )
    return pairs.expand(count, 2).clone()


def _check_layouts(world: WallWorld, layouts: WallLayouts) -> None:
    """Both rooms must be wide enough for a task, and the door within the box."""
    config = world.config
    inset = config.wall_half_width + 4 * config.dot_std
    sill = config.door_half_width
    low, high = config.low, config.high
    fits = (layouts.wall_x >= low + inset) & (layouts.wall_x <= high - inset)
    fits &= (layouts.door_y >= low + sill) & (layouts.door_y <= high - sill)
    if not bool(fits.all()):
        bad = int((~fits).nonzero()[0])
        raise InputError(
            f"layout (wall_x, door_y) = ({layouts.wall_x[bad]:g}, {layouts.door_y[bad]:g}) leaves no room "
            f"or no door; "
            f"wall_x must be in [{low + inset:g}, {high - inset:g}], door_y in [{low + sill:g}, "
            f"{high - sill:g}]"
        )


def _check_free(world: WallWorld, name: str, places: Tensor | None, layouts: WallLayouts) -> None:
    """A given place must not be in a wall or out of the box."""
    if places is None:
        return
    free = world.is_free(places, layouts)
    if not bool(free.all()):
        bad = int((~free).nonzero()[0])
        x, y = places[bad].tolist()
        wall_x, door_y = float(layouts.wall_x[bad]), float(layouts.door_y[bad])
        config = world.config
        raise InputError(
            f"{name} ({x:g}, {y:g}) is in a wall or outside the box: x and y must be strictly between "
            f"{config.low:g} "
            f"and {config.high:g}, and x at least {config.wall_half_width} away from the wall at "
            f"{wall_x:g}, unless y "
            f"is within {config.door_half_width} of its door at {door_y:g}"
        )


def _other_room(
    place: Float[Tensor, "B 2"],
    drawn: tuple[Float[Tensor, "B 2"], Float[Tensor, "B 2"]],
    layouts: WallLayouts,
) -> Float[Tensor, "B 2"]:
    """Of two drawn places in different rooms, the one that is not in the room of `place`."""
    left = place[:, 0] < layouts.wall_x
    first_left = drawn[0][:, 0] < layouts.wall_x
    return torch.where((left == first_left)[:, None], drawn[1], drawn[0])
