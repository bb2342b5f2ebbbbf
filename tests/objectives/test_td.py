"""Values against value iteration, returns against their definitions, all on worlds of a few states."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from literal_returns import lambda_return_literally, seeded, segments
from torch import nn

from jepaplan.models.value_heads import QuasimetricHeadConfig, ValueHeadConfig, build_values
from jepaplan.objectives.iql import implicit_q_loss, value_loss
from jepaplan.objectives.returns import (
    balanced_pairs,
    rewards_until,
    value_of_steps,
)
from jepaplan.objectives.td import (
    ActionValueObjective,
    ReturnBatch,
    ReturnObjective,
    TDConfig,
    TDObjective,
    ValueSegments,
    minimum_of_two,
    two_of,
)
from jepaplan.types import InputError

STATES, DISCOUNT = 5, 0.9
ONE_HOT = torch.eye(STATES, dtype=torch.float64)


class Table(nn.Module):
    """V(z[, g[, a]]) of one-hot latents: one learned number per combination and member."""

    def __init__(self, members=1, goals=True, actions=0, first=0.0):
        super().__init__()
        shape = (members, STATES, STATES if goals else 1, max(actions, 1))
        self.table = nn.Parameter(torch.full(shape, first, dtype=torch.float64))

    def forward(self, latents, goals=None, actions=None):
        one = torch.ones(1, dtype=torch.float64)
        goals = one if goals is None else goals
        actions = one if actions is None else actions
        batch = torch.broadcast_shapes(latents.shape[:-1], goals.shape[:-1], actions.shape[:-1])
        parts = [part.expand(*batch, part.shape[-1]) for part in (latents, goals, actions)]
        return torch.einsum("...s,...g,...a,msga->...m", *parts, self.table)


def walk():
    """Every transition of a random walk on a line whose ends reflect, towards every goal."""
    here = torch.arange(STATES).repeat_interleave(2)
    move = torch.tensor([-1, 1]).repeat(STATES)
    after = (here + move).clamp(0, STATES - 1)
    goals = torch.arange(STATES).repeat(len(here))
    frames = torch.stack([here, after], dim=1).repeat_interleave(STATES, dim=0)
    rewards, terminal = rewards_until(frames == goals[:, None])
    return ValueSegments(
        latents=ONE_HOT[frames],
        rewards=rewards.double(),
        terminal=terminal,
        goals=ONE_HOT[goals],
        actions=torch.eye(2, dtype=torch.float64)[(move > 0).long()].repeat_interleave(STATES, dim=0)[
            :, None
        ],
    )


def value_iteration(expectile):
    """The tau-expectile of two equally likely numbers is tau max + (1 - tau) min."""
    values = torch.zeros(STATES, STATES, dtype=torch.float64)
    states = torch.arange(STATES)
    for _ in range(500):
        left, right = values[(states - 1).clamp(min=0)], values[(states + 1).clamp(max=STATES - 1)]
        best, worst = torch.maximum(left, right), torch.minimum(left, right)
        values = (-1 + DISCOUNT * (expectile * best + (1 - expectile) * worst)) * (1 - ONE_HOT)
    return values


def learn(objective, batch, updates=300, rate=0.2):
    optimiser = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    for _ in range(updates):
        optimiser.zero_grad()
        loss, _ = objective(batch() if callable(batch) else batch)
        loss.backward()
        optimiser.step()
        schedule.step()
        if hasattr(objective, "follow"):
            objective.follow()
    return loss


# ---- one goal, many transitions --------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["moving_average", "stop_gradient"])
@pytest.mark.parametrize("expectile", [0.5, 0.8])
def test_one_step_values_of_a_chain_are_those_of_value_iteration(target, expectile):
    config = TDConfig(discount=DISCOUNT, expectile=expectile, target=target, target_decay=0.8)
    table = Table()
    learn(TDObjective(table, config), walk())
    torch.testing.assert_close(table.table[0, ..., 0].detach(), value_iteration(expectile), rtol=0, atol=0.02)


def test_values_without_a_goal_learn_from_rewards():
    """Walking right earns 1 at every arrival at the last state, where a recording goes on from the first."""
    frames = torch.stack([torch.arange(STATES), (torch.arange(STATES) + 1) % STATES], dim=1)
    batch = ValueSegments(
        latents=ONE_HOT[frames],
        rewards=(frames[:, 1:] == STATES - 1).double(),
        terminal=torch.zeros(STATES, 1, dtype=torch.bool),
    )
    table = Table(goals=False)
    learn(TDObjective(table, TDConfig(discount=DISCOUNT, target_decay=0.8)), batch)
    away = (STATES - 2 - torch.arange(STATES)) % STATES
    expected = DISCOUNT ** away.double() / (1 - DISCOUNT**STATES)
    torch.testing.assert_close(table.table[0, :, 0, 0].detach(), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("trace_decay", [0.0, 0.7, 1.0])
def test_long_segments_of_one_policy_have_one_value_whatever_lambda_is(trace_decay):
    """Always to the right: bootstrapped or not, the goal is as far as it is."""
    frames = torch.arange(STATES)[None].expand(STATES, -1)
    rewards, terminal = rewards_until(frames == torch.arange(STATES)[:, None])
    batch = ValueSegments(
        latents=ONE_HOT[frames],
        rewards=rewards.double(),
        terminal=terminal,
        goals=ONE_HOT[frames[:, :1] * 0 + torch.arange(STATES)[:, None]][:, 0],
    )
    config = TDConfig(discount=DISCOUNT, trace_decay=trace_decay, target_decay=0.5)
    table = Table()
    learn(TDObjective(table, config), batch, updates=200)
    here, goal = torch.triu_indices(STATES, STATES, offset=1)
    found = table.table[0, here, goal, 0].detach()
    torch.testing.assert_close(found, value_of_steps((goal - here).double(), DISCOUNT), rtol=0, atol=0.02)


def test_the_loss_is_the_expectile_of_the_bellman_error_written_out():
    rewards, terminal, _ = segments(3, items=4, steps=3)
    frames = torch.randint(STATES, (4, 4), generator=seeded(4))
    goals = torch.randint(STATES, (4,), generator=seeded(5))
    table, config = Table(members=2), TDConfig(discount=0.9, trace_decay=0.3, expectile=0.8, bootstrap="mean")
    with torch.no_grad():
        table.table.normal_(generator=seeded(6))
    objective = TDObjective(table, config)
    with torch.no_grad():
        table.table.add_(0.5)  # the average stays behind
    batch = ValueSegments(latents=ONE_HOT[frames], rewards=rewards, terminal=terminal, goals=ONE_HOT[goals])
    total = 0.0
    for b in range(4):
        old = (table.table.detach() - 0.5).mean(0)[frames[b, 1:], goals[b], 0].tolist()
        targets = lambda_return_literally(rewards[b].tolist(), terminal[b].tolist(), old, 0.9, 0.3)
        for t in range(3):
            for member in range(2):
                error = targets[t] - table.table[member, frames[b, t], goals[b], 0].item()
                total += abs(0.8 - (1.0 if error < 0 else 0.0)) * error**2
    assert objective(batch)[0].item() == pytest.approx(total / 24)


@pytest.mark.parametrize("target", ["moving_average", "stop_gradient"])
def test_no_gradient_reaches_the_next_state_or_the_average(target):
    batch = walk()
    latents = batch.latents.clone().requires_grad_()
    table = Table(first=-1.0)
    objective = TDObjective(table, TDConfig(target=target))
    parts = {"rewards": batch.rewards, "terminal": batch.terminal, "goals": batch.goals}
    objective(ValueSegments(latents=latents, **parts))[0].backward()
    assert (latents.grad[:, 0] != 0).any()
    assert (latents.grad[:, 1] == 0).all()
    trained = [name for name, parameter in objective.named_parameters() if parameter.requires_grad]
    assert trained == ["values.table"]


def test_the_average_follows():
    table = Table()
    objective = TDObjective(table, TDConfig(target_decay=0.75))
    with torch.no_grad():
        table.table.fill_(8.0)
    objective.follow()
    assert (objective.following.average.average.table == 2.0).all()
    assert (table.table == 8.0).all()


# ---- ensembles -------------------------------------------------------------------------------------------


def test_the_minimum_of_two_is_of_the_two_that_were_drawn():
    values = torch.tensor([[[1.0, 5.0, 3.0]], [[1.0, 5.0, 3.0]]])
    subset = torch.tensor([[1, 2], [2, 0]])
    assert minimum_of_two(values, subset).flatten().tolist() == [3.0, 1.0]
    assert minimum_of_two(values[..., 1:], None).flatten().tolist() == [3.0, 3.0]
    with pytest.raises(InputError, match="needs two members"):
        minimum_of_two(values[..., :1], None)
    with pytest.raises(InputError, match="without subset"):
        minimum_of_two(values, None)


def test_two_different_members_are_drawn_and_all_equally_often():
    drawn = two_of(4, 6000, seeded(0))
    assert (drawn[:, 0] != drawn[:, 1]).all()
    counts = torch.bincount(drawn.flatten(), minlength=4)
    assert ((counts - 3000).abs() < 250).all()


def test_pessimism_lowers_the_targets_of_members_that_disagree():
    batch = walk()
    table = Table(members=2)
    with torch.no_grad():
        table.table[0] -= 4.0
    for bootstrap, next_values in (
        ("own", (-4.0, 0.0)),
        ("mean", (-2.0, -2.0)),
        ("minimum_of_two", (-4.0, -4.0)),
    ):
        objective = TDObjective(table, TDConfig(discount=1.0, bootstrap=bootstrap))
        found = objective.following(batch.latents[:, 1:], batch).expand(-1, -1, 2)
        torch.testing.assert_close(found[0, 0], torch.tensor(next_values, dtype=torch.float64))


# ---- action values ---------------------------------------------------------------------------------------


def test_implicit_q_learning_on_a_chain_is_value_iteration():
    expectile = 0.8
    actions, states = Table(actions=2), Table()
    config = TDConfig(discount=DISCOUNT, expectile=expectile, target_decay=0.8)
    learn(ActionValueObjective(actions, states, config), walk(), updates=500)
    expected = value_iteration(expectile)
    torch.testing.assert_close(states.table[0, ..., 0].detach(), expected, rtol=0, atol=0.03)
    position = torch.arange(STATES)
    for action, move in enumerate((-1, 1)):
        after = (position + move).clamp(0, STATES - 1)
        q = (-1 + DISCOUNT * expected[after]) * (1 - ONE_HOT)
        torch.testing.assert_close(actions.table[0, ..., action].detach(), q, rtol=0, atol=0.03)
    without = ValueSegments(latents=walk().latents, rewards=walk().rewards, terminal=walk().terminal)
    with pytest.raises(InputError, match="segments with actions"):
        ActionValueObjective(actions, states)(without)


def slippery_walk():
    """The walk where one step of eight goes the other way, whatever was done."""
    here = torch.arange(STATES).repeat_interleave(16)
    done = torch.tensor([-1, 1]).repeat_interleave(8).repeat(STATES)
    slips = (torch.arange(8) == 0).repeat(2 * STATES)
    after = (here + torch.where(slips, -done, done)).clamp(0, STATES - 1)
    goals = torch.arange(STATES).repeat(len(here))
    frames = torch.stack([here, after], dim=1).repeat_interleave(STATES, dim=0)
    rewards, terminal = rewards_until(frames == goals[:, None])
    chosen = torch.eye(2, dtype=torch.float64)[(done > 0).long()].repeat_interleave(STATES, dim=0)
    return ValueSegments(
        latents=ONE_HOT[frames],
        rewards=rewards,
        terminal=terminal,
        goals=ONE_HOT[goals],
        actions=chosen[:, None],
    )


def best_values(slips):
    """V(s, g) of the best policy where that share of the steps goes the other way, by value iteration."""
    value, position = torch.zeros(STATES, STATES, dtype=torch.float64), torch.arange(STATES)
    for _ in range(500):
        left, right = ((position + move).clamp(0, STATES - 1) for move in (-1, 1))
        ways = torch.stack(
            [(1 - slips) * value[a] + slips * value[b] for a, b in ((left, right), (right, left))]
        )
        value = (-1 + DISCOUNT * ways.amax(0)) * (1 - ONE_HOT)
    return value


def test_a_value_without_actions_takes_luck_for_skill_and_one_with_actions_does_not():
    """The discussion of arXiv:2601.00844 expects the first; arXiv:2110.06169 is why the second holds."""
    config = TDConfig(discount=DISCOUNT, expectile=0.99, target_decay=0.8)
    blind = Table()
    learn(TDObjective(blind, config), slippery_walk(), updates=1500, rate=0.3)
    actions, states = Table(actions=2), Table()
    learn(ActionValueObjective(actions, states, config), slippery_walk(), updates=1500, rate=0.3)
    true, lucky = best_values(1 / 8), best_values(0.0)
    apart = ~torch.eye(STATES, dtype=torch.bool)
    assert float((lucky - true)[apart].min()) > 0.1
    optimism = (blind.table[0, ..., 0].detach() - true)[apart] / (lucky - true)[apart]
    assert float(optimism.min()) > 0.75  # nearly the value of a world without slips
    share = (states.table[0, ..., 0].detach() - true)[apart] / (lucky - true)[apart]
    assert float(share.abs().max()) < 0.15


def test_a_distance_is_cured_of_luck_by_values_of_actions():
    walk_ = slippery_walk()
    frames, goals = walk_.latents.argmax(-1), walk_.goals.argmax(-1)
    action = walk_.actions[:, 0].argmax(-1)
    true, lucky = best_values(1 / 8), best_values(0.0)
    apart = ~torch.eye(STATES, dtype=torch.bool)
    optimism = {}
    for name in ("value_loss", "implicit_q_loss"):
        steps = torch.zeros(STATES, STATES, dtype=torch.float64, requires_grad=True)
        values = torch.zeros(2, STATES, STATES, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.Adam([steps, values], lr=0.3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 1500)
        for _ in range(1500):
            distances = (steps * ~torch.eye(STATES, dtype=torch.bool))[frames, goals[:, None]][..., None]
            reached = (frames == goals[:, None])[..., None]
            if name == "value_loss":
                loss = value_loss(distances, reached, discount=DISCOUNT, expectile=0.99)
            else:
                of_actions = values[action, frames[:, 0], goals][:, None, None]
                loss = implicit_q_loss(distances, reached, of_actions, discount=DISCOUNT, expectile=0.99)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        optimism[name] = ((-steps.detach() - true)[apart] / (lucky - true)[apart]).mean()
    assert float(optimism["value_loss"]) > 0.75
    assert abs(float(optimism["implicit_q_loss"])) < 0.15


# ---- returns that are known ------------------------------------------------------------------------------


@given(st.floats(0.05, 0.95), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_the_regression_is_the_expectile_written_out(expectile, seed):
    returns = torch.randn(6, generator=seeded(seed), dtype=torch.float64)
    table = Table(members=2, goals=False)
    with torch.no_grad():
        table.table.normal_(generator=seeded(seed + 1))
    states = torch.randint(STATES, (6,), generator=seeded(seed + 2))
    loss, _ = ReturnObjective(table, expectile)(ReturnBatch(latents=ONE_HOT[states], returns=returns))
    total = 0.0
    for item in range(6):
        for member in range(2):
            error = returns[item].item() - table.table[member, states[item], 0, 0].item()
            total += (expectile if error >= 0 else 1 - expectile) * error**2
    assert loss.item() == pytest.approx(total / 12)


@pytest.mark.parametrize("geometry", ["network", "quasimetric"])
def test_pairs_of_a_straight_walk_teach_how_far_apart_its_states_are(geometry):
    torch.manual_seed(0)
    small = QuasimetricHeadConfig(hidden=32, width=64, components=8)
    config = ValueHeadConfig(geometry=geometry, hidden=32, quasimetric=small)
    values = build_values(config, 2, members=1)
    frames = torch.stack([torch.linspace(-2, 2, 17), torch.zeros(17)], dim=1)
    generator = seeded(1)

    def batch():
        earlier, later = balanced_pairs(torch.tensor([16]), 64, generator)
        returns = value_of_steps(later - earlier, 1.0)
        return ReturnBatch(latents=frames[earlier], returns=returns, goals=frames[later])

    learn(ReturnObjective(values), batch, updates=150, rate=0.02)
    here, goal = torch.triu_indices(17, 17, offset=1)
    found = values(frames[here], frames[goal])[:, 0].detach()
    assert (found + (goal - here)).abs().mean() < 0.5
    assert values(frames, frames).abs().max() == 0


def test_a_high_expectile_of_witnesses_prefers_the_shortest_way():
    """From one state to one goal in 2, 4 and 9 steps; 0.98 e = 0.02 (2 + 7 - 2 e) at e = 0.177."""
    table = Table(goals=False)
    batch = ReturnBatch(
        latents=ONE_HOT[[0, 0, 0]], returns=-torch.tensor([2.0, 4.0, 9.0], dtype=torch.float64)
    )
    learn(ReturnObjective(table, expectile=0.98), batch, updates=400, rate=0.1)
    assert table.table[0, 0, 0, 0].item() == pytest.approx(-2.173, abs=0.02)


def test_nonsense_is_refused():
    with pytest.raises(InputError, match="trace_decay"):
        TDConfig(trace_decay=1.5)
    with pytest.raises(InputError, match="target_decay"):
        TDConfig(target_decay=-0.1)
    with pytest.raises(InputError, match="expectile lies"):
        ReturnObjective(Table(), expectile=1.0)
