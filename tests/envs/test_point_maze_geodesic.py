"""Shortest paths of a ball in the mazes: by hand, as a metric, and against a fine polygon of each corner."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.envs.maze_geodesic import clearance, in_sight, pressed_out, shortest_path
from jepaplan.envs.maze_layouts import cell_centre, maze_sets, open_cells, parse_layout
from jepaplan.envs.maze_physics import RADIUS

MAZES = torch.tensor([*maze_sets().training, *maze_sets().held_out])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def places(layouts: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Free places, also close to walls and between cells."""
    cells = open_cells(layouts).flatten(1).double().multinomial(1, generator=generator)[:, 0]
    offset = torch.rand(len(layouts), 2, generator=generator, dtype=torch.float64) - 0.5
    return pressed_out(cell_centre(cells) + 0.999 * offset, layouts)


def length(layout: str, start: tuple[float, float], goal: tuple[float, float]) -> float:
    ends = (torch.tensor([end], dtype=torch.float64) for end in (start, goal))
    return float(shortest_path(*ends, torch.tensor([parse_layout(layout)])))


def test_known_by_hand():
    # Around the one corner (0, 0), from straight below to straight right: two tangents and a quarter circle.
    corner = "..../..../..##/..##"
    assert length(corner, (-0.1, -1.5), (1.5, 0.1)) == pytest.approx(3 + 0.1 * math.pi / 2)
    # From farther off: what is left of the angle around the corner when both tangents have taken their part.
    far, around = math.hypot(0.5, 1.5), 1.5 * math.pi - 2 * math.atan2(0.5, 1.5)
    expected = 2 * math.sqrt(far**2 - 0.1**2) + 0.1 * (around - 2 * math.acos(0.1 / far))
    assert length(corner, (-0.5, -1.5), (1.5, 0.5)) == pytest.approx(expected)
    assert length(corner, (-1.5, 1.5), (1.5, 0.5)) == pytest.approx(math.hypot(3, 1))  # within sight
    # Up one side of a wall of two cells and down the other: two quarter circles and the wall's thickness.
    assert length("..../.#../.#../.#..", (-1.1, -1.5), (0.1, -1.5)) == pytest.approx(
        2 * 2.5 + 1 + 0.1 * math.pi
    )


def test_no_way_and_no_place_are_infinite():
    assert length(".#../.#../.#../.#..", (-1.5, 0.0), (1.5, 0.0)) == math.inf
    assert length("..##/..##/##../##..", (-0.5, 0.5), (0.5, -0.5)) == math.inf  # rooms that touch in a corner
    assert length("..../.#../..../....", (-0.5, 0.5), (1.5, 0.5)) == math.inf
    assert length("..../..../..../....", (-2.5, 0.5), (1.5, 0.5)) == math.inf
    assert length("..../..../..../....", (float("nan"), 0.5), (1.5, 0.5)) == math.inf
    ends = torch.zeros(1, 2)
    assert shortest_path(ends, ends, torch.tensor([0.5])).isinf().all()


@given(seed=st.integers(0, 2**31))
@settings(max_examples=3, deadline=None)
def test_a_metric_that_straight_lines_bound(seed):
    generator = seeded(seed)
    layouts = MAZES[torch.randint(len(MAZES), (128,), generator=generator)]
    first, second, third = (places(layouts, generator) for _ in range(3))
    path = shortest_path(first, second, layouts)
    straight = (first - second).norm(dim=-1)
    assert path.isfinite().all()
    assert (path >= straight - 1e-9).all()
    torch.testing.assert_close(path, shortest_path(second, first, layouts))
    torch.testing.assert_close(shortest_path(first, first, layouts), torch.zeros(128, dtype=torch.float64))
    detour = shortest_path(first, third, layouts) + shortest_path(third, second, layouts)
    assert (path <= detour + 1e-9).all()
    seen = in_sight(first, second, layouts)
    torch.testing.assert_close(path[seen], straight[seen])
    assert (path[~seen] > straight[~seen]).all()


@given(seed=st.integers(0, 2**31))
@settings(max_examples=5, deadline=None)
def test_paths_are_as_symmetric_as_the_grid(seed):
    """A maze turned by a quarter, with its places: other corners and other angles, the same lengths."""
    generator = seeded(seed)
    layouts = torch.randint(1, 2**16, (16,), generator=generator).repeat(8)
    first, second = (places(layouts, generator) for _ in range(2))
    cells = torch.rot90(open_cells(layouts), 1, (1, 2)).flatten(1)
    turned = (cells.long() << torch.arange(16)).sum(-1)
    ends = (torch.stack([-place[:, 1], place[:, 0]], dim=-1) for place in (first, second))
    torch.testing.assert_close(shortest_path(first, second, layouts), shortest_path(*ends, turned))


@given(seed=st.integers(0, 2**31))
@settings(max_examples=5, deadline=None)
def test_a_line_is_in_sight_exactly_if_the_ball_fits_all_along_it(seed):
    generator = seeded(seed)
    layouts = torch.randint(1, 2**16, (64,), generator=generator)
    first, second = (places(layouts, generator) for _ in range(2))
    part = torch.linspace(0, 1, 801, dtype=torch.float64)[:, None]
    points = (first[:, None] + part * (second - first)[:, None]).flatten(0, 1)
    room = clearance(points, layouts.repeat_interleave(801)).view(64, 801).amin(1)
    seen = in_sight(first, second, layouts)
    # Between samples a line may come closer to a corner, by less than the samples are apart.
    assert (room[seen] >= RADIUS - 1e-8).all()
    assert (room[~seen] < RADIUS + 4 / 800).all()


def test_places_in_walls_have_no_room_and_pressed_ones_find_it():
    layouts = MAZES[torch.randint(len(MAZES), (4000,), generator=seeded(1))]
    anywhere = 4 * torch.rand(4000, 2, generator=seeded(2), dtype=torch.float64) - 2
    room = clearance(anywhere, layouts)
    rested = pressed_out(anywhere, layouts)
    free = room > 0
    assert (clearance(rested[free], layouts[free]) >= RADIUS - 1e-12).all()
    assert torch.equal(rested[room >= RADIUS], anywhere[room >= RADIUS])
    # It moves no farther than from a corner of two walls to where the ball rests.
    assert float((rested - anywhere).norm(dim=-1).max()) <= math.sqrt(2) * RADIUS


@pytest.mark.parametrize("seed", range(3))
def test_against_corners_made_of_many_small_edges(seed):
    """Shortest polylines through many points just outside each quarter circle."""
    generator, edges = seeded(seed), 128
    layout = MAZES[torch.randint(len(MAZES), (1,), generator=generator)] if seed else torch.tensor([0xFBAF])
    angle = 2 * math.pi / edges * torch.arange(edges, dtype=torch.float64)
    outside = RADIUS / math.cos(math.pi / edges)
    line = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    rings = outside * torch.stack([angle.cos(), angle.sin()], dim=-1)
    points = (torch.cartesian_prod(line, line)[:, None] + rings).flatten(0, 1)
    points = points[clearance(points, layout.expand(len(points))) >= RADIUS - 1e-9]
    ends = places(layout.expand(60), generator)
    ends = ends[clearance(ends, layout.expand(60)) > outside][:10]  # not inside a polygon of small edges
    points = torch.cat([ends, points])
    seen = torch.cat([in_sight(point.expand_as(points)[None], points[None], layout) for point in points])
    step = (points[:, None] - points).norm(dim=-1).masked_fill(~seen, torch.inf)
    brute = step[:10]
    for _ in range(len(points)):
        before, brute = brute, torch.minimum(brute, (brute[:, :, None] + step).amin(1))
        if torch.equal(before, brute):
            break
    exact = shortest_path(ends.repeat_interleave(10, 0), ends.repeat(10, 1), layout.expand(100)).view(10, 10)
    brute = brute[:, :10]
    assert torch.equal(exact.isfinite(), brute.isfinite())
    known = exact.isfinite()
    assert (exact[known] <= brute[known] + 1e-9).all()
    assert (brute[known] - exact[known] < 3e-4).all()
