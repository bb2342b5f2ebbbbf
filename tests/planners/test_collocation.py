"""Lifted states end where shooting does on a linear model, with all steps in one call."""

import pytest
import torch
from linear_quadratic import LinearQuadratic, double_integrator, planar
from test_gradient import LinearWorld, squared

from jepaplan.costs.compose import WeightedSum
from jepaplan.costs.terms import ActionEffort, GoalDistance
from jepaplan.planners import stepwise
from jepaplan.planners.collocation import Collocation
from jepaplan.planners.descent import SGD, Descent
from jepaplan.planners.gradient import GradientDescent
from jepaplan.planners.stepwise import follow
from jepaplan.types import InputError, Plan

EXACT = Collocation(
    starts=1,
    steps=300,
    synchronise_every=10,
    penalty=3.0,
    optimiser=SGD(learning_rate=0.05),
    latent_optimiser=SGD(learning_rate=0.05),
    shooting=None,
    latent_noise=0.0,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blank(problems: int, horizon: int, components: int) -> Plan:
    mean = torch.zeros(problems, horizon, components, dtype=torch.float64)
    return Plan(mean=mean, std=torch.ones_like(mean))


@pytest.mark.parametrize(
    "system", [double_integrator(effort=1.0), planar(final_weight=3.0, effort=0.5, offset=5.0)]
)
def test_multipliers_lead_to_the_riccati_optimum_without_any_shooting(system: LinearQuadratic):
    least, actions = system.optimum(5)
    found = EXACT.plan(system, blank(3, 5, actions.shape[-1]), seeded(0))
    torch.testing.assert_close(found.costs.amin(dim=-1), least, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.plan.mean, actions, rtol=0.0, atol=1e-3)


def test_on_a_linear_model_it_equals_shooting():
    system = planar(final_weight=1.0, effort=1.0)
    shooting = GradientDescent(starts=1, descent=Descent(steps=150, optimiser=SGD(learning_rate=0.06)))
    one = EXACT.plan(system, blank(3, 5, 2), seeded(0)).plan.mean
    other = shooting.plan(system, blank(3, 5, 2), seeded(0)).plan.mean
    torch.testing.assert_close(one, other, rtol=0.0, atol=1e-4)


def test_with_a_stop_gradient_it_is_near_and_shooting_in_between_brings_it_nearer():
    system = planar(8, final_weight=3.0)
    least, _ = system.optimum(5)
    settings = {"starts": 4, "steps": 300, "stop_gradient": True}
    alone = Collocation(**settings, shooting=None).plan(system, blank(8, 5, 2), seeded(0))
    helped = Collocation(**settings).plan(system, blank(8, 5, 2), seeded(0))
    nothing = follow(system, torch.zeros(8, 1, 5, 2, dtype=torch.float64)).costs[:, 0]
    excess = [(found.costs.amin(dim=-1) - least).mean() for found in (alone, helped)]
    assert excess[1] < excess[0] < 0.2 * (nothing - least).mean()


def test_with_a_stop_gradient_a_latent_hears_only_of_the_step_that_leads_to_it():
    """Its gradient is that of its own defect; without the stop, the next step has a say as well."""
    system = double_integrator(1, state_weight=0.0, effort=0.0, final_weight=1.0)
    actions = torch.randn(1, 1, 3, 1, generator=seeded(0), dtype=torch.float64)
    path = follow(system, actions).latents[:, :, :-1]
    virtual = (path + 0.1).requires_grad_(True)
    for stop, shaping, equal in ((True, 0.0, True), (False, 0.0, False)):
        planner = Collocation(stop_gradient=stop, shaping=shaping, penalty=2.0)
        loss, defect = planner._loss(system, actions, virtual, torch.zeros_like(path))
        (gradient,) = torch.autograd.grad(loss.sum(), virtual)
        assert torch.allclose(gradient, -2 * 2.0 * defect) == equal


def test_without_defects_the_lifted_loss_is_the_cost_of_the_path():
    system = planar(final_weight=2.0, offset=1.0)
    actions = torch.randn(3, 4, 5, 2, generator=seeded(0), dtype=torch.float64)
    path = follow(system, actions)
    torch.testing.assert_close(path.costs, system(actions))
    loss, defect = Collocation()._loss(
        system, actions, path.latents[:, :, :-1], torch.zeros_like(path.latents[:, :, :-1])
    )
    torch.testing.assert_close(loss, system(actions))
    assert defect.abs().max() < 1e-12


def test_all_time_steps_of_all_starts_are_one_call():
    system = planar()
    Collocation(starts=3, steps=4, synchronise_every=2, shooting=None).plan(system, blank(3, 5, 2), seeded(0))
    rollout, lifted = [3] * 5, [3 * (3 * 5)] * 2
    assert system.rows == rollout + lifted + rollout + lifted + rollout


def test_one_step_ahead_there_is_no_virtual_latent_and_nothing_breaks():
    system = planar()
    least, _ = system.optimum(1)
    for stop in (True, False):
        found = Collocation(steps=150, stop_gradient=stop).plan(system, blank(3, 1, 2), seeded(0))
        torch.testing.assert_close(found.costs.amin(dim=-1), least, rtol=1e-3, atol=1e-3)


def test_a_cost_of_whole_sequences_only_is_refused():
    with pytest.raises(InputError, match="one imagined step at a time"):
        EXACT.plan(lambda actions: actions.square().sum((-2, -1)), blank(1, 2, 1), seeded(0))


def test_the_real_cost_is_lifted_too():
    system = planar(final_weight=2.0, effort=1.0)
    terms = {
        "path": (1.0, GoalDistance(distance=squared)),
        "end": (2.0, GoalDistance(distance=squared, over="terminal")),
        "effort": (1.0, ActionEffort()),
    }
    bound = WeightedSum(terms, chunk_rows=5).bind(LinearWorld(system), system.latent, system.goal)
    found = EXACT.plan(bound, blank(3, 4, 2), seeded(0))
    torch.testing.assert_close(found.costs.amin(dim=-1), system.optimum(4)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_starts_do_not_know_who_is_optimised_beside_them(
    stop_gradient: bool, monkeypatch: pytest.MonkeyPatch
):
    """However many fit at once; without noise, which is dealt in another order."""
    problem = planar(3, final_weight=1.0)
    planner = Collocation(
        starts=5, steps=7, synchronise_every=3, stop_gradient=stop_gradient, latent_noise=0.0, shooting=None
    )
    start = Plan(mean=torch.zeros(3, 4, 2, dtype=torch.float64), std=torch.ones(3, 4, 2, dtype=torch.float64))
    whole = planner.plan(problem, start, torch.Generator().manual_seed(0))
    asked = sum(problem.rows)
    monkeypatch.setattr(stepwise, "AT_ONCE", 2 * problem.latent.numel() * 3 * 8)  # two starts
    problem.rows.clear()
    parts = planner.plan(problem, start, torch.Generator().manual_seed(0))
    assert sum(problem.rows) == asked == parts.evaluations
    torch.testing.assert_close(parts.candidates, whole.candidates)
    torch.testing.assert_close(parts.costs, whole.costs)
