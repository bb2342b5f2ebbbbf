import math

import pytest
import torch
from torch import nn

from jepaplan.envs.wall import WALL_BIG, WallWorld
from jepaplan.evaluation.position_probe import ProbeConfig, fit_position_probe, probe_error
from jepaplan.evaluation.probes import (
    distance_map,
    fresh_walks,
    greedy_descent,
    rank_correlations,
    rollout_errors,
    value_diagnosis,
)
from jepaplan.evaluation.references import GeodesicDistance, PositionDistance, TrueDynamics
from jepaplan.evaluation.tasks import load_instances

WORLD = WallWorld(WALL_BIG)


class Scaled:
    """Action units that are a plain multiple."""

    def normalise(self, actions):
        return actions / 1.5

    def inverse(self, actions):
        return actions * 1.5


class Seeing(TrueDynamics):
    """Sees images perfectly: the latent is the state that the picture shows, found by looking it up."""

    def encode(self, observation, proprioception=None):
        dot, walls = observation[:, 0].double(), observation[:, 1]
        pixel, mass = torch.arange(64).double(), dot.sum((1, 2))
        x, y = (dot.sum(1) * pixel).sum(1) / mass, (dot.sum(2) * pixel).sum(1) / mass
        wall = walls.sum(1, dtype=torch.long)
        wall[:, [*range(6), *range(58, 64)]] = 0
        wall_x = wall.argmax(1) + 1  # the first of the wall's three columns
        column = walls[torch.arange(len(walls)), :, wall_x]
        rows = (column[:, 5:59] == 0).double()
        door_y = (rows * torch.arange(5, 59)).sum(1) / rows.sum(1)
        return torch.stack([x, y, wall_x.double(), door_y], -1).float()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_linear_probe_finds_a_position_hidden_in_a_mixture():
    positions = 4 + 55 * torch.rand(3000, 2, generator=seeded())
    mixed = torch.cat([positions, torch.randn(3000, 30, generator=seeded(1)) * 20], dim=1)
    latents = mixed @ torch.randn(32, 32, generator=seeded(2)) + 100
    probe = fit_position_probe(latents[:2000], positions[:2000], ProbeConfig(ridge=1e-7), seeded(3))
    error = probe_error(probe, latents[2000:], positions[2000:], "linear")
    assert error.mean < 0.1
    assert error.median <= error.worst_twentieth
    assert error.frames == 1000


def test_only_the_network_reads_a_bent_latent():
    positions = 4 + 55 * torch.rand(4000, 2, generator=seeded())
    angle = (positions - 31.5) / 10
    latents = torch.cat([angle.sin(), angle.cos()], dim=1)
    errors = {}
    for kind in ("linear", "network"):
        config = ProbeConfig(kind=kind, hidden=64, batch=256, updates=500, learning_rate=3e-3)
        probe = fit_position_probe(latents[:3000], positions[:3000], config, seeded(3))
        errors[kind] = probe_error(probe, latents[3000:], positions[3000:], kind).mean
    assert errors["network"] < 0.25 * errors["linear"]


class Mapped(Seeing):
    """Keeps a map: four numbers that say where the dot was when the picture was taken, and stay."""

    def encode(self, observation, proprioception=None):
        state = super().encode(observation, proprioception)
        return torch.cat([state, state], dim=-1)

    def step(self, latent, action):
        return torch.cat([latent[..., :4], super().step(latent[..., 4:], action)], dim=-1)


def test_a_map_does_not_count_where_imagination_is_compared():
    walks = fresh_walks(WORLD, 40, 15, seeded())
    model = Mapped(WORLD, Scaled())
    states = WORLD.sample_tasks(2000, seeded(1))[0]
    latents = torch.cat([states, states], dim=-1)
    for moves_from, good in ((4, True), (0, False)):
        probe = fit_position_probe(
            latents, WORLD.positions(states), ProbeConfig(ridge=1e-7), seeded(2), moves_from
        )
        assert probe_error(probe, latents, WORLD.positions(states), "linear").mean < 0.1
        *_, last = rollout_errors(WORLD, model, probe, walks, (15,), moves_from)
        assert (last.pixels < 1.0) == good
        assert (last.latent < 0.1) == good


def test_perfect_imagination_has_no_error_and_stillness_has():
    walks = fresh_walks(WORLD, 40, 50, seeded())
    probe = nn.Sequential(nn.Linear(4, 2, bias=False))
    probe[0].weight.data = torch.eye(4)[:2]
    errors = rollout_errors(WORLD, Seeing(WORLD, Scaled()), probe, walks)
    assert [error.steps for error in errors] == [1, 15, 50]  # 96 does not fit
    # what remains is the camera's 1/4 pixel, and near a wall once a step decided otherwise
    assert errors[0].pixels < 0.3
    assert errors[1].pixels < 1.0
    assert errors[1].still_pixels > 8
    assert errors[1].latent < 0.1 < errors[1].still_latent


def test_the_geodesic_correlates_with_itself_and_the_straight_line_only_within_a_room():
    same, other = rank_correlations(WORLD, GeodesicDistance(WORLD), seeded(), layouts=8)
    assert same.mean == pytest.approx(1)
    assert other.mean == pytest.approx(1)
    same, other = rank_correlations(WORLD, PositionDistance(WORLD), seeded(), layouts=20)
    assert (same.pairs, other.pairs) == ("same room", "other room")
    assert same.mean == pytest.approx(1)
    assert other.low <= other.mean <= other.high < 0.97
    assert other.layouts == 20


def test_the_geodesic_loses_nothing_by_its_choices_and_means_what_it_says():
    exact = value_diagnosis(WORLD, GeodesicDistance(WORLD), seeded(), layouts=8)
    assert exact.regret.share.mean == pytest.approx(0)
    assert exact.regret.stranded == 0
    assert exact.calibration_error == pytest.approx(0, abs=1e-4)
    assert sum(part.count for part in exact.calibration) == 8 * 32
    blind = value_diagnosis(WORLD, lambda source, goal: 0 * source[..., 0], seeded(), layouts=8)
    assert blind.regret.share.mean == pytest.approx(1)
    straight = value_diagnosis(WORLD, PositionDistance(WORLD), seeded(), layouts=20)
    assert 0 < straight.regret.share.mean < 0.5
    assert all(part.predicted < part.true + 1e-3 for part in straight.calibration)


def test_a_constant_distance_ranks_nothing():
    same, _ = rank_correlations(WORLD, lambda source, goal: source[..., 0] * 0, seeded(), layouts=3)
    assert same.mean == 0


def test_descent_of_the_geodesic_passes_every_door_and_the_straight_line_gets_stuck():
    instances = load_instances("WallBig-tuning").subset(30)
    guided = greedy_descent(WORLD, instances, GeodesicDistance(WORLD))
    assert guided.way_found.rate == 1
    assert guided.reached.rate > 0.9
    blind = greedy_descent(WORLD, instances, PositionDistance(WORLD))
    assert blind.way_found.rate < 0.6
    moves = guided.paths[:, 1:] - guided.paths[:, :-1]
    assert float(moves.norm(dim=-1).max()) <= WALL_BIG.step_max + 1e-4


def test_the_map_is_the_distance_where_a_dot_fits():
    field = distance_map(WORLD, GeodesicDistance(WORLD), torch.tensor([50.0, 40.0, 32.0, 20.0]), stride=2)
    assert field.shape == (32, 32)
    assert math.isnan(field[0, 0])
    assert math.isnan(field[40 // 2, 32 // 2])  # in the wall
    assert float(field[40 // 2, 48 // 2]) == pytest.approx(2.0)  # row 40, column 48: two pixels left of it
    assert float(field[20 // 2, 32 // 2]) > math.hypot(18, 20) - 1e-3  # in the door


def test_few_goals_are_shared_by_the_pairs_of_a_layout():
    asked = []

    class Counting:
        """The geodesic, and which goals it was asked for."""

        def __call__(self, source, goal):
            asked.append(len(goal.unique(dim=0)))
            return GeodesicDistance(WORLD)(source, goal)

    seed = torch.Generator().manual_seed(0)
    found = rank_correlations(WORLD, Counting(), seed, layouts=2, pairs=16, goals=2)
    assert max(asked) <= 2
    assert [one.mean for one in found] == pytest.approx([1.0, 1.0])
