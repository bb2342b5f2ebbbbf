from dataclasses import replace

import pytest
import torch

from jepaplan.control.receding_horizon import RecedingHorizon
from jepaplan.costs.compose import WeightedSum
from jepaplan.costs.terms import GoalDistance
from jepaplan.data.normalise import ActionNormaliser
from jepaplan.envs.wall import WALL_BIG, WallWorld
from jepaplan.evaluation.episodes import NEVER, EpisodeOptions, merged, run_episodes, true_states
from jepaplan.evaluation.references import (
    GeodesicDistance,
    TrueDynamics,
    references,
)
from jepaplan.evaluation.tasks import load_instances
from jepaplan.planners.mppi import MPPI
from jepaplan.planners.proposals import NormBound
from jepaplan.types import InputError

WORLD = WallWorld(WALL_BIG)
UNITS = ActionNormaliser(torch.zeros(2), torch.full((2,), 1.5))
OPTIONS = EpisodeOptions(episode_steps=64, observe=true_states)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def controller(world_model, distance, samples=128):
    return RecedingHorizon(
        world_model=world_model,
        planner=MPPI(samples=samples, horizon=12, bounds=NormBound(max_norm=2.45)),
        cost=WeightedSum({"goal": (1.0, GoalDistance(distance=distance))}, chunk_rows=65536),
    )


@pytest.fixture(scope="module")
def solved():
    """A known answer: perfect imagination and a perfect value leave nothing to fail on."""
    instances = load_instances("WallBig-final").subset(20)
    planner = controller(TrueDynamics(WORLD, UNITS), GeodesicDistance(WORLD))
    return run_episodes(WORLD, instances, planner, seeded(), replace(OPTIONS, keep=(3, 7)))


def test_perfect_knowledge_solves_the_two_rooms(solved):
    assert solved.rate.rate >= 0.95


def test_outcomes_agree_with_the_paths(solved):
    goals, steps = solved.instances.goals, solved.steps_to_success
    for number in range(20):
        there = torch.cat([solved.paths[number], goals[number, 2:].expand(65, 2)], dim=-1)
        reached = WORLD.reached(there, goals[number].expand(65, 4))
        assert bool(reached.any()) == bool(solved.success[number])
        if solved.success[number]:
            assert int(reached.float().argmax()) == int(steps[number])
            # a solved problem leaves the batch: it stays where it was solved
            assert (solved.paths[number, steps[number] :] == solved.paths[number, -1]).all()
    torch.testing.assert_close(solved.paths[:, 0], solved.instances.starts[:, :2])
    torch.testing.assert_close(solved.goals, goals[:, :2])


def test_decisions_are_kept_for_the_chosen_instances_only(solved):
    assert set(solved.fans) == {3, 7}
    fans = solved.fans[7]
    assert [fan.step for fan in fans] == list(range(int(solved.steps_to_success[7])))
    assert (fans[0].costs.diff() >= 0).all()
    # the state of the record is where the dot really was
    torch.testing.assert_close(fans[5].state[:2], solved.paths[7, 5])
    assert solved.evaluations_per_step == pytest.approx(128 * 12 + 12)
    assert fans[0].predicted["goal"] > fans[-1].predicted["goal"]


def test_an_instance_does_the_same_alone_as_among_others(solved):
    alone = run_episodes(
        WORLD,
        solved.instances.subset(1),
        controller(TrueDynamics(WORLD, UNITS), GeodesicDistance(WORLD)),
        seeded(),
        OPTIONS,
    )
    torch.testing.assert_close(alone.paths[0], solved.paths[0])


def test_a_goal_under_the_start_counts_at_once_and_plans_nothing():
    instances = load_instances("WallBig-final").subset(3)
    instances = replace(instances, goals=instances.starts + torch.tensor([0.5, 0.5, 0, 0]))
    planner = controller(TrueDynamics(WORLD, UNITS), GeodesicDistance(WORLD))
    outcomes = run_episodes(WORLD, instances, planner, seeded(), OPTIONS)
    assert outcomes.steps_to_success.tolist() == [0, 0, 0]
    assert outcomes.evaluations_per_step == 0
    assert planner.last is None


def test_progress_is_reported_and_pixels_are_the_default_observation():
    seen, shapes = [], []

    class Idle:
        def reset(self, goal, generator):
            shapes.append((goal.frames.shape, goal.frames.dtype))

        def act(self, observation, active=None):
            shapes.append((observation.frames.shape, observation.frames.dtype))
            return torch.zeros(len(observation.frames), 2)

    instances = load_instances("WallBig-final").subset(2)
    options = EpisodeOptions(episode_steps=3, on_progress=seen.append)
    outcomes = run_episodes(WORLD, instances, Idle(), seeded(), options)
    assert set(shapes) == {((2, 2, 64, 64), torch.uint8)}
    assert [progress.step for progress in seen] == [1, 2, 3]
    assert outcomes.steps_to_success.tolist() == [NEVER, NEVER]
    with pytest.raises(InputError, match="episode_steps must be at least 1"):
        EpisodeOptions(episode_steps=0)


def test_references_are_ordered_as_their_knowledge_is():
    instances = load_instances("WallBig-tuning").subset(20)
    rates = {
        reference.name: run_episodes(WORLD, instances, reference.controller, seeded(), OPTIONS).rate.rate
        for reference in references(WORLD, UNITS, controller)
    }
    assert rates["random actions"] <= 0.1
    assert rates["true dynamics, straight line"] < rates["true dynamics, geodesic"]
    assert rates["true dynamics, pixel distance"] < rates["true dynamics, geodesic"]


def test_shares_together_are_the_whole():
    instances = load_instances("WallBig-tuning").subset(5)
    options = replace(OPTIONS, episode_steps=12, keep=(0, 3))

    def run(share):
        planner = controller(TrueDynamics(WORLD, UNITS), GeodesicDistance(WORLD), samples=16)
        return run_episodes(WORLD, instances, planner, seeded(), replace(options, share=share))

    whole, parts = run((0, 1)), [run((number, 3)) for number in range(3)]
    together = merged(parts)
    assert torch.equal(whole.paths, together.paths)
    assert torch.equal(whole.steps_to_success, together.steps_to_success)
    assert whole.evaluations == together.evaluations
    assert whole.problem_steps == together.problem_steps
    assert set(together.fans) == {0, 3}
    assert torch.equal(whole.fans[3][2].costs, together.fans[3][2].costs)
    # whoever has another share stays where it is
    assert torch.equal(parts[0].paths[1], instances.starts[1, :2].expand(13, 2))
    with pytest.raises(InputError, match="share is"):
        EpisodeOptions(episode_steps=3, share=(3, 3))
