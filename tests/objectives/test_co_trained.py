"""A head that learns beside an encoder: value iteration on a chain of pictures, and where gradients go."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from jepaplan.data.normalise import ActionNormaliser
from jepaplan.data.windows import WindowBatch
from jepaplan.models.value_heads import ValueHeadConfig, build_values
from jepaplan.objectives.co_trained import CoTrainedObjective, ValueWindows
from jepaplan.objectives.iql import ValueConfig, expectile_loss
from jepaplan.objectives.returns import rewards_until
from jepaplan.objectives.scene import CompanionSegments, SceneObjective
from jepaplan.objectives.td import ActionValueObjective, TDConfig, TDObjective
from jepaplan.objectives.total import (
    JointObjective,
    ObjectiveWeights,
    PredictionObjective,
    ValueObjective,
)

STATES, DISCOUNT, WIDTH = 5, 0.8, 8
WEIGHTS = ObjectiveWeights(prediction=1.0, variance=1.0)


class Chain(nn.Module):
    """A world model of pictures of one bright pixel in a row of five, and of moves left and right."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(STATES, WIDTH)
        self.predictor = nn.Linear(WIDTH + 1, WIDTH)
        self.action_units = ActionNormaliser.identity(1)

    def encode_frames(self, observations, proprioception=None):
        return self.encoder(observations.flatten(2).float() / 255)

    def unroll(self, latent, actions):
        path = [latent]
        for action in actions.unbind(1):
            path.append(self.predictor(torch.cat([path[-1], action], dim=-1)))
        return torch.stack(path, dim=1)


def pictures(states):
    return (255 * torch.eye(STATES)[states]).to(torch.uint8)[..., None, None, :]


def windows(here, move, goals):
    """One step of each item towards its goal."""
    after = (here + move).clamp(0, STATES - 1)
    frames = torch.stack([here, after], dim=1)
    rewards, terminal = rewards_until(frames == goals[:, None])
    batch = WindowBatch(
        actions=move.float()[:, None, None],
        observations=pictures(frames),
        frames=frames,
        episode=torch.arange(len(here)),
        proprioception=None,
    )
    return ValueWindows(
        windows=batch, actions=batch.actions, rewards=rewards, terminal=terminal, goals=pictures(goals)
    )


def walk():
    """Every transition of a random walk whose ends reflect, towards every goal."""
    here, move, goals = torch.cartesian_prod(
        torch.arange(STATES), torch.tensor([-1, 1]), torch.arange(STATES)
    ).unbind(1)
    return windows(here, move, goals)


def value_iteration(expectile):
    """The tau-expectile of two equally likely numbers is tau max + (1 - tau) min."""
    values, states = torch.zeros(STATES, STATES), torch.arange(STATES)
    for _ in range(200):
        left, right = values[(states - 1).clamp(min=0)], values[(states + 1).clamp(max=STATES - 1)]
        mixed = expectile * torch.maximum(left, right) + (1 - expectile) * torch.minimum(left, right)
        values = (-1 + DISCOUNT * mixed) * (1 - torch.eye(STATES))
    return values


def build(config=None, action=False, weights=WEIGHTS, members=1, **options):
    torch.manual_seed(0)
    model = Chain()
    shape = ValueHeadConfig(hidden=64, action=action)
    values = build_values(shape, WIDTH, members, action_dim=1)
    config = config or TDConfig(discount=DISCOUNT)
    if action:
        states = build_values(replace(shape, action=False), WIDTH)
        learner = ActionValueObjective(values, states, config)
    else:
        learner = TDObjective(values, config)
    return model, CoTrainedObjective(PredictionObjective(model, weights), learner, **options)


def learn(objective, batch, updates=250):
    optimiser = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], lr=2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    for _ in range(updates):
        optimiser.zero_grad()
        objective(batch)[0].backward()
        optimiser.step()
        schedule.step()
        objective.follow()


@pytest.mark.parametrize("shapes_encoder", [True, False])
def test_co_trained_values_of_a_chain_are_those_of_value_iteration(shapes_encoder):
    config = TDConfig(discount=DISCOUNT, expectile=0.8, target_decay=0.8)
    model, objective = build(config, shapes_encoder=shapes_encoder)
    learn(objective, walk())
    with torch.no_grad():
        latents = model.encode_frames(pictures(torch.arange(STATES))[None])[0]
        found = objective.learner.values(latents[:, None], latents[None])[..., 0]
    torch.testing.assert_close(found, value_iteration(0.8), rtol=0, atol=0.1)


def test_co_trained_values_of_actions_take_the_best_one():
    config = TDConfig(discount=DISCOUNT, expectile=0.95, target_decay=0.8)
    model, objective = build(config, action=True, weight=0.5)
    learn(objective, walk())
    states, best = torch.arange(STATES), value_iteration(1.0)
    with torch.no_grad():
        latents = model.encode_frames(pictures(states)[None])[0]
        for move in (-1, 1):
            due = -1 + DISCOUNT * best[(states + move).clamp(0, STATES - 1)]
            taken = torch.full((STATES, STATES, 1), float(move))
            found = objective.learner.action_values(latents[:, None], latents[None], taken)[..., 0]
            away = ~torch.eye(STATES, dtype=torch.bool)
            torch.testing.assert_close(found[away], due[away], rtol=0, atol=0.25)


def head_gradient(model, objective, batch):
    """What the head's loss adds to the gradient of the encoder, one row for the pixel of each state."""
    found = []
    for loss in (objective(batch)[0], objective.objective(batch.windows)[0]):
        model.zero_grad()
        loss.backward()
        found.append(model.encoder.weight.grad.T.clone())
    return found[0] - found[1]


@pytest.mark.parametrize("action", [False, True])
@pytest.mark.parametrize("shapes_encoder", [True, False])
def test_the_gradient_reaches_the_encoder_where_it_is_asked_to(shapes_encoder, action):
    model, objective = build(action=action, shapes_encoder=shapes_encoder)
    # From states 0 and 1 to 1 and 2, towards 4: 2 is only ever a next state, 3 is never seen.
    batch = windows(torch.tensor([0, 1]), torch.tensor([1, 1]), torch.tensor([4, 4]))
    reached = head_gradient(model, objective, batch).abs().amax(dim=1) > 1e-6
    assert reached.tolist() == [shapes_encoder, shapes_encoder, False, False, shapes_encoder]
    taught = [name for name, one in objective.named_parameters() if one.grad is not None and one.grad.any()]
    assert any(name.startswith("learner.") for name in taught)
    assert not any(".average." in name for name in taught)


def test_the_loss_adds_the_bellman_error_by_values_that_lag_behind():
    config = TDConfig(discount=DISCOUNT, expectile=0.8, target_decay=0.75)
    model, objective = build(config, weight=0.3)
    batch = windows(torch.tensor([0, 2]), torch.tensor([1, -1]), torch.tensor([1, 4]))
    values = objective.learner.values
    latents, goals = (
        model.encode_frames(batch.windows.observations),
        model.encode_frames(batch.goals[:, None]),
    )
    with torch.no_grad():
        following = values(latents[:, 1:], goals).clone()
        values.members[0].log_scale.add_(0.5)  # the average stays behind
    targets = batch.rewards[..., None] + DISCOUNT * (~batch.terminal).float()[..., None] * following
    due = expectile_loss(targets - values(latents[:, :-1], goals), 0.8)
    loss, metrics = objective(batch)
    torch.testing.assert_close(metrics["head"], due.detach())
    torch.testing.assert_close(loss, objective.objective(batch.windows)[0] + 0.3 * due)
    assert {"prediction", "variance", "head_error", "head_value", "head_disagreement"} <= set(metrics)
    objective.follow()
    lag = values.members[0].log_scale - objective.learner.following.average.average.members[0].log_scale
    assert lag.item() == pytest.approx(0.75 * 0.5)


def test_stages_with_a_distance_or_companions_are_learned_from_as_well():
    """The companion is no frame of the window: its pixel, state 3, shapes the scene and no value."""
    batch = windows(torch.tensor([0, 1]), torch.tensor([1, 1]), torch.tensor([4, 4]))
    model, plain = build()
    weights = replace(WEIGHTS, value=1.0)
    distance = ValueObjective(model, _Gap(), weights, value=ValueConfig(batch_goals=2, discount=DISCOUNT))
    joint = CoTrainedObjective(JointObjective(PredictionObjective(model, weights), distance), plain.learner)
    scene = CoTrainedObjective(
        SceneObjective(PredictionObjective(model, WEIGHTS), scene_width=2), plain.learner
    )
    met = CompanionSegments(segments=batch.windows, companions=pictures(torch.tensor([3, 3])))
    due = head_gradient(model, plain, batch)
    torch.testing.assert_close(head_gradient(model, joint, batch), due, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        head_gradient(model, scene, replace(batch, windows=met)), due, atol=1e-5, rtol=1e-4
    )


class _Gap(nn.Module):
    """Squared, so smooth everywhere."""

    def forward(self, source, goal):
        return (source - goal).square().sum(-1)

    def pairwise(self, sources, goals):
        return self(sources[:, :, None], goals[:, None])
