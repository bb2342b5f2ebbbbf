"""A prior leads every problem's search from where it is to its own goal, again at every replan."""

from dataclasses import replace

import pytest
import torch

from jepaplan.control.learned_prior import LearnedPrior
from jepaplan.control.receding_horizon import RecedingHorizon
from jepaplan.costs.compose import WeightedSum
from jepaplan.costs.terms import GoalDistance
from jepaplan.data.normalise import ActionNormaliser
from jepaplan.models.goal_inverse_dynamics import GoalInverseDynamics, GoalInverseDynamicsConfig
from jepaplan.objectives.action_likelihood import ActionLikelihoodObjective
from jepaplan.objectives.td import ReturnBatch
from jepaplan.planners.cem import CEM
from jepaplan.planners.deadline import Deadline
from jepaplan.planners.gradient import GradientDescent
from jepaplan.planners.icem import ICEM
from jepaplan.planners.mppi import MPPI
from jepaplan.planners.proposals import GaussianNoise, NormBound
from jepaplan.planners.proposals_bank import AroundPlan
from jepaplan.planners.shooting import RandomShooting
from jepaplan.types import InputError, Plan

GOALS = torch.tensor([[6.0, 0.0], [-4.0, 8.0], [0.0, -3.0]])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Turned:
    """A point whose actions are turned by a quarter: z' = z + R a. Its state is its latent."""

    action_dim = 2
    stride = 1
    action_units = ActionNormaliser.identity(2)
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])

    def encode(self, observation: torch.Tensor, proprioception: torch.Tensor | None = None) -> torch.Tensor:
        return observation.float()

    def step(self, latent: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return latent + action @ self.turn.T

    def rollout(self, latent: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        path = latent[:, None, None] + (actions @ self.turn.T).cumsum(dim=2)
        start = latent[:, None, None].expand(-1, actions.shape[1], 1, -1)
        return torch.cat([start, path], dim=2)


class Straight:
    """Towards the goal by the length of a step, however far it is; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, latent: torch.Tensor, goal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.asked.append((latent, goal))
        gap = goal - latent
        mean = (gap / gap.norm(dim=-1, keepdim=True).clamp(min=1)) @ Turned.turn
        return mean, torch.full_like(mean, 0.1).log()


def euclidean(source: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(source - goal, dim=-1)


COST = WeightedSum({"goal": (1.0, GoalDistance(distance=euclidean))})
PLANNER = MPPI(samples=4, horizon=5, std=0.1, temperature=0.05, bounds=NormBound(max_norm=1.0))


def controller(prior: LearnedPrior | None, **options: object) -> RecedingHorizon:
    made = {"world_model": Turned(), "planner": PLANNER, "cost": COST, "prior": prior}
    return RecedingHorizon(**{**made, **options})


def drive(control: RecedingHorizon, goals: torch.Tensor, steps: int) -> torch.Tensor:
    control.reset(goals, seeded(0))
    states = torch.zeros_like(goals)
    for _ in range(steps):
        states = Turned().step(states, control.act(states))
    return states


def straight(**options: object) -> LearnedPrior:
    return LearnedPrior(**{"prior": Straight(), "world_model": Turned(), **options})


def test_imagination_follows_the_prior_to_the_goal_and_stays_there():
    plan = straight().imagine(torch.zeros(3, 2), GOALS, 12)
    path = Turned().rollout(torch.zeros(3, 2), plan.mean[:, None])[:, 0]
    torch.testing.assert_close(path[:, -1], GOALS)
    steps = path.diff(dim=1).norm(dim=-1)
    expected = (GOALS.norm(dim=-1)[:, None] - torch.arange(12)).clamp(0, 1)
    torch.testing.assert_close(steps, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(plan.std, torch.full_like(plan.std, 0.1))
    half = straight(bounds=NormBound(max_norm=0.5), std=0.3).imagine(torch.zeros(3, 2), GOALS, 4)
    assert (half.mean.norm(dim=-1) - 0.5).abs().max() < 1e-5
    assert (half.std == 0.3).all()


def test_the_prior_is_asked_anew_at_every_replan_of_those_who_are_due():
    asked = straight()
    control = controller(asked, replan_every=2)
    control.reset(GOALS, seeded(0))
    seen = [torch.randn(3, 2, generator=seeded(step)) for step in range(4)]
    active = torch.tensor([True, False, True])
    for step, states in enumerate(seen):
        control.act(states, None if step < 2 else active)
    firsts = asked.prior.asked[:: PLANNER.horizon]
    assert len(asked.prior.asked) == 2 * PLANNER.horizon
    torch.testing.assert_close(firsts[0], (seen[0], GOALS))
    torch.testing.assert_close(firsts[1], (seen[2][active], GOALS[active]))
    # samples x horizon, the explanation of the plan, and the imagined path of the prior
    assert control.last.evaluations == 4 * 5 + 5 + 5


def test_four_samples_reach_with_a_prior_what_they_do_not_reach_without():
    led, blind = (drive(controller(prior), GOALS, 14) for prior in (straight(), None))
    assert (led - GOALS).norm(dim=-1).max() < 0.5
    assert ((blind - GOALS).norm(dim=-1)[:2] > 3).all()  # those that are far


def test_what_a_problem_does_depends_on_nobody_else():
    together = drive(controller(straight()), GOALS, 3)
    torch.testing.assert_close(drive(controller(straight()), GOALS[:1], 3), together[:1])
    others = torch.cat([GOALS[:1], -GOALS[1:]])
    torch.testing.assert_close(drive(controller(straight()), others, 3)[:1], together[:1])
    assert (together[1:] - drive(controller(straight()), others, 3)[1:]).norm(dim=-1).min() > 2


@pytest.fixture(scope="module")
def trained() -> GoalInverseDynamics:
    """Learned from random walks of 1 to 8 steps."""
    torch.manual_seed(0)
    prior = GoalInverseDynamics(2, 2, GoalInverseDynamicsConfig(hidden=32, norm=False))
    objective, generator = ActionLikelihoodObjective(prior), seeded(1)
    optimiser = torch.optim.Adam(prior.parameters(), lr=5e-3)
    for _ in range(300):
        actions = torch.randn(256, 8, 2, generator=generator)
        steps = torch.randint(1, 9, (256, 1, 1), generator=generator)
        taken = actions * (torch.arange(8)[:, None] < steps)
        start = 3 * torch.randn(256, 2, generator=generator)
        goals = Turned().step(start, taken.sum(1))
        loss, _ = objective(
            ReturnBatch(latents=start, returns=torch.zeros(256), goals=goals, actions=actions[:, 0])
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return prior.requires_grad_(False)


def test_a_trained_prior_is_cheaper_than_noise_of_its_deviation(trained: GoalInverseDynamics):
    """Eight samples a problem, 50 problems; the noise is around standing still."""
    start, goals = torch.randn(50, 2, generator=seeded(2)), 4 * torch.randn(50, 2, generator=seeded(3))
    cost = COST.bind(Turned(), start, goals)
    learned = LearnedPrior(prior=trained, world_model=Turned(), share=1.0)
    plan = learned.imagine(start, goals, 6)
    planner = RandomShooting(samples=8, horizon=6, keep_nominal=False)
    noise = Plan(mean=torch.zeros_like(plan.mean), std=plan.std)
    led = learned.lead(planner, start, goals, 6).plan(cost, noise, seeded(4)).plan
    blind = planner.plan(cost, noise, seeded(4)).plan
    costs, plain = cost(led.mean[:, None])[:, 0], cost(blind.mean[:, None])[:, 0]
    assert costs.mean() < 0.8 * plain.mean()
    assert (costs < plain).float().mean() > 0.8


TARGET = torch.randn(3, 5, 2, generator=seeded(5)) * 3
PLANNERS = [
    MPPI(samples=20, horizon=5, correlation=0.5, returns="best"),
    RandomShooting(samples=20, horizon=5, correlation=0.5),
    CEM(samples=20, elites=4, horizon=5, correlation=0.5, returns="best"),
    ICEM(samples=20, elites=4, horizon=5),
    Deadline(planner=RandomShooting(samples=20, horizon=5), milliseconds=1e6),
    MPPI(samples=20, horizon=5, returns="best", proposal=GaussianNoise(correlation=0.9)),
]


@pytest.mark.parametrize("planner", PLANNERS, ids=lambda planner: type(planner).__name__)
def test_every_sampling_planner_takes_what_a_prior_knows(planner: MPPI):
    """The prior's own plan is a candidate beside the planner's noise, and nothing is cheaper."""
    proposal = AroundPlan(plan=Plan(mean=TARGET, std=torch.full_like(TARGET, 0.01)))
    shares: list[float] = []

    def cost(actions: torch.Tensor) -> torch.Tensor:
        off = (actions - TARGET[:, None]).square().sum(dim=(-2, -1))
        shares.append(float((off < 0.1).float().mean()))
        return off

    led = planner.with_proposal(proposal, 0.25)
    found = led.plan(cost, led.initial(3, 2), seeded(0))
    assert torch.equal(found.plan.mean, TARGET)
    assert shares[0] == pytest.approx(0.25, abs=0.06)  # a first look at five samples has one of them
    alone = planner.plan(cost, planner.initial(3, 2), seeded(0))
    assert (alone.plan.mean - TARGET).norm(dim=-1).max() > 0.1


def test_what_cannot_lead_is_refused():
    with pytest.raises(InputError, match=r"GradientDescent takes no candidates from a prior; plan with MPPI"):
        controller(straight(), planner=GradientDescent(horizon=5))
    # in the same words within a deadline, whoever asks
    late = Deadline(planner=GradientDescent(horizon=5), milliseconds=10.0)
    with pytest.raises(InputError, match=r"GradientDescent takes no candidates from a prior; plan with MPPI"):
        controller(straight(), planner=late)
    proposal = AroundPlan(plan=Plan(mean=TARGET, std=torch.ones_like(TARGET)))
    with pytest.raises(InputError, match=r"GradientDescent takes no candidates from a prior; plan with MPPI"):
        late.with_proposal(proposal, 0.5)
    with pytest.raises(InputError, match=r"lies in \(0, 1\]; got 0"):
        straight(share=0.0)
    with pytest.raises(InputError, match=r"or None for the learned one; got -1"):
        straight(std=-1.0)
    with pytest.raises(InputError, match=r"goals that are latents too, of shape \(3, 2\); got .*\(3, 4\)"):
        straight().imagine(torch.zeros(3, 2), torch.zeros(3, 4), 5)
    other = replace(straight(), prior=Straight()).imagine(torch.zeros(2, 2), GOALS[:2], 5)
    with pytest.raises(InputError, match="bind it to the problems that are planned now"):
        AroundPlan(plan=other).sample(PLANNER.initial(3, 2), 4, seeded(0))
