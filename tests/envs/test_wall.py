"""The wall worlds: no move passes a wall, doors let through, shortest paths are shortest."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jepaplan.envs.wall import (
    WALL_BIG,
    WALL_SMALL,
    WALL_SMALL_FIXED,
    WallConfig,
    WallLayouts,
    WallWorld,
)
from jepaplan.interfaces import World
from jepaplan.types import InputError

WORLD = WallWorld(WALL_SMALL)
BOUNCY = WallWorld(replace(WALL_SMALL, bounce_std=0.5))
SLIPPERY = WallWorld(replace(WALL_SMALL, slips=0.25))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one(x: float, y: float) -> torch.Tensor:
    return torch.tensor([[float(x), float(y)]])


def layout(wall_x: float = 32, door_y: float = 30) -> WallLayouts:
    return WallLayouts(torch.tensor([float(wall_x)]), torch.tensor([float(door_y)]))


def touches_exactly(start: list[float], end: list[float], wall_x: int, door_y: int) -> bool:
    """In rational arithmetic: clip the segment to the wall's columns, then look at its rows there."""
    x0, y0, x1, y1 = map(Fraction, (*start, *end))
    if not all(4 < value < 59 for value in (x0, y0, x1, y1)):
        return True
    low, high = wall_x - 1, wall_x + 1
    if max(x0, x1) < low or min(x0, x1) > high:
        return False
    if x0 == x1:
        rows = [y0, y1]
    else:
        ends = [min(max(x, Fraction(low)), Fraction(high)) for x in (x0, x1)]
        rows = [y0 + (x - x0) * (y1 - y0) / (x1 - x0) for x in ends]
    return min(rows) <= door_y - 4 or max(rows) >= door_y + 4


sizes = st.sampled_from([1e-7, 1e-4, 0.1, 1.0, 3.6, 20.0, 60.0, 1e4, 1e30, float("inf")])


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**31), size=sizes, world=st.sampled_from([WORLD, BOUNCY, SLIPPERY]))
@example(seed=0, size=float("nan"), world=WORLD)
@example(seed=0, size=float("nan"), world=BOUNCY)
def test_no_step_passes_a_wall_or_leaves_the_box(seed, size, world):
    generator = seeded(seed)
    layouts = world.sample_layouts(16, generator)
    positions = world.sample_positions(layouts, generator)
    for _ in range(4):
        actions = size * torch.randn(16, 2, generator=generator)
        moved = world.move(positions, actions, layouts, generator)
        for row in range(16):
            place = (int(layouts.wall_x[row]), int(layouts.door_y[row]))
            assert not touches_exactly(positions[row].tolist(), moved[row].tolist(), *place)
        positions = moved


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.sampled_from([0.01, 1.0, 4.0, 20.0]))
def test_a_move_is_blocked_exactly_when_it_touches(seed, size):
    generator = seeded(seed)
    layouts = WORLD.sample_layouts(32, generator)
    # Near the door, where the cases are.
    middle = torch.stack([layouts.wall_x, layouts.door_y], dim=-1)
    positions = middle + 6 * torch.randn(32, 2, generator=generator)
    free = WORLD.is_free(positions, layouts)
    actions = size * torch.randn(32, 2, generator=generator)
    moved = WORLD.move(positions, actions, layouts)
    for row in free.nonzero().flatten().tolist():
        place = (int(layouts.wall_x[row]), int(layouts.door_y[row]))
        blocked = touches_exactly(positions[row].tolist(), (positions + actions)[row].tolist(), *place)
        assert torch.equal(moved[row], positions[row] if blocked else (positions + actions)[row])


@pytest.mark.parametrize(
    "start, action, passes",
    [
        ((28.0, 30.0), (8.0, 0.0), True),  # straight through the door
        ((28.0, 30.0), (8.0, 3.5), True),
        ((36.0, 27.0), (-8.0, 2.0), True),
        ((28.0, 35.0), (8.0, 0.0), False),  # the wall beside the door
        ((28.0, 34.0), (8.0, 0.0), False),  # along the jamb: touches it
        ((32.0, 30.0), (0.0, 5.0), False),  # from within the door into its jamb
        ((28.0, 20.0), (3.0, 0.0), False),  # ends on the face of the wall
        ((28.0, 20.0), (2.99, 0.0), True),
        ((10.0, 10.0), (-6.0, 0.0), False),  # ends on the border line
        ((10.0, 10.0), (0.0, 49.5), False),
        ((10.0, 10.0), (0.0, 0.0), True),
    ],
)
def test_known_moves(start, action, passes):
    moved = WORLD.move(one(*start), one(*action), layout())
    expected = one(*start) + one(*action) if passes else one(*start)
    assert torch.equal(moved, expected)


def test_a_bounced_dot_is_thrown_back_from_what_it_hit():
    layouts = WallLayouts(torch.full((500,), 32.0), torch.full((500,), 30.0))
    start = one(28, 15).expand(500, 2)
    moved = BOUNCY.move(start, one(6, 0).expand(500, 2), layouts, seeded(0))
    assert (moved[:, 0] <= 31 - 0.3 + 1e-4).all()
    assert (moved[:, 0] > 28.5).all()  # at the wall, not where it started
    assert 0.4 < float(moved[:, 1].std()) < 0.6


def test_a_share_of_the_steps_slips_as_far_but_anywhere():
    layouts = WallLayouts(torch.full((20_000,), 40.0), torch.full((20_000,), 30.0))
    moved = SLIPPERY.move(one(20, 30).expand(20_000, 2), one(3, 0).expand(20_000, 2), layouts, seeded(0))
    went = moved - one(20, 30)
    slipped = (went - one(3, 0)).norm(dim=1) > 1e-4
    assert float(slipped.float().mean()) == pytest.approx(0.25, abs=0.012)  # four standard deviations
    assert float((went.norm(dim=1) - 3).abs().max()) < 1e-4
    assert float(went[slipped].mean(0).norm()) < 0.13  # no direction is preferred


@pytest.mark.parametrize("world", [BOUNCY, SLIPPERY])
def test_a_noisy_world_asks_for_its_generator(world):
    with pytest.raises(InputError, match=r"torch\.Generator"):
        world.move(one(10, 10), one(1, 1), layout())


def test_a_slip_is_not_imagined():
    start = torch.tensor([[28.0, 15.0, 32.0, 30.0]]).repeat(50, 1)
    moved = SLIPPERY.step(start, one(-6, 0).expand(50, 2))
    assert torch.equal(moved[:, :2], start[:, :2] + one(-6, 0))


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_what_is_sampled_is_legal(seed):
    generator = seeded(seed)
    layouts = WORLD.sample_layouts(200, generator)
    assert WORLD.is_free(WORLD.sample_positions(layouts, generator), layouts).all()
    start, goal = WORLD.sample_opposite(layouts, generator)
    for place in (start, goal):
        assert WORLD.is_free(place, layouts).all()
        assert ((place >= 6.6 - 1e-4) & (place <= 56.4 + 1e-4)).all()
        assert ((place[:, 0] - layouts.wall_x).abs() >= 3.6 - 1e-4).all()
    assert ((start[:, 0] < layouts.wall_x) != (goal[:, 0] < layouts.wall_x)).all()


def test_layouts_cover_their_ranges_and_fixed_ones_do_not_move():
    layouts = WORLD.sample_layouts(20000, seeded(0))
    assert layouts.wall_x.unique().tolist() == list(range(20, 44))
    assert layouts.door_y.unique().tolist() == list(range(10, 54))
    fixed = WallWorld(WALL_SMALL_FIXED).sample_layouts(3, seeded(0))
    assert fixed.wall_x.tolist() == [32] * 3
    assert fixed.door_y.tolist() == [10] * 3


def test_success_is_a_circle_of_root_two():
    goal = torch.tensor([[20.0, 20.0, 32.0, 30.0]]).expand(3, 4)
    near = goal + torch.tensor([[1.0, 0.99, 0, 0], [1.0, 1.0, 0, 0], [0.0, 1.5, 0, 0]])
    assert WORLD.reached(near, goal).tolist() == [True, False, False]


def test_state_round_trip():
    layouts = WORLD.sample_layouts(5, seeded(1))
    positions = WORLD.sample_positions(layouts, seeded(2))
    again, same = WORLD.split_state(WORLD.state(positions, layouts))
    assert torch.equal(again, positions)
    assert torch.equal(same.wall_x, layouts.wall_x)
    assert torch.equal(same.door_y, layouts.door_y)


def test_shortest_paths_known_by_hand():
    # Past the upper corner of each face: 5 down and 2 across, the door's 2 columns, then the mirror image.
    up = WORLD.geodesic(one(29, 21), one(35, 21), layout())
    torch.testing.assert_close(up, torch.tensor([2 * (2**2 + 5**2) ** 0.5 + 2]))
    # Round one corner only: (31, 26) is the left end of the upper jamb.
    one_corner = WORLD.geodesic(one(30, 10), one(40, 29), layout())
    expected = (1 + 16**2) ** 0.5 + (9**2 + 3**2) ** 0.5
    torch.testing.assert_close(one_corner, torch.tensor([expected]))
    # From above left to below right: down one jamb's corner, across the door, round the other jamb's.
    across = WORLD.geodesic(one(30.5, 10), one(33.5, 50), layout())
    expected = 2 * (0.5**2 + 16**2) ** 0.5 + (2**2 + 8**2) ** 0.5
    torch.testing.assert_close(across, torch.tensor([expected]))
    assert WORLD.geodesic(one(10, 10), one(32, 50), layout()).isinf().all()


@given(seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_shortest_paths_are_a_metric_that_straight_lines_bound(seed):
    generator = seeded(seed)
    layouts = WORLD.sample_layouts(64, generator)
    first, second, third = (WORLD.sample_positions(layouts, generator).double() for _ in range(3))
    straight = (first - second).norm(dim=-1)
    path = WORLD.geodesic(first, second, layouts)
    assert (path >= straight - 1e-9).all()
    torch.testing.assert_close(path, WORLD.geodesic(second, first, layouts))
    detour = WORLD.geodesic(first, third, layouts) + WORLD.geodesic(third, second, layouts)
    assert (path <= detour + 1e-9).all()
    half = WORLD.config.wall_half_width
    side = [(place[:, 0] - layouts.wall_x) / half for place in (first, second)]
    same_room = (side[0].abs() > 1) & (side[1].abs() > 1) & (side[0].sign() == side[1].sign())
    torch.testing.assert_close(path[same_room], straight[same_room])


@given(seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_shortest_paths_against_brute_force(seed):
    """From room to room a path meets both faces inside the door: try many pairs of heights."""
    generator = seeded(seed)
    layouts = WORLD.sample_layouts(16, generator)
    start, goal = (place.double() for place in WORLD.sample_opposite(layouts, generator))
    left = torch.where((start[:, 0] < goal[:, 0])[:, None], start, goal)
    right = torch.where((start[:, 0] < goal[:, 0])[:, None], goal, start)
    height = layouts.door_y.double()[:, None] + torch.linspace(-4, 4, 401).double()
    faces = [
        torch.stack([(layouts.wall_x[:, None] + side).expand_as(height), height], -1) for side in (-1, 1)
    ]
    enter = (left[:, None] - faces[0]).norm(dim=-1)
    leave = (right[:, None] - faces[1]).norm(dim=-1)
    brute = (enter[:, :, None] + torch.cdist(faces[0], faces[1]) + leave[:, None, :]).amin((1, 2))
    exact = WORLD.geodesic(start, goal, layouts)
    assert (exact <= brute + 1e-9).all()
    assert (brute - exact < 1e-3).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"step_min": 2.0},
        {"dot_std": 0.0},
        {"bounce_std": -1.0},
        {"slips": 1.0},
        {"wall_margin": 6},
        {"door_margin": 5},
        {"size": 30},
        {"episode_steps": 0},
    ],
)
def test_worlds_that_cannot_be_built_are_refused(wrong):
    with pytest.raises(InputError):
        WallConfig(**wrong)


def test_other_sizes_are_worlds_too():
    world = WallWorld(replace(WALL_BIG, size=96))
    layouts = world.sample_layouts(50, seeded(0))
    positions = world.sample_positions(layouts, seeded(1))
    assert world.render(positions, layouts).shape == (50, 2, 96, 96)
    assert float(positions.max()) > 64


@pytest.mark.parametrize("world", [WORLD, BOUNCY, SLIPPERY, WallWorld(WALL_SMALL_FIXED)])
def test_the_world_by_its_state_says_what_positions_in_layouts_say(world):
    assert isinstance(world, World)
    start, goal = world.sample_tasks(64, seeded(0))
    layouts = world.sample_layouts(64, seeded(0))
    assert torch.equal(start, world.state(start[:, :2], layouts))
    assert world.apart(start, goal).all()
    assert (world.is_possible(start) & world.is_possible(goal)).all()
    assert torch.equal(world.observe(start).frames, world.render(start[:, :2], layouts))
    assert world.observe(start).proprioception is None
    assert torch.equal(world.cost_to_go(start, goal), world.geodesic(start[:, :2], goal[:, :2], layouts))
    actions = 3 * torch.randn(64, 2, generator=seeded(1))
    moved = world.step(start, actions, seeded(2))
    assert torch.equal(moved[:, :2], world.move(start[:, :2], actions, layouts, seeded(2)))
    assert torch.equal(moved[:, 2:], start[:, 2:])
    others = world.sample_states(start, seeded(3))
    assert world.is_possible(others).all()
    assert torch.equal(others[:, 2:], start[:, 2:])
    assert not world.is_possible(torch.full((1, 4), torch.nan)).any()


def test_a_bounce_is_imagined_as_staying_in_place():
    start = torch.tensor([[28.0, 15.0, 32.0, 30.0]])
    assert torch.equal(BOUNCY.step(start, one(6, 0)), start)
    assert not torch.equal(BOUNCY.step(start, one(6, 0), seeded(0)), start)


def test_scenery_is_where_the_dot_cannot_be():
    state = torch.tensor([[10.0, 10.0, 32.0, 30.0]])
    border, *walls = WORLD.scenery(state[0])
    assert (border.kind, border.low, border.high) == ("border", (4, 4), (59, 59))
    generator = seeded(0)
    state = state.repeat(2000, 1)
    state[:, :2] = 4.5 + 54 * torch.rand(2000, 2, generator=generator)
    inside = torch.zeros(2000, dtype=torch.bool)
    for wall in walls:
        low, high = torch.tensor(wall.low), torch.tensor(wall.high)
        inside |= ((state[:, :2] >= low) & (state[:, :2] <= high)).all(-1)
    assert inside.any()
    assert torch.equal(WORLD.is_possible(state), ~inside)


def test_typical_actions_are_sixteen_headings_of_three_lengths():
    actions = WallWorld(WALL_BIG).typical_actions()
    assert actions.shape == (48, 2)
    torch.testing.assert_close(actions.norm(dim=-1), torch.tensor([0.4, 2.0, 3.6]).repeat_interleave(16))
    assert len(actions.round(decimals=3).unique(dim=0)) == 48


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_places_in_the_wall_are_moved_to_its_face_and_free_ones_are_left(seed):
    generator = seeded(seed)
    like = WORLD.fresh_layouts(200, generator)
    places = 4.1 + 54.8 * torch.rand(200, 2, generator=generator)
    placed = WORLD.placed(like, places)
    free = WORLD.is_possible(torch.cat([places, like[:, 2:]], dim=-1))
    assert torch.equal(placed[free, :2], places[free])
    moved = placed[~free, 0] - placed[~free, 2]
    assert (moved.abs() == 1).all()
    goals = WORLD.sample_states(like, generator)
    assert WORLD.cost_to_go(placed, goals).isfinite().all()
