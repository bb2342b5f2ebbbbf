from dataclasses import replace

import pytest
import torch
from torch import nn

from jepaplan.control.receding_horizon import RecedingHorizon
from jepaplan.costs.compose import WeightedSum
from jepaplan.costs.terms import GoalDistance
from jepaplan.data.normalise import ActionNormaliser
from jepaplan.envs.wall import WALL_BIG, WallWorld
from jepaplan.evaluation.blame import Blame, LearnedParts, blame_failures, summary, verdict
from jepaplan.evaluation.episodes import EpisodeOptions, run_episodes
from jepaplan.evaluation.tasks import load_instances
from jepaplan.planners.mppi import MPPI
from jepaplan.planners.proposals import NormBound

WORLD = WallWorld(WALL_BIG)
UNITS = ActionNormaliser(torch.zeros(2), torch.full((2,), 1.5))
OPTIONS = EpisodeOptions(episode_steps=25)


class Learned:
    """Sees the dot exactly and imagines free flight, as if there were no wall; `speed` may be wrong."""

    action_dim, stride, action_units = 2, 1, UNITS

    def __init__(self, speed=1.0):
        self.speed = speed

    def encode(self, observation, proprioception=None):
        dot, pixel = observation[:, 0].float(), torch.arange(64.0)
        mass = dot.sum((1, 2))
        return torch.stack([dot.sum(1) @ pixel, dot.sum(2) @ pixel], -1) / mass[:, None]

    def step(self, latent, action):
        return latent + self.speed * UNITS.inverse(action)

    def rollout(self, latent, actions):
        moves = (self.speed * UNITS.inverse(actions)).cumsum(2)
        return torch.cat(
            [latent[:, None, None].expand(-1, actions.shape[1], 1, -1), latent[:, None, None] + moves], 2
        )


def straight(source, goal):
    return (source - goal).norm(dim=-1)


def backwards(source, goal):
    return 100 - straight(source, goal)


def make(samples):
    def maker(world_model, distance):
        return RecedingHorizon(
            world_model=world_model,
            planner=MPPI(samples=samples, horizon=8, bounds=NormBound(max_norm=2.45)),
            cost=WeightedSum({"goal": (1.0, GoalDistance(distance=distance))}, chunk_rows=65536),
        )

    return maker


def verdicts(learned, distance, samples=48):
    """Goals lie eight pixels from the starts in the same room, where the straight line is the geodesic."""
    instances = load_instances("WallBig-tuning").subset(3)
    inwards = torch.tensor([0.0, 8.0, 0.0, 0.0]) * (31 - instances.starts).sign()
    instances = replace(instances, goals=instances.starts + inwards)
    parts = LearnedParts(
        world_model=learned, distance=distance, probe=nn.Identity(), make_controller=make(samples)
    )
    generator = torch.Generator().manual_seed(0)
    controller = parts.make_controller(learned, distance)
    outcomes = run_episodes(WORLD, instances, controller, generator, OPTIONS)
    assert not outcomes.success.any()
    return blame_failures(WORLD, outcomes, parts, generator, OPTIONS, limit=2)


def test_a_value_that_points_away_is_blamed():
    blames = verdicts(Learned(), backwards)
    assert len(blames) == 2
    assert {blame.verdict for blame in blames} == {"value"}
    assert blames[1].words().startswith("Instance 1: the value:")


def test_a_model_that_imagines_moving_backwards_is_blamed():
    assert {blame.verdict for blame in verdicts(Learned(-1.0), straight)} == {"model"}


def test_both_are_blamed_where_neither_swap_helps():
    assert {blame.verdict for blame in verdicts(Learned(0.0), backwards)} == {"model and value"}


def test_a_search_without_samples_is_blamed():
    # the one sample is the nominal plan itself: nothing is ever searched
    assert {blame.verdict for blame in verdicts(Learned(), straight, samples=1)} == {"search"}


@pytest.mark.parametrize(
    "swaps, expected",
    [
        ((False, True, True), "search"),
        ((True, True, False), "model"),
        ((True, False, True), "value"),
        ((True, True, True), "either"),
        ((True, False, False), "model and value"),
    ],
)
def test_verdicts(swaps, expected):
    assert verdict(*swaps) == expected


def test_summary_counts():
    def one(name):
        return Blame(instance=0, verdict=name, all_true=True, true_dynamics=False, true_distance=True)

    assert summary([one("value"), one("model"), one("value")]) == (
        "To blame, in 3 failed episodes examined: value in 2, model in 1."
    )
    assert "nobody" in summary([])
