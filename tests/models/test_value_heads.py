"""What is true of values by construction, and how an ensemble is read."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.models.value_heads import (
    QuasimetricHeadConfig,
    Reading,
    ReadValue,
    ValueEnsemble,
    ValueHead,
    ValueHeadConfig,
    build_values,
    spread,
)
from jepaplan.types import InputError

QUASIMETRIC = QuasimetricHeadConfig(hidden=16, width=16, components=2)
SMALL = {"hidden": 16, "quasimetric": QUASIMETRIC}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def values(seed=0, members=3, **config):
    torch.manual_seed(seed)
    return build_values(ValueHeadConfig(**SMALL, **config), 6, members, action_dim=2)


def points(seed, *shape):
    return 3 * torch.randn(*shape, generator=seeded(seed))


@given(st.integers(0, 99), st.sampled_from(["network", "quasimetric"]))
@settings(max_examples=30, deadline=None)
def test_values_are_never_positive_and_nothing_is_to_pay_at_the_goal(seed, geometry):
    ensemble = values(seed, geometry=geometry)
    latents, goals = points(seed, 7, 6), points(seed + 1, 7, 6)
    assert (ensemble(latents, goals) <= 0).all()
    assert (ensemble(latents, goals) < 0).any()
    assert (ensemble(latents, latents) == 0).all()
    assert (values(seed, goal=False)(latents) < 0).all()
    assert (values(seed, action=True)(latents, goals, points(2, 7, 2)) <= 0).all()


def test_signs_and_the_zero_at_the_goal_can_be_given_up():
    latents = points(0, 200, 6)
    free = values(goal=False, nonpositive=False)(latents)
    assert (free > 0).any()
    assert (free < 0).any()
    assert (values(zero_at_goal=False)(latents, latents) < 0).all()


def test_a_quasimetric_value_obeys_the_triangle_inequality():
    ensemble = values(geometry="quasimetric", members=1)
    a, b, c = (points(seed, 50, 6) for seed in range(3))
    assert (ensemble(a, c) >= ensemble(a, b) + ensemble(b, c) - 1e-5).all()


@pytest.mark.parametrize("geometry", ["network", "quasimetric"])
def test_gradients_are_finite_at_the_goal(geometry):
    ensemble = values(geometry=geometry)
    latents = points(0, 4, 6).requires_grad_()
    Reading(by="lower_confidence")(ensemble(latents, latents.detach())).sum().backward()
    assert latents.grad.isfinite().all()
    assert all(
        parameter.grad.isfinite().all() for parameter in ensemble.parameters() if parameter.grad is not None
    )


def test_one_goal_for_many_latents_is_the_same_as_many_equal_goals():
    ensemble = values(action=True)
    latents, goals, actions = points(0, 2, 5, 3, 6), points(1, 2, 1, 1, 6), points(2, 2, 5, 1, 2)
    found = ensemble(latents, goals, actions)
    assert found.shape == (2, 5, 3, 3)
    spelled_out = ensemble(latents, goals.expand_as(latents), actions.expand(2, 5, 3, 2))
    torch.testing.assert_close(found, spelled_out)


def test_a_value_depends_on_what_it_was_built_for():
    latents, goals, actions = points(0, 4, 6), points(1, 4, 6), points(2, 4, 2)
    ensemble = values(action=True)
    assert not torch.allclose(ensemble(latents, goals, actions), ensemble(latents, goals, -actions))
    assert not torch.allclose(ensemble(latents, goals, actions), ensemble(latents, latents + 1, actions))
    with pytest.raises(InputError, match="built with action=True and was given no action"):
        ensemble(latents, goals)
    with pytest.raises(InputError, match="built with goal=False and was given one"):
        values(goal=False)(latents, goals)
    with pytest.raises(InputError, match="pass a goal"):
        values(geometry="quasimetric")(latents)


def test_members_are_heads_of_their_own_on_the_last_axis():
    ensemble = values(members=3)
    latents, goals = points(0, 4, 6), points(1, 4, 6)
    found = ensemble(latents, goals)
    for number, member in enumerate(ensemble.members):
        torch.testing.assert_close(found[..., number], member(latents, goals))
    assert not torch.allclose(found[..., 0], found[..., 1])


def test_readings_by_hand():
    members = torch.tensor([[-1.0, -3.0, -5.0], [-2.0, -2.0, -2.0]])
    deviation = (8 / 3) ** 0.5
    torch.testing.assert_close(Reading()(members), torch.tensor([-3.0, -2.0]))
    torch.testing.assert_close(Reading(by="minimum")(members), torch.tensor([-5.0, -2.0]))
    torch.testing.assert_close(spread(members), torch.tensor([deviation, 0.0]))
    cautious = Reading(by="lower_confidence", caution=0.5)(members)
    torch.testing.assert_close(cautious, torch.tensor([-3 - 0.5 * deviation, -2.0]))


@given(st.integers(0, 99), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_caution_lies_below_the_mean_and_grows(seed, members):
    drawn = points(seed, 9, members)
    mean, minimum = Reading()(drawn), Reading(by="minimum")(drawn)
    careful, more = (Reading(by="lower_confidence", caution=c)(drawn) for c in (0.5, 2.0))
    assert (minimum <= mean + 1e-6).all()
    assert (careful <= mean).all()
    assert (more <= careful).all()


def test_a_read_value_is_one_number_and_knows_where_its_members_disagree():
    ensemble = values(members=3)
    read = ReadValue(ensemble, Reading(by="minimum"))
    latents, goals = points(0, 4, 6), points(1, 4, 6)
    torch.testing.assert_close(read(latents, goals), ensemble(latents, goals).amin(-1))
    twins = ReadValue(ValueEnsemble([ensemble.members[0], ensemble.members[0]]))
    assert (read.disagreement(latents, goals) > 0).all()
    assert (twins.disagreement(latents, goals) == 0).all()


def test_nonsense_is_refused():
    with pytest.raises(InputError, match="geometry='network'"):
        ValueHeadConfig(geometry="quasimetric", goal=False)
    with pytest.raises(InputError, match="action_dim=0"):
        ValueHead(6, ValueHeadConfig(action=True))
    with pytest.raises(InputError, match="members=0"):
        build_values(ValueHeadConfig(), 6, 0)
    with pytest.raises(InputError, match="caution"):
        Reading(caution=-1.0)
