"""Chunks stay within their episode, priors within their problems, and a mixture keeps its shares."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.planners.mppi import MPPI
from jepaplan.planners.proposals import GaussianNoise
from jepaplan.planners.proposals_bank import ActionPrior, Mixture, RecordedChunks, action_chunks
from jepaplan.types import InputError, Plan


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flat_plan(problems: int, horizon: int) -> Plan:
    mean = torch.zeros(problems, horizon, 2)
    return Plan(mean=mean, std=torch.ones_like(mean))


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), horizon=st.integers(1, 9))
def test_chunks_are_all_runs_within_an_episode(lengths: list[int], horizon: int):
    """Each action says which episode it is of and which step, so the chunks can be enumerated."""
    actions = torch.tensor([[e, t] for e, length in enumerate(lengths) for t in range(length)]).float()
    expected = [
        [[float(e), float(t + k)] for k in range(horizon)]
        for e, length in enumerate(lengths)
        for t in range(length - horizon + 1)
    ]
    if not expected:
        with pytest.raises(InputError, match="plan with a shorter horizon"):
            action_chunks(actions, torch.tensor(lengths), horizon)
    else:
        assert action_chunks(actions, torch.tensor(lengths), horizon).tolist() == expected


def test_a_limited_bank_is_a_random_part_of_the_whole():
    actions, lengths = torch.arange(100.0)[:, None], torch.tensor([40, 60])
    few = action_chunks(actions, lengths, 5, limit=10, generator=seeded(0))
    whole = {tuple(chunk) for chunk in action_chunks(actions, lengths, 5)[:, :, 0].tolist()}
    assert len({tuple(chunk) for chunk in few[:, :, 0].tolist()} & whole) == 10
    with pytest.raises(InputError, match="give a generator"):
        action_chunks(actions, lengths, 5, limit=10)
    with pytest.raises(InputError, match="got 100 actions of episodes with 90"):
        action_chunks(actions, torch.tensor([40, 50]), 5)


def test_candidates_are_chunks_and_chunks_with_noise():
    chunks = torch.randn(20, 8, 2, generator=seeded(1))
    bank = RecordedChunks(chunks=chunks, residual=0.1, exact=0.25)
    drawn = bank.sample(flat_plan(3, 5), 4000, seeded(0))
    off = (drawn[:, :, None] - chunks[:, :5]).abs().amax(dim=(-2, -1)).amin(dim=-1)
    assert (off[:, :1000] == 0).all()
    assert (off[:, 1000:] > 0).all()
    nearest = (drawn[:, :, None] - chunks[:, :5]).square().sum(dim=(-2, -1)).argmin(dim=-1)
    noise = drawn - chunks[:, :5][nearest]
    assert noise[:, 1000:].std().item() == pytest.approx(0.1, rel=0.02)
    share = nearest.flatten().bincount(minlength=20) / nearest.numel()
    torch.testing.assert_close(share, torch.full((20,), 0.05), rtol=0, atol=0.01)


def test_a_bank_of_other_plans_is_refused():
    bank = RecordedChunks(chunks=torch.zeros(3, 4, 2))
    with pytest.raises(InputError, match=r"horizon=5"):
        bank.sample(flat_plan(1, 5), 10, seeded(0))
    with pytest.raises(InputError, match="a chunk of one step or more"):
        RecordedChunks(chunks=torch.zeros(0, 4, 2))


def test_each_problem_is_searched_around_its_own_prior():
    target = torch.randn(3, 6, 2, generator=seeded(2)) * 5
    prior = ActionPrior(prior=lambda horizon: target[:, :horizon], std=0.2)
    drawn = prior.sample(flat_plan(3, 4), 4000, seeded(0))
    assert torch.equal(drawn[:, 0], target[:, :4])
    assert (drawn.mean(dim=1) - target[:, :4]).abs().max() < 0.02
    assert (drawn.std(dim=1) - 0.2).abs().max() < 0.02
    with pytest.raises(InputError, match="bind it to the problems that are planned now"):
        prior.sample(flat_plan(2, 4), 10, seeded(0))


def test_a_good_prior_finds_what_noise_cannot_reach():
    target = torch.randn(3, 6, 2, generator=seeded(2)) * 5

    def cost(actions: torch.Tensor) -> torch.Tensor:
        return (actions - target[:, None]).square().sum(dim=(-2, -1))

    plain = MPPI(samples=64, horizon=6, temperature=0.01)
    mixed = Mixture(
        parts=(ActionPrior(prior=lambda horizon: target + 0.05), GaussianNoise()), shares=(0.1, 0.9)
    )
    helped = MPPI(samples=64, horizon=6, temperature=0.01, proposal=mixed)
    blind, led = (
        planner.plan(cost, planner.initial(3, 2), seeded(0)).plan.mean for planner in (plain, helped)
    )
    assert (cost(led[:, None]) < 0.01 * cost(blind[:, None])).all()


@settings(deadline=None)
@given(samples=st.integers(1, 50), first=st.floats(0, 1))
def test_a_mixture_keeps_its_shares_and_its_order(samples: int, first: float):
    ones, noise = torch.ones(1, 3, 2), GaussianNoise()
    parts = (RecordedChunks(chunks=ones, exact=1.0), noise)
    drawn = Mixture(parts=parts, shares=(first, 1 - first)).sample(flat_plan(2, 3), samples, seeded(0))
    recorded = (drawn == 1).all(dim=-1).all(dim=-1)
    assert drawn.shape[1] == samples
    assert recorded.sum(dim=1).tolist() == [round(samples * first)] * 2
    assert recorded[:, : round(samples * first)].all()


def test_shares_that_are_none_are_refused():
    with pytest.raises(InputError, match="sum to one"):
        Mixture(parts=(GaussianNoise(), GaussianNoise()), shares=(0.5, 0.6))
    with pytest.raises(InputError, match="one for each"):
        Mixture(parts=(GaussianNoise(),), shares=(0.5, 0.5))
