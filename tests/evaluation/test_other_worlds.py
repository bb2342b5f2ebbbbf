"""Everything that evaluates works for a world that has the methods of `World` and nothing more."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from torch import nn

from jepaplan.control.receding_horizon import RecedingHorizon
from jepaplan.costs.compose import WeightedSum
from jepaplan.costs.terms import GoalDistance
from jepaplan.data import walks
from jepaplan.data.collect import collect_world
from jepaplan.data.episodes import open_episodes
from jepaplan.data.normalise import ActionNormaliser
from jepaplan.envs import worlds
from jepaplan.envs.wall import WALL_BIG, WallWorld
from jepaplan.evaluation.blame import LearnedParts, blame_failures
from jepaplan.evaluation.episodes import EpisodeOptions, run_episodes, true_states
from jepaplan.evaluation.films import film, true_course
from jepaplan.evaluation.pictures import contact_sheet, map_picture
from jepaplan.evaluation.probes import (
    distance_map,
    fresh_states,
    fresh_walks,
    greedy_descent,
    rank_correlations,
    rollout_errors,
)
from jepaplan.evaluation.references import GeodesicDistance, PositionDistance, TrueDynamics, references
from jepaplan.evaluation.surveys import Surveyed, placed
from jepaplan.evaluation.tasks import instances_text, load_instances, make_instances
from jepaplan.interfaces import World
from jepaplan.planners.mppi import MPPI
from jepaplan.types import InputError
from small_worlds import Drift, drift_walks

WORLD = Drift()
UNITS = ActionNormaliser.identity(2)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setattr(worlds, "WORLDS", {**worlds.WORLDS, "Drift": "small_worlds:drift"})
    monkeypatch.setattr("jepaplan.evaluation.tasks.WORLDS", worlds.WORLDS)
    for name in ("WALKERS", "FREE_WALKERS"):
        monkeypatch.setattr(walks, name, {**getattr(walks, name), "Drift": "small_worlds:drift_walks"})


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def controller(world_model, distance):
    return RecedingHorizon(
        world_model=world_model,
        planner=MPPI(samples=64, horizon=6),
        cost=WeightedSum({"goal": (1.0, GoalDistance(distance=distance))}),
    )


class Feeling(TrueDynamics):
    """Sees and feels perfectly: place and wall of the picture, velocity of the body."""

    def encode(self, observation, proprioception=None):
        flat = observation[:, 0].flatten(1)
        dot, wall = flat == 255, observation[:, 0, -1].argmax(-1)
        number = dot.float().argmax(-1)
        place = torch.stack([number % 16, number // 16], dim=-1).float()
        return torch.cat([place, proprioception, wall[:, None].float()], dim=-1)


def test_it_is_a_world_and_nothing_more():
    assert isinstance(WORLD, World)
    assert not isinstance(WORLD, Surveyed)
    assert isinstance(WallWorld(WALL_BIG), Surveyed)


def test_references_bracket_and_a_body_that_feels_plans_nearly_as_well():
    instances = make_instances(WORLD, "test", 0, 20)
    options = EpisodeOptions(episode_steps=20, observe=true_states)
    solved = {
        reference.name: run_episodes(WORLD, instances, reference.controller, seeded(), options).rate.rate
        for reference in references(WORLD, UNITS, controller)
    }
    assert len(solved) == 4
    assert solved["random actions"] < 0.7
    assert solved["true dynamics, geodesic"] == 1
    seeing = controller(Feeling(WORLD, UNITS), GeodesicDistance(WORLD))
    felt = run_episodes(WORLD, instances, seeing, seeded(), EpisodeOptions(episode_steps=20))
    assert felt.rate.rate > 0.9


def test_a_recording_holds_what_is_felt(tmp_path):
    collect_world(tmp_path / "a.h5", WORLD, drift_walks, trajectories=5, states=7, seed=1)
    episodes = open_episodes(tmp_path / "a.h5")
    assert episodes.manifest["world"] == "Drift"
    assert torch.equal(episodes.proprioception, episodes.states[:, 2:4])
    assert torch.equal(WORLD.observe(episodes.states).frames, episodes.observations)
    ElementTree.fromstring(contact_sheet(WORLD, episodes.states.view(5, 7, 5)))


def test_instances_of_any_world_survive_a_round_trip(tmp_path):
    instances = make_instances(WORLD, "test", 0, 6)
    path = tmp_path / "mine.json"
    path.write_text(instances_text(instances))
    document = json.loads(path.read_text())
    assert document["format"] == 2
    assert set(document["instances"][0]) == {"start", "goal"}
    read = load_instances(path)
    assert torch.equal(read.starts, instances.starts)
    assert torch.equal(read.goals, instances.goals)

    def refused(row):
        path.write_text(json.dumps({**document, "instances": [row]}))
        with pytest.raises(InputError) as said:
            load_instances(path)
        return str(said.value)

    start, goal = document["instances"][0].values()
    assert "the 5 numbers of a state of Drift" in refused({"start": start[:2], "goal": goal})
    assert "instance 0: the goal (-3, 2) is outside" in refused({"start": start, "goal": [-3, 2, 0, 0, 7]})
    assert "wall from (6.5, 5) to (7.5, 15)" in refused({"start": start, "goal": [-3, 2, 0, 0, 7]})
    assert "must be a number" in refused({"start": start, "goal": [None, 2, 0, 0, 7]})


def test_pairs_are_told_apart_by_whether_the_straight_way_leads():
    straight, around = rank_correlations(WORLD, GeodesicDistance(WORLD), seeded(), layouts=5)
    assert (straight.pairs, around.pairs) == ("straight way", "way round")
    assert straight.mean == pytest.approx(1)
    assert around.mean == pytest.approx(1)
    _, around = rank_correlations(WORLD, PositionDistance(WORLD), seeded(), layouts=5)
    assert around.mean < 0.95


def test_descent_and_rollouts_go_by_the_worlds_own_step():
    instances = make_instances(WORLD, "test", 0, 12)
    guided = greedy_descent(WORLD, instances, GeodesicDistance(WORLD))
    blind = greedy_descent(WORLD, instances, PositionDistance(WORLD))
    assert guided.way_found.rate > max(0.8, blind.way_found.rate)
    model = Feeling(WORLD, UNITS)
    probe = nn.Linear(5, 2, bias=False)
    probe.weight.data = torch.eye(5)[:2]
    errors = rollout_errors(WORLD, model, probe, fresh_walks(WORLD, 30, 15, seeded()))
    assert errors[0].pixels < 1  # pictures of whole pixels
    assert WORLD.is_possible(fresh_states(WORLD, 50, seeded())).all()


def test_a_map_is_made_of_sampled_states():
    goal = torch.tensor([12.0, 12.0, 0, 0, 7.0])
    values = distance_map(WORLD, GeodesicDistance(WORLD), goal)
    assert values.shape == (16, 16)
    assert values[0].isnan().all()
    known = values.isfinite()
    assert known[2:13, 2:13].float().mean() > 0.95
    rows, columns = known.nonzero().unbind(-1)
    states = torch.stack([columns, rows, *[torch.zeros_like(rows)] * 2, torch.full_like(rows, 7)], -1).float()
    exact = GeodesicDistance(WORLD)(states, goal)
    assert float((values[known] - exact).abs().median()) < 0.5
    picture = map_picture(WORLD, values, goal, ("way", "pixels"))
    assert 'viewBox="-0.5 -0.5 16 16"' in picture.svg
    ElementTree.fromstring(picture.svg)


def test_places_without_an_exact_answer_are_the_nearest_sampled_ones():
    like = torch.tensor([[5.0, 5, 1, 1, 6], [5, 5, 0, 0, 9]]).repeat_interleave(20, dim=0)
    wanted = 3 + 9 * torch.rand(40, 2, generator=seeded())
    found = placed(WORLD, like, wanted)
    assert torch.equal(found[:, 4], like[:, 4])
    assert float((found[:, :2] - wanted).norm(dim=-1).max()) < 1


def test_failures_are_blamed_and_filmed():
    instances = make_instances(WORLD, "test", 0, 3)
    model = Feeling(WORLD, UNITS)
    parts = LearnedParts(
        world_model=model,
        distance=lambda source, goal: -(source[..., :2] - goal[..., :2]).norm(dim=-1),
        probe=nn.Linear(5, 2, bias=False),
        make_controller=controller,
    )
    parts.probe.weight.data = torch.eye(5)[:2]
    options = EpisodeOptions(episode_steps=20, keep=(0, 1, 2))
    outcomes = run_episodes(WORLD, instances, controller(model, parts.distance), seeded(), options)
    assert not outcomes.success.all()
    worst = int((~outcomes.success).nonzero()[0])
    blames = blame_failures(WORLD, outcomes, parts, seeded(), options, limit=1)
    assert blames[0].verdict == "value"
    shown = film(WORLD, outcomes, worst, true_course(WORLD, UNITS), ("a", "b"))
    ElementTree.fromstring(shown.still)
