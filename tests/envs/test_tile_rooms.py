"""The tile rooms: no move passes a wall, for ever is for ever, tasks are what they should be."""

from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jepaplan.envs.tile_rooms import WORLDS, TileConfig, TileWorld, tile_world
from jepaplan.envs.tile_rooms_layouts import ARROWS
from jepaplan.interfaces import World
from jepaplan.types import InputError

NAMES = list(WORLDS)
ROOMS = {name: tile_world(name) for name in NAMES}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spread(world: TileWorld, count: int, seed: int) -> torch.Tensor:
    """States in random layouts and modes."""
    generator = seeded(seed)
    return world.sample_states(world.sample_tasks(count, generator)[0], generator)


def meets(start: list[float], end: list[float], column: int, row: int) -> bool:
    """Whether a segment touches a closed tile, clipped in rational arithmetic."""
    first, last = Fraction(0), Fraction(1)
    for here, there, tile in zip(start, end, (column, row), strict=True):
        low, high = Fraction(16 * tile - 1, 2), Fraction(16 * tile + 15, 2)
        here, move = Fraction(here), Fraction(there) - Fraction(here)
        if move == 0:
            if not low <= here <= high:
                return False
            continue
        enter, leave = sorted(((low - here) / move, (high - here) / move))
        first, last = max(first, enter), min(last, leave)
    return first <= last


def expected(world: TileWorld, state: list[float], action: list[float]) -> list[float]:
    """One move, told slowly: tile by tile, in exact arithmetic."""
    target = [float(torch.tensor(a) + torch.tensor(b)) for a, b in zip(state[:2], action, strict=True)]
    flags, number = state[2:-1], int(state[-1])
    if not all(1.5 < value < 61.5 for value in (*state[:2], *target)):
        return state
    tiles = [
        (tile, x, y)
        for y, line in enumerate(world.layouts("cpu").maps[number])
        for x, tile in enumerate(line)
        if tile not in ".sg" and meets(state[:2], target, x, y)
    ]
    after = list(flags)
    for tile, x, y in tiles:
        ways = ARROWS.get(tile)
        closed = tile in "12" and not flags[int(tile)]
        if tile == "#" or (closed and not flags[0]):
            return state
        if ways and (target[0] - state[0]) * ways[0] + (target[1] - state[1]) * ways[1] < 0:
            return state
        if tile == "o" and meets(state[:2], state[:2], x, y):
            return state
        if tile == "k" and not any(flags):
            after, target = [1.0, 0.0, 0.0], [8 * x + 3.5, 8 * y + 3.5]
        if closed:
            after = [0.0, float(tile == "1"), float(tile == "2")]
    if sum(tile in "12" and not flags[int(tile)] for tile, *_ in tiles) > 1:
        return state
    pits = [(x, y) for tile, x, y in tiles if tile == "o"]
    if pits:  # the first along the segment: the one that the shortest piece of it already touches
        for part in range(1, 2049):
            end = [s + (t - s) * part / 2048 for s, t in zip(state[:2], target, strict=True)]
            hit = [(x, y) for x, y in pits if meets(state[:2], end, x, y)]
            if hit:
                target = [8 * hit[0][0] + 3.5, 8 * hit[0][1] + 3.5]
                break
    return [*target, *after, float(number)]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.sampled_from([0.3, 2.0, 8.0, 30.0]))
def test_moves_are_those_of_the_rules(name, seed, size):
    world = ROOMS[name]
    state = spread(world, 24, seed)
    actions = size * torch.randn(24, 2, generator=seeded(seed + 1))
    moved = world.step(state, actions)
    for row in range(24):
        told = expected(world, state[row].tolist(), actions[row].tolist())
        assert moved[row].tolist() == pytest.approx(told, abs=1e-6)


sizes = st.sampled_from([1e-7, 1e-3, 0.5, 3.6, 20.0, 1e4, 1e30, float("inf")])


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), size=sizes)
@example(seed=0, size=float("nan"))
def test_no_move_leaves_what_is_possible_or_shortens_the_way_by_more_than_itself(name, seed, size):
    world, generator = ROOMS[name], seeded(seed)
    state = spread(world, 32, seed)
    goal = world.sample_states(state, generator)
    for _ in range(4):
        moved = world.step(state, size * torch.randn(32, 2, generator=generator))
        assert world.is_possible(moved).all()
        assert torch.equal(moved[:, -1], state[:, -1])
        # A walk through a wall would be shorter than the shortest path. Snapping to a key or a pit is free.
        length = (moved - state)[:, :2].double().norm(dim=-1)
        before, after = (world.cost_to_go(place.double(), goal.double()) for place in (state, moved))
        assert (before <= after + length + 1e-6).all()
        state = moved


def room(name: str, layout: int, x: float, y: float, flag: int = 0) -> torch.Tensor:
    world = ROOMS[name]
    state = torch.zeros(1, world.state_width)
    state[0, 0], state[0, 1], state[0, -1] = x, y, layout
    if flag:
        state[0, 1 + flag] = 1
    return state


def test_a_pit_is_for_ever():
    world = ROOMS["Pits"]
    fallen = world.step(room("Pits", 0, 22, 28), torch.tensor([[3.0, 0.0]]))
    assert fallen.tolist() == [[27.5, 27.5, 0]]  # the pit of column 3, row 3
    for action in ([3.0, 0.0], [-20.0, 0.0], [0.0, 1e-3]):
        assert torch.equal(world.step(fallen, torch.tensor([action])), fallen)
    goal = room("Pits", 0, 5, 28)
    assert world.cost_to_go(fallen, goal).isinf().all()
    assert world.cost_to_go(fallen, fallen).tolist() == [0]
    assert world.cost_to_go(goal, fallen).tolist() == [pytest.approx(23.5 - 5)]  # to its edge
    over = world.step(room("Pits", 0, 22, 28), torch.tensor([[30.0, 0.0]]))
    assert torch.equal(over, fallen)  # no jump is long enough


def test_a_one_way_door_is_one_way():
    world = ROOMS["OneWayDoor"]  # layout 0: doors to the right in column 3, rows 2 and 6
    right = torch.tensor([[3.5, 0.0]])
    through = room("OneWayDoor", 0, 22, 20)
    for _ in range(4):
        through = world.step(through, right)
    assert through[0, 0] == 36
    assert torch.equal(world.step(through, -2 * right), through)
    inside = room("OneWayDoor", 0, 28, 20)
    assert torch.equal(world.step(inside, -right), inside)
    assert float(world.step(inside, torch.tensor([[0.0, 2.0]]))[0, 1]) == 22  # sideways is neither
    left = room("OneWayDoor", 0, 10, 20)
    assert world.cost_to_go(left, through).tolist() == [pytest.approx(26)]
    assert world.cost_to_go(through, left).isinf().all()
    goal = room("OneWayDoor", 0, 58, 28)
    assert world.cost_to_go(left, goal).isfinite().all()
    assert world.cost_to_go(through, goal).isinf().all()  # the near door was the wrong one


def test_one_key_opens_one_door():
    world = ROOMS["BreakingKeys"]  # layout 0: key in (0, 6), doors in column 4, rows 1 and 4
    right = torch.tensor([[3.0, 0.0]])
    at_door = room("BreakingKeys", 0, 30, 36)
    assert torch.equal(world.step(at_door, right), at_door)
    held = world.step(room("BreakingKeys", 0, 4, 58), torch.tensor([[0.0, -3.0]]))
    assert held.tolist() == [[3.5, 51.5, 1, 0, 0, 0]]
    assert torch.equal(world.step(held, right * 0 + 0.5), held + torch.tensor([[0.5, 0.5, 0, 0, 0, 0]]))
    opened = world.step(room("BreakingKeys", 0, 30, 36, 1), right)
    assert opened.tolist() == [[33, 36, 0, 0, 1, 0]]
    far = world.step(world.step(opened, right), right)
    assert far.tolist() == [[39, 36, 0, 0, 1, 0]]
    other = room("BreakingKeys", 0, 30, 12, 3)
    assert torch.equal(world.step(other, right), other)  # the key is gone
    behind_first, behind_second = room("BreakingKeys", 0, 55, 12), room("BreakingKeys", 0, 55, 44)
    for key in (room("BreakingKeys", 0, 12, 20), room("BreakingKeys", 0, 12, 20, 1)):
        assert world.cost_to_go(key, behind_first).isfinite().all()
        assert world.cost_to_go(key, behind_second).isfinite().all()
    assert world.cost_to_go(far, behind_first).isinf().all()
    assert world.cost_to_go(far, behind_second).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_worlds_are_worlds(name):
    world = ROOMS[name]
    assert isinstance(world, World)
    state = spread(world, 50, 0)
    assert state.shape == (50, world.state_width) == (50, len(world.state_names))
    assert world.observe(state).frames.shape == (50, *world.image)
    assert torch.equal(world.join(*world.split(state)), state)
    again = world.sample_states(state, seeded(1))
    assert torch.equal(again[:, -1], state[:, -1])
    assert not torch.equal(again, state)
    lengths = world.typical_actions().norm(dim=-1)
    assert float(lengths.min()) == pytest.approx(0.4)
    assert float(lengths.max()) == pytest.approx(3.6)


def straight_line(world: TileWorld, state: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    """Success of walking straight at the goal with steps of two pixels."""
    done = world.reached(state, goal)
    for _ in range(world.episode_steps):
        way = goal[:, :2] - state[:, :2]
        length = way.norm(dim=-1, keepdim=True).clamp(min=1e-9)
        moved = world.step(state, way / length * length.clamp(max=world.config.step_mean))
        state = torch.where(done[:, None], state, moved)
        done = done | world.reached(state, goal)
    return done


def descent(world: TileWorld, state: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    """Success of always taking the move that leaves the shortest way."""
    actions = world.typical_actions()
    row, done = torch.arange(len(state)), world.reached(state, goal)
    for _ in range(world.episode_steps):
        after = world.step(state.repeat_interleave(len(actions), 0), actions.repeat(len(state), 1))
        left = world.cost_to_go(after, goal.repeat_interleave(len(actions), 0)).view(len(state), -1)
        moved = after.view(len(state), len(actions), -1)[row, left.argmin(1)]
        state = torch.where(done[:, None], state, moved)
        done = done | world.reached(state, goal)
        if done.all():
            break
    return done


@pytest.mark.parametrize("name", NAMES)
def test_tasks_need_more_than_the_straight_line(name):
    world = ROOMS[name]
    start, goal = world.sample_tasks(48, seeded(5))
    assert world.is_possible(start).all()
    assert world.is_possible(goal).all()
    assert torch.equal(start[:, -1], goal[:, -1])
    assert len(start[:, -1].unique()) > 0.8 * world.layouts("cpu").count
    assert world.apart(start, goal).all() == (name != "OpenRoom")
    assert straight_line(world, start, goal).all() == (name == "OpenRoom")
    if name != "OpenRoom":
        assert not straight_line(world, start, goal).any()
    assert descent(world, start[:8], goal[:8]).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_layout_has_tasks_and_every_mode_its_places(name):
    world = ROOMS[name]
    count = world.layouts("cpu").count
    numbers = torch.arange(count).repeat(20)
    start, _ = world.tasks_in(numbers, seeded(2))
    assert torch.equal(start[:, -1], numbers.float())
    states = world.sample_states(start.repeat(8, 1), seeded(3))
    assert world.is_possible(states).all()
    modes = world.split(states)[1]
    assert modes.unique().tolist() == list(range(4 if name == "BreakingKeys" else 1))
    # From where tasks start, everything that can occur can be walked to.
    assert world.cost_to_go(start.repeat(8, 1), states).isfinite().all()


def test_what_is_impossible():
    world = ROOMS["BreakingKeys"]
    good = room("BreakingKeys", 0, 10, 20)
    assert world.is_possible(good).all()
    for column, value in ((0, 1.0), (0, float("nan")), (0, 36), (2, 0.5), (5, 16), (5, 0.5), (5, -1)):
        bad = good.clone()
        bad[0, column] = value
        assert not world.is_possible(bad).any(), (column, value)
    both = good.clone()
    both[0, 2:4] = 1
    assert not world.is_possible(both).any()
    assert not world.is_possible(room("BreakingKeys", 0, 4, 52)).any()  # on the key without it
    assert not ROOMS["Pits"].is_possible(room("Pits", 0, 26, 28)).any()  # on the slope of a pit
    assert world.step(both, torch.ones(1, 2)).shape == both.shape  # handled all the same


def test_goals_elsewhere_cannot_be_reached():
    world = ROOMS["DeadEnd"]
    assert world.cost_to_go(room("DeadEnd", 0, 5, 5), room("DeadEnd", 1, 5, 5)).isinf().all()


def test_unknown_names_and_worlds_that_cannot_be_walked_are_refused():
    with pytest.raises(InputError, match="did you mean 'DeadEnd'"):
        tile_world("DeadEndd")
    maps = WORLDS["DeadEnd"].maps
    for wrong in ({"step_min": 4.0}, {"dot_std": 0.0}, {"episode_steps": 0}, {"least_distance": 60.0}):
        with pytest.raises(InputError):
            TileConfig(name="wrong", maps=maps, **wrong)
    with pytest.raises(InputError, match="no task found"):
        TileWorld(TileConfig(name="hurry", maps=maps, episode_steps=5)).sample_tasks(4, seeded(0))
