"""Goals by themselves, and pursued in a loop by a greedy controller in a world that is known."""

import itertools

import pytest
import torch

from jepaplan.control.goals import (
    Clip,
    GivenGoal,
    Goal,
    PictureGoal,
    Standing,
    Subgoals,
    ValueAlone,
    as_goal,
    ball_goal,
    box_goal,
)
from jepaplan.costs.compose import WeightedSum
from jepaplan.costs.probes import BallDistance, BoxDistance, StateDistance
from jepaplan.costs.terms import GoalDistance
from jepaplan.costs.value import RemainingCost, WithoutGoal
from jepaplan.interfaces import Distance
from jepaplan.types import InputError, Observation

TURN = torch.tensor([[0.0, 2.0, 0.0], [-2.0, 0.0, 0.0]])


class Units:
    def normalise(self, actions: torch.Tensor) -> torch.Tensor:
        return actions

    def inverse(self, actions: torch.Tensor) -> torch.Tensor:
        return actions


class Linear:
    """A point on a plane; its latent is turned, doubled and has a third component that says nothing."""

    action_dim = 2
    stride = 1
    action_units = Units()

    def encode(self, observation: torch.Tensor, proprioception: torch.Tensor | None = None) -> torch.Tensor:
        return observation.float() @ TURN

    def step(self, latent: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return latent + action @ TURN

    def rollout(self, latent: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        path = latent[:, None, None] + (actions @ TURN).cumsum(dim=2)
        return torch.cat([latent[:, None, None].expand(-1, actions.shape[1], 1, -1), path], dim=2)


def probe(latent: torch.Tensor) -> torch.Tensor:
    """The point, read off its latent."""
    return latent @ TURN.T / 4


def euclidean(source: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(source - goal, dim=-1)


ANGLES = torch.arange(16) * torch.pi / 8
RING = torch.cat([torch.zeros(1, 2), torch.stack([ANGLES.cos(), ANGLES.sin()], dim=-1)])
MOVES = torch.cat([RING, 0.25 * RING[1:]])[:, None]  # S H A: one step in sixteen directions, of two lengths


def pursue(goal: Goal, distance: Distance, starts: torch.Tensor, steps: int) -> list[torch.Tensor]:
    """The points that problems pass when each step takes the cheapest of the moves, as a controller would."""
    world, points = Linear(), [starts]
    cost = WeightedSum({"goal": (1.0, GoalDistance(distance=distance))})
    pursued, standing = goal.encode(world), Standing.begin(len(goal))
    for step in range(steps):
        latent = world.encode(points[-1])
        rows, standing = pursued.current(latent, standing, step)
        costs = cost.bind(world, latent, rows)(MOVES.expand(len(starts), -1, -1, -1))
        points.append(points[-1] + MOVES[costs.argmin(dim=1), 0])
    return points


STARTS = torch.tensor([[0.0, 0.0], [3.0, -2.0]])
TARGETS = torch.tensor([[3.0, 1.0], [-2.0, 0.0]])


@pytest.mark.parametrize("body", [False, True])
def test_pictures_are_what_they_were(body: bool):
    """A bare tensor, an observation or a picture goal: the rows are the encoded pictures."""
    given = Observation(TARGETS, TARGETS if body else None)
    for goal in (as_goal(given), as_goal(TARGETS), PictureGoal(given)):
        assert len(goal) == 2
        rows, _ = goal.encode(Linear()).current(torch.zeros(2, 3), Standing.begin(2), 0)
        torch.testing.assert_close(rows, Linear().encode(TARGETS))
        end = pursue(goal, euclidean, STARTS, 8)[-1]
        assert (end - TARGETS).norm(dim=-1).max() < 0.25


def test_proprioception_of_a_goal_reaches_the_encoder():
    class WithBody(Linear):
        def encode(
            self, observation: torch.Tensor, proprioception: torch.Tensor | None = None
        ) -> torch.Tensor:
            return torch.cat([super().encode(observation), proprioception], dim=-1)

    goal = PictureGoal(Observation(TARGETS, torch.tensor([[5.0], [6.0]])))
    assert goal.encode(WithBody()).rows[:, -1].tolist() == [5, 6]


def test_a_state_is_reached_through_a_probe():
    end = pursue(GivenGoal(TARGETS), StateDistance(probe), STARTS, 8)[-1]
    assert (end - TARGETS).norm(dim=-1).max() < 0.25


def test_regions_are_entered_and_nothing_more_is_asked_inside():
    """Each problem has its own region; whoever begins inside stays where it is."""
    low, high = torch.tensor([[2.0, -9.0], [2.0, -3.0]]), torch.tensor([[2.5, 9.0], [4.0, -1.0]])
    path = pursue(box_goal(low, high), BoxDistance(probe), STARTS, 4)
    assert ((path[-1] >= low - 1e-4) & (path[-1] <= high + 1e-4)).all()
    assert path[-1][1].equal(STARTS[1])
    path = pursue(ball_goal(TARGETS, torch.tensor([0.5, 6.0])), BallDistance(probe), STARTS, 5)
    assert ((path[-1] - TARGETS).norm(dim=-1) <= torch.tensor([0.5, 6.0]) + 1e-4).all()
    assert path[-1][1].equal(STARTS[1])


def test_a_value_alone_needs_no_goal():
    """Uphill, to the top of a value that nobody asked for."""
    top = Linear().encode(torch.tensor([[1.0, -1.0]]))
    distance = RemainingCost(WithoutGoal(lambda latent: -euclidean(latent, top)))
    goal = ValueAlone(2)
    assert len(goal) == 2
    end = pursue(goal, distance, STARTS, 6)[-1]
    assert (end - torch.tensor([1.0, -1.0])).norm(dim=-1).max() < 0.25


def test_subgoals_follow_each_other_when_their_budgets_are_spent():
    first, second, third = (torch.tensor([[x, 0.0], [0.0, x]]) for x in (1.0, 2.0, 3.0))
    goals = [PictureGoal(seen) for seen in (first, second, third)]
    pursued = Subgoals(goals=goals, budgets=(2, 3)).encode(Linear())
    standing, seen = Standing.begin(2), []
    for step in range(8):
        rows, standing = pursued.current(torch.zeros(2, 3), standing, step)
        seen.append(rows)
    expected = [first, first, second, second, second, third, third, third]
    torch.testing.assert_close(torch.stack(seen), torch.stack([Linear().encode(x) for x in expected]))
    assert standing.since.tolist() == [5, 5]


def test_a_reached_subgoal_is_left_before_its_budget_is_spent():
    """By each problem in its own time: the corner is visited although the straight line misses it."""
    corner, end = torch.tensor([[0.0, 3.0], [3.0, 0.0]]), torch.tensor([[3.0, 3.0], [-3.0, 0.0]])
    subgoals = Subgoals(
        goals=(GivenGoal(corner), GivenGoal(end)), budgets=(50,), distance=StateDistance(probe), within=0.3
    )
    path = torch.stack(pursue(subgoals, StateDistance(probe), STARTS, 14))
    assert (path - corner).norm(dim=-1).amin(dim=0).max() <= 0.3
    assert (path[-1] - end).norm(dim=-1).max() < 0.25


def test_problems_stand_apart():
    """Asking for some of the problems changes nothing for the others."""
    goals = (GivenGoal(torch.zeros(3, 2)), GivenGoal(torch.ones(3, 2)))
    pursued = Subgoals(goals=goals, budgets=(2,)).encode(Linear())
    everyone = Standing.begin(3)
    rows, some = pursued.current(torch.zeros(2, 3), everyone.of(torch.tensor([0, 2])), step=2)
    assert rows.tolist() == [[1, 1], [1, 1]]
    everyone = everyone.updated(some)
    assert (everyone.subgoal.tolist(), everyone.since.tolist()) == ([1, 0, 1], [2, 0, 2])
    rows, _ = pursued.current(torch.zeros(3, 3), everyone, step=1)
    assert rows.tolist() == [[1, 1], [0, 0], [1, 1]]


CORNERS = torch.tensor([[0.0, 0.0], [4.0, 0.0], [4.0, 4.0], [0.0, 4.0], [0.0, 0.0], [-4.0, 0.0]])


def frames_along(corners: torch.Tensor, between: int) -> list[torch.Tensor]:
    """A clip of one problem that walks from corner to corner."""
    shares = torch.arange(between)[:, None] / between
    walked = [a + shares * (b - a) for a, b in itertools.pairwise(corners)]
    return [frame[None] for frame in torch.cat([*walked, corners[-1:]])]


def test_a_clip_is_followed_round_a_square_and_past_its_beginning():
    """The start is passed twice, and the end lies beyond it: only the order leads round the square."""
    clip = Clip(observations=frames_along(CORNERS, 8), distance=euclidean, ahead=2, window=6)
    assert len(clip) == 1
    path = torch.stack(pursue(clip, euclidean, torch.zeros(1, 2), 45))[:, 0]
    visits = [int((path - corner).norm(dim=-1).argmin()) for corner in CORNERS[1:4]]
    assert visits == sorted(visits)
    assert (path[visits] - CORNERS[1:4]).norm(dim=-1).max() < 1.0
    assert (path[-1] - CORNERS[-1]).norm() < 0.25


def test_the_frame_ahead_of_the_nearest_is_pursued():
    frames = [torch.tensor([[float(x), 0.0]]) for x in (0, 1, 2, 3, 2, 1, 0, -1)]
    pursued = Clip(observations=frames, distance=euclidean, ahead=1, window=3).encode(Linear())
    standing, targets, nearest = Standing.begin(1), [], []
    for step, x in enumerate((0.1, 0.9, 2.2, 2.1, 2.9, 1.8, 0.4, -0.7, -0.7)):
        rows, standing = pursued.current(Linear().encode(torch.tensor([[x, 0.0]])), standing, step)
        targets.append(round(float(probe(rows)[0, 0])))
        nearest.append(int(standing.subgoal))
    # at 2.1 on the way there the frame on the way back looks the same, but it is not part of a pause
    assert nearest == [0, 1, 2, 2, 3, 4, 6, 7, 7]
    assert targets == [1, 2, 3, 3, 2, 1, -1, -1, -1]


def test_a_clip_that_pauses_does_not_stop_whoever_follows_it():
    """Frames that look alike count as passed, and frames that cannot be reached do after a while."""
    still = [torch.zeros(1, 2)] * 4 + [torch.tensor([[1.0, 0.0]])]
    clip = Clip(observations=still, distance=euclidean, window=4)
    assert probe(clip.encode(Linear()).current(torch.zeros(1, 3), Standing.begin(1), 0)[0])[0, 0] == 1
    wall = [torch.tensor([[float(x), 9.0]]) for x in (0, 1, 2)]
    pursued = Clip(observations=wall, distance=euclidean, window=2, patience=3).encode(Linear())
    standing, seen = Standing.begin(1), []
    for step in range(8):
        _, standing = pursued.current(torch.zeros(1, 3), standing, step)
        seen.append(int(standing.subgoal))
    assert seen == [0, 0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: box_goal(torch.ones(1, 2), torch.zeros(1, 2)), "low <= high"),
        (lambda: ball_goal(torch.ones(1, 2), torch.tensor([-1.0])), "radius"),
        (lambda: Subgoals(goals=(ValueAlone(2), ValueAlone(3)), budgets=(1,)), r"\[2, 3\] problems"),
        (lambda: Subgoals(goals=(ValueAlone(2), ValueAlone(2)), budgets=(1, 1)), "1 numbers for 2 subgoals"),
        (lambda: Subgoals(goals=(ValueAlone(2),), budgets=(), within=1.0), "needs distance"),
        (lambda: Subgoals(goals=(ValueAlone(2),), budgets=()).encode(Linear()), "subgoal 0 is a ValueAlone"),
        (lambda: Clip(observations=[], distance=euclidean), "one frame or more"),
        (lambda: Clip(observations=[TARGETS], distance=euclidean, window=1), "window >= 2"),
    ],
)
def test_goals_that_cannot_be_pursued_are_explained(wrong: object, message: str):
    with pytest.raises(InputError, match=message):
        wrong()
