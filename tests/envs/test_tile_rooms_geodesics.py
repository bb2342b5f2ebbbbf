"""Shortest paths among tiles: against a search on a fine lattice that knows only the rules of a move."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.envs.tile_rooms import WORLDS, TileWorld, tile_world

NAMES = list(WORLDS)
ROOMS = {name: tile_world(name) for name in NAMES}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lattice_costs(
    world: TileWorld, layout: int, goals: torch.Tensor, spacing: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cost from every lattice point in every mode to each goal (a lattice point), by value iteration.

    Edges are what `step` does with moves to lattice points up to three apart, so it knows nothing of corners.
    Keys and pits put the dot into a tile's middle, which is a lattice point too.
    """
    modes = 1 + len(world.flag_names)
    line = 3.5 + spacing * torch.arange(-20, 140)  # with 8 / odd, half a spacing from the edges of tiles
    line = line[(line > 1.5) & (line < 61.5)]
    side = len(line)
    place = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2)
    mode = torch.arange(modes).repeat_interleave(len(place))
    states = world.join(place.repeat(modes, 1), mode, torch.full_like(mode, layout))
    reach = [(x, y) for x in range(-3, 4) for y in range(-3, 4) if math.gcd(x, y) == 1]
    edges, lengths = [], []
    for move in reach:
        after = world.step(states, spacing * torch.tensor(move).float().expand(len(states), 2))
        column, row = ((after[:, :2] - line[0]) / spacing).round().long().clamp(0, side - 1).unbind(-1)
        edges.append((world.split(after)[1] * side + row) * side + column)
        # Where a key or a pit snaps the dot to itself, only the way to its edge was walked.
        walked = spacing * math.hypot(*move)
        snapped = (after[:, :2] - states[:, :2] - spacing * torch.tensor(move)).abs().amax(-1) > 1e-3
        middle = after[:, :2]
        near = torch.minimum(torch.maximum(states[:, :2], middle - 4), middle + 4)
        short = (near - states[:, :2]).norm(dim=-1)
        moved = (after != states).any(-1)
        lengths.append(torch.where(snapped & moved, short, walked))
    edge, length = torch.stack(edges, 1), torch.stack(lengths, 1)
    cost = torch.full((len(states), len(goals)), torch.inf)
    for number, goal in enumerate(goals):
        cost[(states[:, :2] - goal[:2]).norm(dim=-1) < 1e-3, number] = 0
    while True:
        better = torch.minimum(cost, (cost[edge] + length[..., None]).amin(1))
        if torch.equal(better, cost):
            return cost.view(modes, side * side, -1), states.view(modes, side * side, -1)
        cost = better


@pytest.mark.parametrize("name", NAMES)
def test_against_a_lattice(name):
    against_lattice(ROOMS[name], spacing=8 / 7, every=11)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_against_a_finer_lattice(name):
    against_lattice(ROOMS[name], spacing=8 / 15, every=5)


def against_lattice(world: TileWorld, spacing: float, every: int) -> None:
    """Exact costs from every so many places and modes of the first and the last layout to a few goals."""
    generator, count, checked = seeded(7), world.layouts("cpu").count, 0
    for layout in {0, count - 1}:
        start, _ = world.tasks_in(torch.full((4,), layout), generator)
        made_for = world.tasks_in(start[:1, -1].long(), generator)[1]
        goals = torch.cat([world.sample_states(start, generator), made_for])
        goals[:, :2] = ((goals[:, :2] - 3.5) / spacing).round() * spacing + 3.5
        goals = goals[world.is_possible(goals)]
        brute, states = lattice_costs(world, layout, goals, spacing)
        possible = world.is_possible(states.flatten(0, 1)).view(brute.shape[:2])
        states, brute = states[possible][::every], brute[possible][::every]
        for goal, slow in zip(goals, brute.unbind(-1), strict=True):
            exact = world.cost_to_go(states, goal.expand_as(states))
            assert torch.equal(exact.isinf(), slow.isinf())
            exact, slow = exact[exact.isfinite()], slow[slow.isfinite()]
            assert (exact <= slow + 1e-3).all()
            # Directions between the lattice's cost up to 1.4 %, and it keeps half a spacing from every wall.
            assert (slow <= 1.014 * exact + 5 * spacing).all()
            assert float(slow.sum() / exact.sum()) < 1.014 + 0.03 * spacing
            checked += len(exact)
    assert checked > 4000 / every


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_costs_are_lengths_of_paths(name, seed):
    world, generator = ROOMS[name], seeded(seed)
    state = world.sample_states(world.sample_tasks(40, generator)[0], generator).double()
    goal, via = (world.sample_states(state, generator).double() for _ in range(2))
    cost = world.cost_to_go(state, goal)
    straight = (state - goal)[:, :2].norm(dim=-1)
    snap = 4 * math.sqrt(2) if world.flag_names else 0.0  # a key takes the dot from its edge to its middle
    assert (cost >= straight - snap - 1e-9).all()
    assert torch.equal(world.apart(state, goal), cost > straight + 1e-6)
    assert (world.cost_to_go(state, state) == 0).all()
    if not world.flag_names:  # with a key, the way by `via` may leave another mode than `via` is in
        around = world.cost_to_go(state, via) + world.cost_to_go(via, goal)
        assert (cost <= around + 1e-9).all()


def test_lengths_known_by_hand():
    def cost(name: str, start: tuple[float, ...], goal: tuple[float, ...]) -> float:
        return float(ROOMS[name].cost_to_go(torch.tensor([start]).double(), torch.tensor([goal]).double()))

    # DeadEnd 0: out of the trap round its upper arm, from (15.5, 23.5) and (15.5, 15.5) to (47.5, 15.5).
    expected = math.hypot(12, 4) + 8 + 32 + math.hypot(5, 12)
    assert cost("DeadEnd", (27.5, 27.5, 0), (52.5, 27.5, 0)) == pytest.approx(expected)
    # Detour 0: round the left end of the wall, whose corners are (7.5, 23.5) and (7.5, 31.5).
    assert cost("Detour", (43.5, 19.5, 0), (43.5, 35.5, 0)) == pytest.approx(2 * math.hypot(36, 4) + 8)
    # BreakingKeys 0: down and along the wall's lower edge to the key's corner, from its middle back and
    # through the second door, past the corners of both walls.
    to_key = math.hypot(4, 24) + 8
    from_key = math.hypot(4, 4) + 8 + math.hypot(16, 16) + 20
    assert cost("BreakingKeys", (19.5, 31.5, 0, 0, 0, 0), (51.5, 39.5, 0, 0, 0, 0)) == pytest.approx(
        to_key + from_key
    )


@pytest.mark.parametrize("name", NAMES)
def test_mirrored_rooms_have_mirrored_costs(name):
    world = ROOMS[name]
    maps = world.layouts("cpu").maps
    flipped = tuple(tuple(line[::-1].translate(str.maketrans("<>", "><")) for line in one) for one in maps)
    state = world.sample_states(world.sample_tasks(200, seeded(1))[0], seeded(2)).double()
    goal = world.sample_states(state, seeded(3)).double()
    mirrored = [states.clone() for states in (state, goal)]
    partner = torch.tensor([maps.index(one) for one in flipped])
    for states in mirrored:
        states[:, 0] = 63 - states[:, 0]
        states[:, -1] = partner[states[:, -1].long()].double()
    torch.testing.assert_close(world.cost_to_go(*mirrored), world.cost_to_go(state, goal))
