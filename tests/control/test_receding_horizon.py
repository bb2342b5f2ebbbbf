"""Closed loops in a world that is known: goals are reached, schedules kept, and problems do not mix."""

import pytest
import torch

from jepaplan.control.random_actions import RandomController
from jepaplan.control.receding_horizon import RecedingHorizon
from jepaplan.control.record import Decision
from jepaplan.costs.compose import WeightedSum
from jepaplan.costs.terms import ActionEffort, GoalDistance
from jepaplan.planners.mppi import MPPI
from jepaplan.planners.proposals import NormBound
from jepaplan.types import InputError, Observation, Plan, Search


class Halves:
    """Environment actions are twice the normalised ones, plus (0, 1)."""

    def normalise(self, actions: torch.Tensor) -> torch.Tensor:
        return (actions - torch.tensor([0.0, 1.0])) / 2

    def inverse(self, actions: torch.Tensor) -> torch.Tensor:
        return 2 * actions + torch.tensor([0.0, 1.0])


class Walk:
    """A point that moves by the environment's action; its state is its latent."""

    action_dim = 2
    stride = 1
    action_units = Halves()

    def __init__(self) -> None:
        self.encoded: list[int] = []

    def encode(self, observation: torch.Tensor, proprioception: torch.Tensor | None = None) -> torch.Tensor:
        self.encoded.append(len(observation))
        return observation.float()

    def step(self, latent: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return latent + self.action_units.inverse(action)

    def rollout(self, latent: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        path = latent[:, None, None] + self.action_units.inverse(actions).cumsum(dim=2)
        start = latent[:, None, None].expand(-1, actions.shape[1], 1, -1)
        return torch.cat([start, path], dim=2)


class Script:
    """A planner whose plan at call n is n, n + 1, ...; it remembers where it was told to begin."""

    def __init__(self, horizon: int = 4) -> None:
        self.horizon = horizon
        self.starts: list[Plan] = []

    def initial(self, problems: int, action_dim: int, device: torch.device | str = "cpu") -> Plan:
        return Plan(
            mean=torch.zeros(problems, self.horizon, action_dim),
            std=torch.ones(problems, self.horizon, action_dim),
        )

    def plan(self, cost: object, start: Plan, generator: object) -> Search:
        self.starts.append(start)
        steps = torch.arange(start.mean.shape[1]) + 10.0 * len(self.starts)
        plan = Plan(mean=steps[None, :, None].expand_as(start.mean).clone(), std=start.std)
        return Search(
            plan=plan, candidates=plan.mean[:, None], costs=torch.zeros(len(plan.mean), 1), evaluations=1
        )


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def euclidean(source: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(source - goal, dim=-1)


COST = WeightedSum({"goal": (1.0, GoalDistance(distance=euclidean)), "effort": (0.01, ActionEffort())})
PLANNER = MPPI(samples=64, horizon=5, temperature=0.05, bounds=NormBound(max_norm=1.0), correlation=0.5)
GOALS = torch.tensor([[6.0, 0.0], [-4.0, 8.0], [0.0, -3.0]])


def controller(**options: object) -> RecedingHorizon:
    return RecedingHorizon(**{"world_model": Walk(), "planner": PLANNER, "cost": COST, **options})


def drive(control: RecedingHorizon, goals: torch.Tensor, steps: int, seed: int = 0) -> torch.Tensor:
    control.reset(goals, seeded(seed))
    states = torch.zeros_like(goals)
    for _ in range(steps):
        states = states + control.act(states)
    return states


@pytest.mark.parametrize("options", [{}, {"replan_every": 3}, {"warm_start": "keep"}, {"episode_steps": 14}])
def test_goals_are_reached(options: dict[str, object]):
    """To within the length of one action, from up to ten actions away."""
    final = drive(controller(**options), GOALS, 14)
    assert (final - GOALS).norm(dim=-1).max() < 2.0


def test_actions_leave_in_environment_units():
    """A normalised action at the bound, in environment units: twice as long, and shifted."""
    control = controller()
    control.reset(torch.tensor([[100.0, 0.0]]), seeded(0))
    action = control.act(torch.zeros(1, 2))
    first = control.last.plan.mean[:, 0]
    torch.testing.assert_close(action, Halves().inverse(first))
    assert first.norm() <= 1 + 1e-6


def test_the_seed_decides_everything():
    assert torch.equal(drive(controller(), GOALS, 4), drive(controller(), GOALS, 4))
    assert not torch.equal(drive(controller(), GOALS, 4), drive(controller(), GOALS, 4, seed=1))


def test_what_a_problem_does_depends_on_nobody_else():
    """Whether the others finish early, take part to the end or were never there."""
    alone = drive(controller(), GOALS[:1], 6)
    control = controller()
    control.reset(GOALS, seeded(0))
    states = torch.zeros_like(GOALS)
    for step in range(6):
        active = torch.tensor([True, step < 2, step < 4])
        action = control.act(states, active)
        assert (action[~active] == 0).all()
        assert control.last.problems.tolist() == active.nonzero()[:, 0].tolist()
        states = states + action
    torch.testing.assert_close(states[:1], alone)
    torch.testing.assert_close(drive(controller(), GOALS, 6)[:1], alone)


def test_finished_problems_are_neither_encoded_nor_planned():
    world = Walk()
    control = controller(world_model=world)
    control.reset(GOALS, seeded(0))
    control.act(torch.zeros(3, 2), torch.tensor([False, True, False]))
    assert world.encoded == [3, 1]
    assert len(control.last.costs) == 1
    assert (control.act(torch.zeros(3, 2), torch.zeros(3, dtype=torch.bool)) == 0).all()
    assert world.encoded == [3, 1]


def test_between_replans_the_plan_is_executed_as_it_is():
    control = controller(planner=Script(), replan_every=3)
    control.reset(GOALS[:1], seeded(0))
    actions = [control.act(torch.zeros(1, 2))[0, 0].item() / 2 for _ in range(5)]
    assert actions == [10, 11, 12, 20, 21]


def test_a_shifted_start_is_the_unexecuted_tail():
    planner = Script()
    control = controller(planner=planner, replan_every=3)
    control.reset(GOALS[:1], seeded(0))
    for _ in range(4):
        control.act(torch.zeros(1, 2))
    assert planner.starts[0].mean[0, :, 0].tolist() == [0, 0, 0, 0]
    assert planner.starts[1].mean[0, :, 0].tolist() == [13, 0, 0, 0]
    assert (planner.starts[1].std == 1).all()


def test_a_kept_start_moves_only_while_the_horizon_shrinks():
    """PLDM: the nominal stays where it is until the end of the episode is within reach of the horizon."""
    planner = Script()
    control = controller(planner=planner, warm_start="keep", episode_steps=6)
    control.reset(GOALS[:1], seeded(0))
    for _ in range(6):
        control.act(torch.zeros(1, 2))
    assert [start.mean[0, :, 0].tolist() for start in planner.starts] == [
        [0, 0, 0, 0],
        [10, 11, 12, 13],
        [20, 21, 22, 23],
        [31, 32, 33],
        [41, 42],
        [51],
    ]


def test_no_plan_looks_beyond_the_end_of_the_episode():
    planner = Script()
    control = controller(planner=planner, replan_every=2, episode_steps=5)
    control.reset(GOALS[:1], seeded(0))
    for _ in range(7):
        control.act(torch.zeros(1, 2))
    assert [start.mean.shape[1] for start in planner.starts] == [4, 3, 1, 1, 1]


def test_whoever_pauses_continues_with_their_own_plan():
    planner = Script()
    control = controller(planner=planner, replan_every=2)
    control.reset(GOALS[:2], seeded(0))
    both, first = torch.tensor([True, True]), torch.tensor([True, False])
    seen = [control.act(torch.zeros(2, 2), active)[:, 0].tolist() for active in (both, first, first, both)]
    assert seen == [[20, 20], [22, 0], [40, 0], [42, 22]]


def test_without_an_explanation_a_plan_is_the_same_and_imagined_once():
    decisions: list[Decision] = []
    for explains in (True, False):
        control = controller(kept_candidates=5, explains=explains)
        control.reset(GOALS, seeded(0))
        control.act(torch.zeros(3, 2))
        assert control.last is not None
        decisions.append(control.last)
    explained, bare = decisions
    assert torch.equal(explained.plan.mean, bare.plan.mean)
    assert (explained.evaluations, bare.evaluations) == (64 * 5 + 5, 64 * 5)
    assert bare.predicted == {}
    assert bare.predicted_cost.isnan().all()


def test_the_record_accounts_for_what_was_considered():
    control = controller(kept_candidates=5)
    control.reset(GOALS, seeded(0))
    control.act(torch.zeros(3, 2))
    decision = control.last
    bound = COST.bind(Walk(), torch.zeros(3, 2), GOALS)
    assert decision.evaluations == 64 * 5 + 5
    assert decision.candidates.shape == (3, 5, 5, 2)
    torch.testing.assert_close(bound(decision.candidates), decision.costs)
    assert (decision.costs.diff(dim=-1) >= 0).all()
    torch.testing.assert_close(decision.predicted_cost, bound(decision.plan.mean[:, None])[:, 0])
    assert set(decision.predicted) == {"goal", "effort"}
    limit = decision.costs[:, :1] + decision.tie_tolerance[:, None]
    assert torch.equal(decision.tied, decision.costs <= limit)
    assert decision.seconds > 0


def test_candidates_that_cost_the_same_are_named_ties():
    nothing = WeightedSum({"effort": (0.0, ActionEffort())})
    control = controller(cost=nothing)
    control.reset(GOALS, seeded(0))
    control.act(torch.zeros(3, 2))
    assert control.last.tied.all()


def test_nan_in_the_latents_is_reported_with_its_problem():
    control = controller()
    control.reset(GOALS, seeded(0))
    with pytest.raises(InputError, match="problem 0 starts from holds NaN"):
        control.act(torch.full((3, 2), torch.nan))


def test_misuse_is_explained():
    with pytest.raises(InputError, match="reset"):
        controller().act(torch.zeros(1, 2))
    control = controller()
    control.reset(GOALS, seeded(0))
    with pytest.raises(InputError, match="3 observations"):
        control.act(torch.zeros(2, 2))
    with pytest.raises(InputError, match="replan_every=6"):
        controller(replan_every=6)


def test_random_actions_do_not_depend_on_who_is_still_active():
    def sampler(count: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(count, 2, generator=generator)

    free, masked = RandomController(sampler=sampler), RandomController(sampler=sampler)
    free.reset(GOALS, seeded(0))
    masked.reset(GOALS, seeded(0))
    active = torch.tensor([True, False, True])
    for _ in range(3):
        everyone, some = free.act(GOALS), masked.act(GOALS, active)
        assert torch.equal(everyone[active], some[active])
        assert (some[1] == 0).all()


class Body(Walk):
    """The point is seen where it is, and feels how far it is from where it seems."""

    def encode(self, observation: torch.Tensor, proprioception: torch.Tensor | None = None) -> torch.Tensor:
        assert proprioception is not None
        return super().encode(observation) + proprioception


def test_what_is_felt_reaches_the_encoder_for_those_who_are_planned():
    """A goal and an observation, shifted by what is felt, are planned as if they were seen unshifted."""
    felt = torch.tensor([[1.0, -2.0], [0.5, 0.0], [3.0, 1.0]])
    active = torch.tensor([True, False, True])
    actions = []
    for world, shift in ((Walk(), None), (Body(), felt)):
        controller = RecedingHorizon(world_model=world, planner=PLANNER, cost=COST)
        seen = [GOALS, torch.zeros(3, 2)]
        if shift is not None:
            seen = [Observation(place - shift, shift) for place in seen]
        controller.reset(seen[0], seeded(0))
        actions.append(controller.act(seen[1], active))
    torch.testing.assert_close(actions[0], actions[1])
    assert not actions[1][1].any()
