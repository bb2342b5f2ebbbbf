"""Ways imagined to a goal, in a toy world whose answers are known: a wall with a gap in the plane."""

import math

import pytest
import torch

from jepaplan.control.receding_horizon import RecedingHorizon
from jepaplan.costs.compose import WeightedSum
from jepaplan.costs.terms import GoalDistance
from jepaplan.interfaces import Distance, Prepared
from jepaplan.objectives.imagined_graph import UNREACHED, shortest_paths
from jepaplan.objectives.imagined_ways import ImaginedWays, WaysConfig, _cheapest_chains, imagine_ways
from jepaplan.planners.mppi import MPPI
from jepaplan.planners.proposals import NormBound
from jepaplan.types import InputError

GAP, HALF_GAP, HALF_WALL, SIDE = 12.0, 3.0, 1.5, 16.0  # a wall around x = 0, -16 < x, y < 16


class Rooms:
    """Latents are [scene | place | felt]; a step adds the action unless something is in the way."""

    action_dim, stride, moves_from = 2, 1, 1

    class action_units:
        normalise = staticmethod(lambda actions: actions)
        inverse = staticmethod(lambda actions: actions)

    def __init__(self):
        self.calls = 0

    def parameters(self):
        return iter([torch.zeros(1)])

    def encode(self, observation, proprioception=None):
        return observation

    def places(self, latents):
        return latents[..., 1:3]

    def step(self, latent, action):
        self.calls += len(latent)
        place = latent[:, 1:3]
        moved = place + action
        in_wall = (moved[:, 0].abs() < HALF_WALL) & ((moved[:, 1] - GAP).abs() > HALF_GAP)
        blocked = in_wall | (moved.abs() > SIDE).any(1)
        return torch.cat([latent[:, :1], torch.where(blocked[:, None], place, moved), latent[:, 3:] + 1], 1)

    def rollout(self, latent, actions):
        path = [latent[:, None].expand(-1, actions.shape[1], -1).flatten(0, 1)]
        for action in actions.flatten(0, 1).unbind(1):
            path.append(self.step(path[-1], action))
        return torch.stack(path, 1).unflatten(0, actions.shape[:2])


def read(latent, following):
    return following[..., 1:3] - latent[..., 1:3]


def latent(x, y, scene=0.0):
    return torch.tensor([scene, x, y, 0.5])


def true_steps(place, goal, largest):
    """Straight, or by way of the lower edge of the gap; nobody here is above it."""
    if place[0] * goal[0] > 0:
        return math.dist(place, goal) / largest
    side = math.copysign(HALF_WALL, place[0])
    heights = [place[1] + (goal[1] - place[1]) * (x - place[0]) / (goal[0] - place[0]) for x in (side, -side)]
    if min(heights) > GAP - HALF_GAP:
        return math.dist(place, goal) / largest
    near, far = (side, GAP - HALF_GAP), (-side, GAP - HALF_GAP)
    over = place if heights[0] > near[1] else near  # from above the edge the first corner is no detour
    way = math.dist(place, over) + math.dist(over, far) + math.dist(far, goal)
    return way / largest


CONFIG = WaysConfig(spacing=1.0, reach=3, step_norm=1.0, largest_norm=2.0, directions=16)


@pytest.fixture(scope="module")
def ways():
    return ImaginedWays((Rooms(), read), CONFIG)


def test_steps_to_go_are_those_of_the_way_through_the_gap(ways):
    generator = torch.Generator().manual_seed(0)
    places = (torch.rand(200, 2, generator=generator) - 0.5) * 30
    places = places[places[:, 0].abs() > HALF_WALL]
    goal = (-9.0, -7.0)
    found = ways(
        torch.cat([torch.zeros(len(places), 1), places, torch.zeros(len(places), 1)], 1), latent(*goal)[None]
    )
    true = torch.tensor([true_steps(tuple(place), goal, 2.0) for place in places.tolist()])
    assert float(torch.corrcoef(torch.stack([found, true]))[0, 1]) > 0.995
    assert float((found - true).abs().median()) < 0.6
    assert float((found - true).max()) < 3  # sixteen directions: 2 % longer ways, and states of width 1


def test_the_goal_is_no_steps_away_and_nowhere_is_far(ways):
    goal = latent(-9.0, -7.0)
    assert float(ways(goal, goal)) == 0
    nowhere = float(ways(latent(40.0, 40.0), goal))
    (found,) = (each for each in ways._known.values() if torch.equal(each.places[0], goal[1:3]))
    assert nowhere > found.furthest > float(found.steps.max()) - 1e-6


def test_states_cover_what_can_be_reached_and_feel_what_the_goal_feels():
    model = Rooms()
    found = imagine_ways(model, read, latent(5.0, 0.0), CONFIG)
    assert found.evaluations == model.calls
    grid = torch.cartesian_prod(torch.arange(-15.0, 16, 3), torch.arange(-15.0, 16, 3))
    assert float(torch.cdist(grid[grid[:, 0] != 0], found.places).min(1).values.max()) < 2 * CONFIG.spacing
    apart = torch.cdist(found.places, found.places).fill_diagonal_(9)
    assert float(apart.min()) > CONFIG.spacing - 1e-4
    assert found.pixels_per_step == pytest.approx(2.0, rel=0.01)


def test_noise_that_leaves_less_to_read_of_every_action_is_allowed_for():
    def faintly(latent, following):
        return 0.5 * read(latent, following)

    exact = imagine_ways(Rooms(), read, latent(5.0, 0.0), CONFIG)
    model = Rooms()
    found = imagine_ways(model, faintly, latent(5.0, 0.0), CONFIG)
    assert torch.equal(found.places, exact.places)
    assert torch.equal(found.steps, exact.steps)
    assert found.evaluations == model.calls == exact.evaluations
    in_a_corner = imagine_ways(Rooms(), faintly, latent(15.5, -15.5), CONFIG)
    assert len(in_a_corner.places) > 0.9 * len(exact.places)


def test_where_no_way_leads_is_further_than_all_that_is_reached():
    class Closed(Rooms):
        """Without a gap."""

        def step(self, latent, action):
            moved = super().step(latent, action)
            return torch.where((moved[:, 1:2] * latent[:, 1:2] < 0), latent, moved)

    ways = ImaginedWays((Closed(), read), CONFIG)
    goal = latent(-9.0, 0.0)
    assert float(ways(latent(9.0, 0.0), goal)) > float(ways(latent(-15.0, 15.0), goal)) + CONFIG.unreached / 2


def test_batches_broadcast_and_each_goal_has_its_own_ways(ways):
    sources = torch.stack([latent(-12.0, 3.0), latent(9.0, 1.0), latent(4.0, -8.0)])
    goals = torch.stack([latent(-9.0, -7.0), latent(6.0, 6.0)])
    table = ways(sources[None], goals[:, None])
    assert table.shape == (2, 3)
    for row, goal in enumerate(goals):
        for column, source in enumerate(sources):
            assert torch.equal(table[row, column], ways(source, goal))
    assert isinstance(ways, Distance)


def test_they_are_imagined_once_and_what_it_took_is_told():
    model = Rooms()
    ways = ImaginedWays((model, read), CONFIG)
    goals = torch.stack([latent(-9.0, -7.0), latent(6.0, 6.0)])
    assert isinstance(ways, Prepared)
    assert ways.prepare(goals) == model.calls > 1000
    known = model.calls
    assert ways.prepare(goals) == 0
    ways(goals, goals.flip(0))
    assert model.calls == known


def test_gradients_lead_along_the_way():
    ways = ImaginedWays((Rooms(), read), CONFIG)
    goal = latent(-9.0, -7.0)
    source = latent(9.0, -7.0).requires_grad_()
    ways(source, goal).backward()
    assert source.grad is not None
    downhill = -source.grad[1:3]
    way = torch.tensor([HALF_WALL, GAP - HALF_GAP]) - source.detach()[1:3]
    assert float(torch.cosine_similarity(downhill, way, dim=0)) > 0.9


def test_a_controller_counts_them_and_finds_the_gap():
    model = Rooms()
    ways = ImaginedWays((model, read), CONFIG)
    planner = MPPI(samples=64, horizon=8, temperature=0.1, std=1.0, bounds=NormBound(max_norm=2.0))
    cost = WeightedSum({"goal": (1.0, GoalDistance(distance=ways))})
    controller = RecedingHorizon(world_model=model, planner=planner, cost=cost)
    controller.reset(latent(-6.0, 0.0)[None], torch.Generator().manual_seed(0))
    at = latent(6.0, 0.0)[None]
    spent = []
    for _ in range(40):
        at = model.step(at, controller.act(at))
        spent.append(controller.last.evaluations)
    assert float((at[0, 1:3] - torch.tensor([-6.0, 0.0])).norm()) < 2
    assert spent[0] > spent[1] == spent[2] == 64 * 8 + 8


def test_numbers_that_make_no_sense_are_refused():
    with pytest.raises(InputError, match="positive spacing"):
        WaysConfig(spacing=0.0)


def test_chains_are_the_shortest_paths_of_the_graph_and_lead_along_them():
    generator = torch.Generator().manual_seed(0)
    count = 30
    costs = torch.full((count, count), UNREACHED).fill_diagonal_(0)
    begins, ends = torch.randint(count - 3, (2, 90), generator=generator)  # three states without a way
    begins, ends = begins[begins != ends], ends[begins != ends]
    paid = torch.rand(len(begins), generator=generator) + 0.1
    costs.view(-1).scatter_reduce_(0, begins * count + ends, paid, "amin")
    to_go, following = _cheapest_chains(begins, ends, paid, count)
    true = shortest_paths(costs)[:, 0]
    assert torch.equal(to_go.isfinite(), true < UNREACHED)
    reached = (true < UNREACHED).nonzero()[:, 0]
    assert torch.allclose(to_go[reached], true[reached])
    for state in reached[1:].tolist():
        step = int(following[state])
        assert float(to_go[state]) == pytest.approx(float(costs[state, step] + to_go[step]))
    assert following[~to_go.isfinite()].eq(-1).all()
    assert int(following[0]) == -1


def test_numbers_that_are_none_end_the_search():
    nan = torch.full((2,), math.nan)
    to_go, _ = _cheapest_chains(torch.tensor([1, 2]), torch.tensor([0, 1]), nan, 3)
    assert to_go.shape == (3,)
