"""Shortest imagined paths in a toy world whose answers are known: points in the plane, a wall, a gap."""

import heapq
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from jepaplan.evaluation.statistics import spearman
from jepaplan.models.value_heads import (
    QuasimetricHead,
    QuasimetricHeadConfig,
    ValueHeadConfig,
    build_values,
)
from jepaplan.objectives.imagined_graph import (
    UNREACHED,
    GroupSampler,
    ImaginedGroups,
    ImaginedScenes,
    ImaginedValueObjective,
    MeanObjective,
    forget_ways_to_traps,
    relative_error,
    shortest_paths,
    step_costs,
    with_recorded_ways,
)
from jepaplan.objectives.imagined_states import (
    ImaginationConfig,
    are_traps,
    believed_step,
    farthest_points,
    imagine_states,
    unit_directions,
)
from jepaplan.recipes.latent_stages import StepsByValue
from jepaplan.recipes.scenes import RecordedScene, imagine_scenes
from jepaplan.types import InputError

GAP = (0.0, 8.0)  # the wall is the line x = 0; its gap is centred at y = 8
HALF_GAP = 1.5


class Plane:
    """Latents are positions, a step adds the action; a move that crosses the wall stays, or leaks a part."""

    action_dim = 2
    stride = 1
    action_units = None

    def __init__(self, wall=True, leak=0.0):
        self.wall, self.leak = wall, leak

    def encode(self, observation, proprioception=None):
        return observation

    def step(self, latent, action):
        moved = latent + action
        if not self.wall:
            return moved
        crossing = latent[:, 0] * moved[:, 0] <= 0
        share = latent[:, 0] / (latent[:, 0] - moved[:, 0]).where(crossing, torch.ones(()))
        height = latent[:, 1] + share * action[:, 1]
        blocked = crossing & ((height - GAP[1]).abs() > HALF_GAP)
        return torch.where(blocked[:, None], latent + self.leak * action, moved)

    def rollout(self, latent, actions):
        raise NotImplementedError


def difference(latent, next_latent):
    return next_latent - latent


def grid(spacing=1.0, half=10):
    lines = torch.arange(-half, half, dtype=torch.float32) * spacing + 0.5 * spacing
    return torch.cartesian_prod(lines, lines)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def dijkstra(costs, source):
    best, queue = {source: 0.0}, [(0.0, source)]
    while queue:
        far, node = heapq.heappop(queue)
        if far > best[node]:
            continue
        for other, cost in enumerate(costs[node]):
            if far + cost < best.get(other, UNREACHED):
                best[other] = far + cost
                heapq.heappush(queue, (far + cost, other))
    return [best.get(node, UNREACHED) for node in range(len(costs))]


@given(seed=st.integers(0, 10_000), nodes=st.integers(1, 12), density=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_shortest_paths_are_those_of_dijkstra(seed, nodes, density):
    generator = seeded(seed)
    costs = torch.rand(nodes, nodes, generator=generator, dtype=torch.float64) * 9 + 0.1
    costs = costs.where(torch.rand(nodes, nodes, generator=generator) < density, UNREACHED).fill_diagonal_(0)
    expected = torch.tensor([dijkstra(costs.tolist(), node) for node in range(nodes)], dtype=torch.float64)
    before = costs.clone()
    torch.testing.assert_close(shortest_paths(costs), expected)
    assert torch.equal(costs, before)


def test_farthest_points_of_a_line():
    points = torch.tensor([[0.0], [1.0], [9.0], [4.0], [5.0], [10.0]])
    assert farthest_points(points, 3).tolist() == [0, 5, 4]
    assert sorted(farthest_points(points, 6).tolist()) == [0, 1, 2, 3, 4, 5]


@given(dimension=st.integers(2, 5), count=st.integers(1, 20))
@settings(max_examples=20, deadline=None)
def test_directions_have_length_one(dimension, count):
    directions = unit_directions(count, dimension, seeded())
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(count))


CONFIG = ImaginationConfig(
    states=400, step_norm=1.5, largest_norm=2.0, directions=32, reach=6, belief=0.3, tolerance=0.5
)


def straight(states, config=CONFIG):
    return torch.cdist(states, states) / config.largest_norm


def test_without_walls_steps_to_go_are_the_straight_way():
    states = grid()
    steps = shortest_paths(step_costs(Plane(wall=False), difference, states, CONFIG, seeded()))
    exact = straight(states)
    assert (steps < UNREACHED).all()
    assert (steps >= exact - 1e-4).all()  # a chain of legal steps is never shorter
    # At least one imagined step, and what is missing at its end: a near neighbour costs half a step more.
    assert ((steps - exact) <= 0.15 * exact + 0.6).all()


def way_around(states, config=CONFIG):
    """Euclid on one side; through the nearer edge of the gap, at best, from side to side."""
    tips = torch.tensor([[GAP[0], GAP[1] - HALF_GAP], [GAP[0], GAP[1] + HALF_GAP]])
    through = torch.cdist(states, tips)
    around = (through[:, None] + through[None]).amin(-1)
    ends = states[:, None, 1] + (
        (states[None, :, 1] - states[:, None, 1])
        * states[:, None, 0]
        / (states[:, None, 0] - states[None, :, 0]).where(
            states[:, None, 0] != states[None, :, 0], torch.ones(())
        )
    )
    sides = states[:, None, 0] * states[None, :, 0] < 0
    hidden = sides & ((ends - GAP[1]).abs() > HALF_GAP)
    return torch.where(hidden, around, torch.cdist(states, states)) / config.largest_norm, hidden


def test_nothing_from_side_to_side_is_cheaper_than_the_way_through_the_gap():
    states = grid()
    steps = shortest_paths(step_costs(Plane(), difference, states, CONFIG, seeded()))
    exact, hidden = way_around(states)
    assert (steps < UNREACHED).all()  # the gap joins the sides
    # Ends lie beside states, not on them: a chain may cut a corner by what the tolerance leaves over.
    corner = CONFIG.tolerance * CONFIG.largest_norm / CONFIG.largest_norm
    assert (steps[hidden] >= exact[hidden] - corner).all()
    assert (steps[hidden] <= 1.2 * exact[hidden] + 1).all()
    across = hidden & (straight(states) < 2)
    assert (steps[across] / straight(states)[across]).median() > 3  # truly around


def test_a_closed_wall_joins_nothing():
    states = grid(half=4)  # the gap is out of sight
    steps = shortest_paths(step_costs(Plane(), difference, states, CONFIG, seeded()))
    sides = states[:, None, 0] * states[None, :, 0] < 0
    assert (steps[sides] == UNREACHED).all()
    assert (steps[~sides] < UNREACHED).all()


@pytest.mark.parametrize("leak", [0.3, 0.6])
def test_a_predictor_that_leaks_through_the_wall_is_not_believed(leak):
    states = grid(half=4)
    sides = states[:, None, 0] * states[None, :, 0] < 0
    world, credulous = Plane(leak=leak), replace(CONFIG, belief=5.0)
    believed = shortest_paths(step_costs(world, difference, states, credulous, seeded()))
    assert (believed[sides] < UNREACHED).any()
    doubted = shortest_paths(step_costs(world, difference, states, CONFIG, seeded()))
    assert (doubted[sides] == UNREACHED).all()


def test_belief_is_the_share_of_the_action_that_was_lost():
    latent, actions = torch.tensor([[-0.5, 0.0], [-9.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    for leak, expected in ((0.8, [True, True]), (0.6, [False, True])):
        following, believed = believed_step(Plane(leak=leak), difference, latent, actions, 0.3)
        assert believed.tolist() == expected
        torch.testing.assert_close(following, torch.tensor([[-0.5 + leak, 0.0], [-8.0, 0.0]]))


def test_imagined_states_keep_their_side_and_spread():
    recorded = torch.tensor([[-3.0, 0.0], [-3.0, 1.0]])
    config = replace(CONFIG, states=60, walkers=16, walk_steps=30)
    states = imagine_states(Plane(leak=0.5), difference, recorded, config, seeded())
    assert states.shape == (60, 2)
    reached = states[(states[:, 1] - GAP[1]).abs() > HALF_GAP + 1.5]
    beyond = reached[reached[:, 0] > 0]
    assert len(beyond) < len(states)
    assert states.std(0).min() > 2
    again = imagine_states(Plane(leak=0.5), difference, recorded, config, seeded())
    assert torch.equal(states, again)
    assert not torch.equal(states, imagine_states(Plane(leak=0.5), difference, recorded, config, seeded(1)))


def test_walks_never_leave_a_closed_room_by_leaking():
    recorded = torch.tensor([[-3.0, -60.0], [-3.0, -61.0]])  # far from the gap
    config = replace(CONFIG, states=60, walkers=16, walk_steps=30)
    assert (imagine_states(Plane(leak=0.6), difference, recorded, config, seeded())[:, 0] < 0).all()


def test_the_scene_does_not_count_as_distance():
    scene = torch.tensor([[7.0]]).expand(400, 1)
    states = torch.cat([scene, grid()], dim=1)

    class Held(Plane):
        def step(self, latent, action):
            return torch.cat([latent[:, :1], super().step(latent[:, 1:], action)], dim=1)

    steps = step_costs(
        Held(), lambda a, b: (b - a)[..., 1:], states, replace(CONFIG, scene_width=1), seeded()
    )
    torch.testing.assert_close(steps, step_costs(Plane(), difference, grid(), CONFIG, seeded()))


def test_pairs_without_a_known_way_teach_nothing():
    distances = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    error = relative_error(distances, torch.tensor([2.0, UNREACHED, 5.0]))
    assert float(error.detach()) == pytest.approx((1 / 3 + 4 / 6) / 2)
    error.backward()
    assert distances.grad[1] == 0
    assert (distances.grad[[0, 2]] != 0).all()
    assert relative_error(distances, torch.full((3,), UNREACHED)) == 0


def test_the_mean_over_processes_is_the_error_of_all_pairs():
    distances, steps = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, UNREACHED, 5.0, 3.0])
    counts = torch.tensor([1.0, 2.0])
    parts = [
        relative_error(distances[i : i + 2], steps[i : i + 2], gather=lambda own: counts) for i in (0, 2)
    ]
    torch.testing.assert_close(sum(parts) / 2, relative_error(distances, steps))


@pytest.fixture
def scenes():
    states = torch.stack([grid(half=3), grid(half=3) + 0.1])
    return ImaginedScenes(states=states, steps=torch.stack([straight(each) for each in states]))


def test_groups_are_of_one_scene_and_their_steps_belong_to_them(scenes):
    sampler = GroupSampler(scenes, Plane(wall=False), CONFIG, group=5)
    drawn, again = sampler.sample(seeded(), 7), sampler.sample(seeded(), 7)
    assert all(torch.equal(drawn[name], again[name]) for name in drawn)
    groups = sampler.load(drawn)
    assert groups.states.shape == groups.nearby.shape == (7, 5, 2)
    assert groups.steps.shape == (7, 5, 5)
    torch.testing.assert_close(groups.steps, torch.cdist(groups.states, groups.states) / CONFIG.largest_norm)
    moved = (groups.nearby - groups.states).norm(dim=-1)
    torch.testing.assert_close(groups.nearby_steps, moved / CONFIG.largest_norm)
    assert (moved <= CONFIG.step_norm + 1e-5).all()
    halves = [
        sampler.load({name: value[part] for name, value in drawn.items()}) for part in (slice(3), slice(3, 7))
    ]
    torch.testing.assert_close(torch.cat([half.states for half in halves]), groups.states)


def test_fitting_brings_the_distance_to_the_steps(scenes):
    torch.manual_seed(0)
    sampler = GroupSampler(scenes, Plane(wall=False), CONFIG, group=24)
    head = QuasimetricHead(2, QuasimetricHeadConfig(hidden=64, layers=1, width=32, components=4, norm=False))
    objective = ImaginedValueObjective(head, difference, CONFIG)
    optimiser = torch.optim.Adam(objective.parameters(), lr=5e-3)
    generator, losses = seeded(), []
    for _ in range(150):
        loss, metrics = objective(sampler.load(sampler.sample(generator, 4)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])
    assert float(metrics["far"] + metrics["near"]) == pytest.approx(losses[-1])


def test_every_member_of_an_ensemble_learns_the_way_around_the_wall():
    """A network without any geometry ranks pairs that the wall hides by the way through the gap."""
    torch.manual_seed(0)
    states = grid(half=5)
    exact, hidden = way_around(states)
    sampler = GroupSampler(ImaginedScenes(states=states[None], steps=exact[None]), Plane(), CONFIG, group=32)
    ensemble = build_values(ValueHeadConfig(hidden=32), 2, members=2)
    objective = MeanObjective(
        ImaginedValueObjective(StepsByValue(member), difference, CONFIG) for member in ensemble.members
    )
    optimiser, generator = torch.optim.Adam(ensemble.parameters(), lr=2e-2), seeded()
    for _ in range(80):
        loss, metrics = objective(sampler.load(sampler.sample(generator, 4)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(metrics["far"] + metrics["near"]) == pytest.approx(float(loss.detach()))
    with torch.no_grad():
        learned = -ensemble(states[:, None], states[None])[hidden]
    assert spearman(straight(states)[hidden], exact[hidden]) < 0.4
    for member in learned.unbind(-1):
        assert spearman(member, exact[hidden]) > 0.8
        assert (member - exact[hidden]).abs().mean() < 0.15 * exact[hidden].mean()
    assert float((learned[:, 0] - learned[:, 1]).abs().max()) > 0, "members begin and end differently"


def test_what_the_inverse_dynamics_read_bounds_a_step_that_a_wall_cut_short():
    """A distance of zero everywhere errs by the read steps, not by the larger ones that were asked."""

    class Nothing(nn.Module):
        def project(self, latents):
            return latents

        def between(self, source, goal):
            return 0 * (source - goal).sum(-1)

    scenes = ImaginedScenes(states=grid(half=2)[None], steps=torch.zeros(1, 16, 16))
    frozen = GroupSampler(scenes, Plane(), CONFIG, group=8)
    frozen.world_model.step = lambda latent, action: latent + 0.5 * action
    groups = frozen.load(frozen.sample(seeded(), 3))
    _, metrics = ImaginedValueObjective(Nothing(), difference, CONFIG)(groups)
    half = (0.5 * groups.nearby_steps).square().mean()
    torch.testing.assert_close(metrics["near"], 2 * half)
    assert metrics["far"] == 0


@pytest.mark.parametrize(
    "wrong", [{"states": 0}, {"belief": 0.0}, {"scene_width": -1}, {"step_norm": -math.pi}]
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(InputError, match="imagination needs positive counts"):
        ImaginationConfig(**wrong)


def test_pairs_without_a_known_way_are_pushed_apart_on_request():
    steps = torch.tensor([3.0, UNREACHED, UNREACHED])
    distances = torch.tensor([3.0, 40.0, 130.0], requires_grad=True)
    relative_error(distances, steps, unreached=100.0).backward()
    lacking = -2 * (100.0 - 40.0) / 101 / 3
    torch.testing.assert_close(distances.grad, torch.tensor([0.0, lacking, 0.0]))


def test_where_steps_cannot_be_undone_the_way_back_is_not_taught():
    class Line(nn.Module):
        """A distance of one number each way."""

        def __init__(self):
            super().__init__()
            self.back = nn.Parameter(torch.tensor(5.0))

        def project(self, latents):
            return latents

        def between(self, source, goal):
            ahead = (goal - source)[..., 0]
            return torch.where(ahead >= 0, ahead, -ahead * self.back)

    states = torch.arange(4.0).view(1, 4, 1)
    groups = ImaginedGroups(
        states=states,
        steps=torch.full((1, 4, 4), UNREACHED),
        nearby=states + 0.5,
        nearby_steps=torch.full((1, 4), 0.5),
    )

    def inverse_dynamics(latent, following):
        return following - latent

    for reversible in (True, False):
        config = ImaginationConfig(reversible=reversible, largest_norm=1.0)
        distance = Line()
        loss, _ = ImaginedValueObjective(distance, inverse_dynamics, config)(groups)
        learned = torch.autograd.grad(loss, distance.back, allow_unused=True, materialize_grads=True)[0]
        assert (learned.abs() > 0) == reversible


class PlaneWithPit(Plane):
    """Whoever comes within 1 of (5, 0) falls to its middle and stays there."""

    middle = torch.tensor([5.0, 0.0])

    def step(self, latent, action):
        moved = latent + action
        fell = ((moved - self.middle).norm(dim=-1) < 1) | ((latent - self.middle).norm(dim=-1) < 1e-3)
        return torch.where(fell[:, None], self.middle.expand_as(moved), moved)


def test_pits_are_found_and_nothing_is_reached_from_them():
    config = replace(CONFIG, reversible=False, states=64, walkers=64, walk_steps=30)
    world = PlaneWithPit(wall=False)
    recorded = grid(half=8)
    recorded = recorded[(recorded - world.middle).norm(dim=-1) > 1]
    assert not are_traps(world, difference, recorded, config).any()
    states = imagine_states(world, difference, recorded, config, seeded())
    in_pit = (states - world.middle).norm(dim=-1) < 1e-3
    assert 1 <= int(in_pit.sum()) <= 8
    assert in_pit[: int(in_pit.sum())].all(), "a scene that is cut short would lose its traps"
    steps = forget_ways_to_traps(shortest_paths(step_costs(world, difference, states, config, seeded())))
    from_pit = steps[in_pit][:, ~in_pit]
    assert ((from_pit == UNREACHED) | from_pit.isnan()).all()
    assert (from_pit == UNREACHED).float().mean() > 0.5
    assert steps[~in_pit][:, in_pit].isnan().all()
    assert (steps[~in_pit][:, ~in_pit] < UNREACHED).float().mean() > 0.5


def test_unknown_pairs_teach_nothing_even_where_others_are_pushed_apart():
    distances = torch.tensor([3.0, 4.0], requires_grad=True)
    relative_error(distances, torch.tensor([1.0, torch.nan]), unreached=50.0).backward()
    torch.testing.assert_close(distances.grad, torch.tensor([2.0, 0.0]))


def test_recorded_steps_are_ways_where_nothing_is_believed():
    """A walk through a closed wall, as through a door that opened: one way, and of its own length."""
    walk = torch.tensor([[-1.0, -4.0], [1.0, -4.0], [2.0, -4.0]])
    config = replace(CONFIG, recorded_ways=True, reversible=False, states=60)
    states = imagine_states(Plane(), difference, walk, config, seeded())
    assert torch.equal(states[:3], walk)
    costs = step_costs(Plane(), difference, states, config, seeded())
    lengths = (walk[1:] - walk[:-1]).norm(dim=-1) / config.largest_norm
    known = with_recorded_ways(costs, lengths)
    assert float(costs[0, 1]) == UNREACHED
    assert float(known[0, 1]) == pytest.approx(2.0 / config.largest_norm)
    assert float(known[1, 0]) == UNREACHED
    assert torch.equal(known[3:], costs[3:])
    assert (known <= costs).all()
    assert len(states.unique(dim=0)) == len(states), "a state that comes twice is unreached from itself"
    # traps have the room that is left
    few = imagine_states(Plane(), difference, walk, replace(config, states=4), seeded())
    assert len(few) == 4
    # more recorded frames than states: nothing beyond them
    assert torch.equal(with_recorded_ways(costs[:2, :2], lengths), known[:2, :2])


def test_no_traps_are_looked_for_if_none_are_wanted():
    config = replace(CONFIG, reversible=False, states=64, walkers=64, walk_steps=30, traps=False)
    world = PlaneWithPit(wall=False)
    recorded = grid(half=8)
    recorded = recorded[(recorded - world.middle).norm(dim=-1) > 1]
    states = imagine_states(world, difference, recorded, config, seeded())
    assert not ((states - world.middle).norm(dim=-1) < 1e-3).any()
    assert len(states) == 64


def test_scenes_go_along_their_own_recorded_steps():
    """Two recordings through a closed wall at different heights: each joins the sides by its own step."""
    config = replace(CONFIG, recorded_ways=True, states=24, traps=False, reversible=False)
    recordings = []
    for height in (-4.0, -7.0):
        walk = torch.tensor([[-1.0, height], [1.0, height], [2.0, height]])
        steps = (walk[1:] - walk[:-1]).norm(dim=-1) / config.largest_norm
        recordings.append(RecordedScene(walk, steps, seeded()))
    scenes = imagine_scenes((Plane(), difference), recordings, config, lambda done: None)
    for number, scene in enumerate(recordings):
        assert torch.equal(scenes.states[number, :3], scene.latents)
        assert float(scenes.steps[number, 0, 1]) == pytest.approx(float(scene.steps[0]))
    assert not scenes.steps.isnan().any(), "without traps nothing is unknown"
    silent = imagine_scenes(
        (Plane(), difference), recordings, replace(config, recorded_ways=False), lambda _: None
    )
    ends = silent.states[..., 0]
    assert (silent.steps[ends[:, :, None] * ends[:, None] < 0] == UNREACHED).all()
