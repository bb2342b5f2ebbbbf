import copy
from dataclasses import replace

import pytest
import torch

from jepaplan.data.normalise import ActionNormaliser, PixelNormaliser
from jepaplan.data.windows import WindowBatch
from jepaplan.models.encoders import CompactConfig, CompactEncoder
from jepaplan.models.predictors import MLPPredictor, PredictorConfig
from jepaplan.models.quasimetric import IQE
from jepaplan.models.value_heads import InverseDynamics, ValueHead, ValueHeadConfig
from jepaplan.models.world_model import LatentWorldModel
from jepaplan.objectives import vcreg
from jepaplan.objectives.contrastive import contrastive_loss
from jepaplan.objectives.iql import ValueConfig, distances_to_goals, goals_for, value_loss
from jepaplan.objectives.prediction import prediction_loss
from jepaplan.objectives.regressive import regressive_loss
from jepaplan.objectives.total import (
    JointObjective,
    LatentPredictionObjective,
    LatentSegments,
    LatentValueObjective,
    ObjectiveWeights,
    PredictionObjective,
    RegulariserConfig,
    ValueObjective,
)
from jepaplan.types import InputError

ALL = ObjectiveWeights(
    prediction=1.5,
    variance=2.0,
    covariance=3.0,
    time_variance=0.5,
    time_covariance=0.25,
    time_similarity=0.7,
    inverse_dynamics=1.2,
    value=0.3,
    pair_regression=0.1,
    contrastive=0.4,
    regressive=0.6,
)
VALUE = ValueConfig(batch_goals=4)


def world_model():
    torch.manual_seed(0)
    return LatentWorldModel(
        CompactEncoder(CompactConfig(image_size=16, latent_width=16, channels=(4, 4))),
        MLPPredictor(16, 2, PredictorConfig(hidden=16, layers=2)),
        PixelNormaliser(torch.tensor([0.4, 0.5]), torch.tensor([0.3, 0.3]), (2, 16, 16)),
        ActionNormaliser(torch.tensor([1.0, -1.0]), torch.tensor([2.0, 0.5])),
    )


def window_batch(items=6, steps=4):
    generator = torch.Generator().manual_seed(1)
    return WindowBatch(
        observations=torch.randint(
            0, 256, (items, steps + 1, 2, 16, 16), dtype=torch.uint8, generator=generator
        ),
        actions=torch.randn(items, steps, 2, generator=generator),
        frames=torch.randint(0, 50, (items, 1), generator=generator) + torch.arange(steps + 1),
        episode=torch.arange(items),
        proprioception=None,
    )


def items(batch, part):
    return WindowBatch(
        observations=batch.observations[part],
        actions=batch.actions[part],
        frames=batch.frames[part],
        episode=batch.episode[part],
        proprioception=None,
    )


def build_prediction(model, weights=ALL, **options):
    torch.manual_seed(1)
    inverse = InverseDynamics(16, 2, hidden=8)
    return PredictionObjective(model, weights, inverse_dynamics=inverse, **options)


def build_value(model, weights=ALL, **options):
    distance = IQE(width=16, components=2)
    return ValueObjective(model.pixel_encoder, distance, weights, value=VALUE, **options)


def build_joint(model, **options):
    return JointObjective(build_prediction(model, **options), build_value(model, **options))


def test_the_prediction_objective_is_the_weighted_sum_of_its_parts():
    model, batch = world_model(), window_batch()
    objective = build_prediction(model)  # it leaves the parts of value objectives alone
    loss, metrics = objective(batch)

    encoded = torch.stack([model.encode(observations) for observations in batch.observations])
    actions = model.action_units.normalise(batch.actions)
    imagined = [encoded[:, 0]]
    for t in range(4):
        imagined.append(model.step(imagined[-1], actions[:, t]))
    read = objective.inverse_dynamics(encoded[:, :-1], encoded[:, 1:])
    expected = {
        "prediction": prediction_loss(torch.stack(imagined, 1), encoded),
        "variance": vcreg.variance(encoded[:, 0]),
        "covariance": vcreg.covariance(encoded[:, 0]),
        "time_variance": vcreg.time_variance(encoded[:, 1:]),
        "time_covariance": vcreg.time_covariance(encoded[:, 1:]),
        "time_similarity": vcreg.time_similarity(encoded),
        "inverse_dynamics": (read - actions).square().mean(),
    }
    for name, term in expected.items():
        torch.testing.assert_close(metrics[name], term.detach())
    total = sum(getattr(ALL, name) * term.item() for name, term in expected.items())
    assert loss.item() == pytest.approx(total, rel=1e-5)


def test_statistics_may_be_taken_over_all_frames():
    model, batch = world_model(), window_batch()
    encoded = model.encode_frames(batch.observations)
    weights = ObjectiveWeights(prediction=1.0, variance=1.0)
    _, metrics = PredictionObjective(model, weights, config=RegulariserConfig(all_frames=True))(batch)
    torch.testing.assert_close(metrics["variance"], vcreg.variance(encoded.flatten(0, 1)).detach())


def test_the_value_objective_is_the_bellman_error_of_its_distance():
    model, batch = world_model(), window_batch()
    objective = build_value(model, ObjectiveWeights(prediction=0.0, value=2.0))
    loss, metrics = objective(batch)
    encoded = model.encode_frames(batch.observations)
    distances, reached = distances_to_goals(encoded, batch.frames, objective.distance, 4)
    expected = value_loss(distances, reached, discount=0.98, expectile=0.8)
    torch.testing.assert_close(metrics["value"], expected.detach())
    torch.testing.assert_close(loss, 2 * expected)


@pytest.mark.parametrize("contrast", ["info_nce", "margin"])
def test_the_baselines_shape_all_successive_latents(contrast):
    model, batch = world_model(), window_batch()
    weights = ObjectiveWeights(prediction=0.0, contrastive=2.0, regressive=3.0, variance=0.5)
    config = RegulariserConfig(contrast=contrast, contrast_scale=0.7)
    loss, metrics = build_value(model, weights, config=config)(batch)
    encoded = model.encode_frames(batch.observations)
    contrastive = contrastive_loss(encoded, form=contrast, scale=0.7)
    regressive, variance = regressive_loss(encoded), vcreg.variance(encoded[:, 0])
    torch.testing.assert_close(loss, 2 * contrastive + 3 * regressive + 0.5 * variance)
    torch.testing.assert_close(metrics["contrastive"], contrastive.detach())
    torch.testing.assert_close(metrics["regressive"], regressive.detach())


def test_prediction_aims_at_the_target_encoder_and_does_not_move_it():
    model, batch = world_model(), window_batch()
    target = copy.deepcopy(model.pixel_encoder)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.add_(0.1)
    weights = ObjectiveWeights(prediction=1.0)
    objective = PredictionObjective(model, weights, target_encoder=target)
    loss, metrics = objective(batch)
    encoded = model.encode_frames(batch.observations)
    imagined = model.unroll(encoded[:, 0], model.action_units.normalise(batch.actions))
    expected = prediction_loss(imagined, target.encode_frames(batch.observations), detach_targets=True)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(parameter.grad is None for parameter in target.parameters())
    assert all(parameter.grad is not None for parameter in model.parameters())
    joint = JointObjective(
        PredictionObjective(model, ObjectiveWeights(value=1.0), target_encoder=target),
        build_value(model, ObjectiveWeights(value=1.0)),
    )
    torch.testing.assert_close(joint(batch)[1]["prediction"], metrics["prediction"])
    with pytest.raises(InputError, match=r"targets\(batch\)"):
        objective.terms(encoded, batch.actions)


def test_a_second_space_learns_from_latents_what_it_would_from_frames():
    model, batch = world_model(), window_batch()
    weights = ObjectiveWeights(prediction=0.0, value=2.0, pair_regression=0.5)
    value = build_value(model, weights)
    alone = LatentValueObjective(value)
    latents = model.encode_frames(batch.observations).detach()
    loss, _ = alone(LatentSegments(latents, batch.actions, batch.frames))
    torch.testing.assert_close(loss, value(batch)[0])
    loss.backward()
    assert set(alone.state_dict()) == {f"distance.{name}" for name in value.distance.state_dict()}
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(InputError, match="which frame is which"):
        alone(LatentSegments(latents, batch.actions))


def test_values_of_actions_see_all_goals_and_shape_no_latent():
    model, batch = world_model(), window_batch()
    torch.manual_seed(2)
    head = ValueHead(16, ValueHeadConfig(action=True, zero_at_goal=False), 2)
    weights = ObjectiveWeights(prediction=0.0, value=1.0)
    with_actions = replace(VALUE, action_values=True, own_goals=True)
    distance = IQE(width=16, components=2)
    objective = ValueObjective(model.pixel_encoder, distance, weights, action_values=head, value=with_actions)
    loss, _ = objective(batch)
    latents = model.encode_frames(batch.observations).detach()
    distances, reached = distances_to_goals(
        latents, batch.frames, distance, VALUE.batch_goals, own_goals=True
    )
    goals = goals_for(latents, batch.frames, VALUE.batch_goals, own_goals=True)
    assert goals.shape[1] == distances.shape[2]
    torch.testing.assert_close(distance(latents[:, :, None], goals[:, None]), distances)
    total = 0.0
    steps = batch.actions.shape[1]
    for t in range(steps):
        for g in range(goals.shape[1]):
            value = head(latents[:, t], goals[:, g], batch.actions[:, t])
            cost = (~reached[:, t, g]).float()
            outcome = -cost - VALUE.discount * distances[:, t + 1, g]
            error = value + distances[:, t, g]
            weight = torch.where(error < 0, 1 - VALUE.expectile, VALUE.expectile)
            total = total + (weight * error.square() + (value - outcome).square()).mean()
    torch.testing.assert_close(loss, total / (steps * goals.shape[1]))
    loss.backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    with pytest.raises(InputError, match="ValueConfig\\(action_values=True\\)"):
        ValueObjective(model.pixel_encoder, distance, weights, value=with_actions)
    with pytest.raises(InputError, match="got action_values=False and a module"):
        ValueObjective(model.pixel_encoder, distance, weights, action_values=head, value=VALUE)


def test_joint_is_the_sum_and_encodes_once(monkeypatch):
    model, batch = world_model(), window_batch()
    prediction, value = build_prediction(model), build_value(model)
    joint = JointObjective(prediction, value)
    calls = []
    encode = model.encode_frames
    monkeypatch.setattr(model, "encode_frames", lambda *given: calls.append(0) or encode(*given))
    loss, metrics = joint(batch)
    assert len(calls) == 1

    alone, _ = prediction(batch)
    encoded = model.encode_frames(batch.observations)
    value_terms = value.terms(encoded, batch.frames, batch.actions)
    expected = alone + sum(getattr(ALL, name) * term for name, term in value_terms.items())
    torch.testing.assert_close(loss, expected)
    assert {"prediction", "value", "pair_regression", "latent_std", "prediction_over_copy"} <= set(metrics)
    assert not any(metric.requires_grad for metric in metrics.values())


def test_every_tensor_of_a_joint_objective_has_one_name():
    """Weights are saved by name; safetensors refuses the same memory under two."""
    state = build_joint(world_model()).state_dict()
    places = [tensor.data_ptr() for tensor in state.values() if tensor.numel() > 0]
    assert len(places) == len(set(places))


@pytest.mark.parametrize("build", [build_prediction, build_value, build_joint])
def test_two_processes_minimise_what_one_would(build):
    """The rule of `training/distributed.py`: their mean loss is the loss of the global batch."""
    batch, gathered = window_batch(), []

    def remember(own):
        gathered.append(own)
        return own

    loss, _ = build(world_model(), gather=remember)(batch)
    losses = []
    for rank in range(2):
        part, answers = slice(3 * rank, 3 * rank + 3), iter(gathered)

        def gather(own, answers=answers, part=part):
            whole = next(answers)
            torch.testing.assert_close(own, whole[part])
            return whole

        losses.append(build(world_model(), gather=gather)(items(batch, part))[0])
    torch.testing.assert_close(sum(losses) / 2, loss)


def test_gradients_reach_every_part_that_learns():
    model, batch = world_model(), window_batch()
    joint = build_joint(model)
    joint(batch)[0].backward()
    assert all(parameter.grad is not None for parameter in joint.parameters())

    model = world_model()
    segments = LatentSegments(model.encode_frames(batch.observations).detach(), batch.actions)
    LatentPredictionObjective(model)(segments)[0].backward()
    assert all(parameter.grad is not None for parameter in model.predictor.parameters())
    assert all(parameter.grad is None for parameter in model.pixel_encoder.parameters())


def test_cached_latents_teach_the_predictor_what_frames_would():
    model, batch = world_model(), window_batch()
    segments = LatentSegments(model.encode_frames(batch.observations).detach(), batch.actions)
    cached, _ = LatentPredictionObjective(model)(segments)
    encoded, _ = PredictionObjective(model, ObjectiveWeights())(batch)
    torch.testing.assert_close(cached, encoded)


def test_a_predictor_learns_to_beat_the_frozen_world():
    """Latents that drift by their action: the ratio to copying falls far below one."""
    torch.manual_seed(0)
    model = world_model()
    actions = torch.randn(32, 4, 2)
    drift = model.action_units.normalise(actions) @ torch.randn(2, 16)
    start = torch.randn(32, 1, 16)
    latents = torch.cat([start, start + drift.cumsum(1)], dim=1)
    objective = LatentPredictionObjective(model)
    optimiser = torch.optim.Adam(model.predictor.parameters(), lr=3e-3)
    for _ in range(300):
        optimiser.zero_grad()
        loss, metrics = objective(LatentSegments(latents, actions))
        loss.backward()
        optimiser.step()
    assert metrics["prediction_over_copy"] < 0.1


def test_inverse_dynamics_learn_on_cached_latents_beside_the_predictor():
    """Latents that show their actions are read without error; the predictor learns what it would alone."""
    torch.manual_seed(0)
    model, inverse = world_model(), InverseDynamics(16, 2)
    actions = torch.randn(64, 4, 2)
    drift = model.action_units.normalise(actions) @ torch.randn(2, 16)
    start = torch.randn(64, 1, 16)
    segments = LatentSegments(torch.cat([start, start + drift.cumsum(1)], dim=1), actions)
    objective = LatentPredictionObjective(model, inverse)
    loss, metrics = objective(segments)
    torch.testing.assert_close(loss.detach(), metrics["prediction"] + metrics["inverse_dynamics"])
    alone, _ = LatentPredictionObjective(model)(segments)
    mine, theirs = (torch.autograd.grad(one, list(model.predictor.parameters())) for one in (loss, alone))
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    optimiser = torch.optim.Adam(inverse.parameters(), lr=3e-3)
    for _ in range(300):
        optimiser.zero_grad()
        loss, metrics = objective(segments)
        loss.backward()
        optimiser.step()
    assert metrics["inverse_dynamics"] < 0.01


def test_autocast_leaves_statistics_in_full_precision():
    model, batch = world_model(), window_batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss, metrics = build_joint(model)(batch)
    assert loss.dtype == torch.float32
    assert all(metric.dtype == torch.float32 for metric in metrics.values())
    full, _ = build_joint(world_model())(batch)
    torch.testing.assert_close(loss, full, rtol=0.05, atol=0.05)


def test_what_cannot_be_meant_is_refused():
    model = world_model()
    with pytest.raises(InputError, match="InverseDynamics"):
        PredictionObjective(model, ObjectiveWeights(inverse_dynamics=1.0))
    with pytest.raises(InputError, match="ObjectiveWeights"):
        build_value(model, ObjectiveWeights())
    with pytest.raises(InputError, match="both"):
        JointObjective(build_prediction(model), build_value(model, ObjectiveWeights(value=1.0)))
    with pytest.raises(InputError, match="variance=-1"):
        ObjectiveWeights(variance=-1.0)
