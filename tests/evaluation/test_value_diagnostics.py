import math

import pytest
import torch

from jepaplan.evaluation.value_diagnostics import (
    calibration,
    candidate_regret,
    costs_to_go,
    diagnose,
    rank_correlation,
)
from jepaplan.types import InputError


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def table(seed=0, problems=60, candidates=8):
    return 20 * torch.rand(problems, candidates, generator=seeded(seed))


def test_the_truth_is_perfect_and_any_increasing_function_of_it_ranks_and_picks_as_well():
    true = table()
    found = diagnose(true, true, seeded(1))
    assert (found.rank_correlation.mean, found.regret.steps.mean, found.calibration_error) == (1, 0, 0)
    assert all(one.predicted == pytest.approx(one.true) for one in found.calibration)
    bent = diagnose(true.square(), true, seeded(1))
    assert (bent.rank_correlation.mean, bent.regret.share.mean) == (1, 0)
    assert bent.calibration_error > 50


def test_minus_the_truth_is_as_wrong_as_can_be():
    true = torch.tensor([[1.0, 2.0, 6.0], [3.0, 9.0, 3.0]])
    assert rank_correlation(-true, true, seeded(0)).mean == pytest.approx(-1)
    regret = candidate_regret(-true, true, seeded(0))
    assert regret.steps.mean == pytest.approx((5 + 6) / 2)
    assert regret.share.mean == pytest.approx((5 + 6) / (2 + 2))  # blind: 3 - 1 and 5 - 3


def test_a_constant_ranks_nothing_and_picks_blindly():
    true = table()
    constant = torch.zeros_like(true)
    assert rank_correlation(constant, true, seeded(0)).mean == 0
    assert candidate_regret(constant, true, seeded(0)).share.mean == pytest.approx(1)


def test_noise_does_as_blind_choice_does_within_the_interval():
    true, noise = table(0, 400), table(1, 400)
    rank, regret = rank_correlation(noise, true, seeded(2)), candidate_regret(noise, true, seeded(2))
    assert rank.low < 0 < rank.high
    assert regret.share.low < 1 < regret.share.high
    assert rank.high - rank.low < 0.15


def test_candidates_without_a_way():
    true = torch.tensor([[1.0, 4.0, math.inf], [math.inf, 2.0, 5.0], [math.inf, math.inf, math.inf]])
    predicted = torch.tensor([[2.0, 3.0, 1.0], [9.0, 5.0, 6.0], [1.0, 2.0, 3.0]])
    regret = candidate_regret(predicted, true, seeded(0))
    assert regret.steps.count == 2
    assert regret.steps.mean == pytest.approx((3 + 0) / 2)  # the dead end counts as the worst way
    assert regret.stranded == pytest.approx(0.5)
    # Problem 1: ranks (2, 3, 1) against (1, 2, 3), rho = -1/2; problem 2: perfect; problem 3 asks nothing.
    assert rank_correlation(predicted, true, seeded(0)).mean == pytest.approx((-0.5 + 1) / 2)


def test_calibration_by_hand():
    predicted = torch.tensor([[1.0, 10.0], [2.0, 20.0]])
    true = torch.tensor([[2.0, 30.0], [4.0, 50.0]])
    near, far = calibration(predicted, true, seeded(0), bins=2)
    assert (near.predicted, near.true, near.count) == (1.5, 3.0, 2)
    assert (far.predicted, far.true, far.count) == (15.0, 40.0, 2)
    assert near.low <= near.true <= near.high
    error = diagnose(predicted, true, seeded(0), bins=2).calibration_error
    assert error == pytest.approx((1.5 + 25) / 2)


def test_the_intervals_of_calibration_cover_the_mean_they_estimate():
    """States with noise around a known line; a problem shares one shift, so states are not independent."""
    covered = 0
    for seed in range(40):
        predicted = table(seed, 80, 6)
        shift = torch.randn(80, 1, generator=seeded(seed + 1000))
        true = predicted + 30 + 2 * shift
        (only,) = calibration(predicted, true, seeded(seed), bins=1)
        covered += only.low < only.predicted + 30 < only.high
    assert covered >= 34


def test_a_value_enters_with_a_minus_sign():
    candidates, goals = torch.randn(3, 4, 2, generator=seeded(0)), torch.randn(3, 2, generator=seeded(1))
    found = costs_to_go(lambda latent, goal: -(latent - goal).norm(dim=-1), candidates, goals)
    torch.testing.assert_close(found, torch.cdist(goals[:, None], candidates)[:, 0])


def test_nonsense_is_refused():
    with pytest.raises(InputError, match=r"same problems and candidates; got \(0, 3\)"):
        rank_correlation(torch.zeros(0, 3), torch.zeros(0, 3), seeded(0))
    with pytest.raises(InputError, match="finite"):
        candidate_regret(table() * math.nan, table(), seeded(0))
    with pytest.raises(InputError, match="nothing to rank"):
        rank_correlation(table(), torch.ones_like(table()), seeded(0))
    with pytest.raises(InputError, match="fewer bins"):
        calibration(table(0, 2, 2), table(0, 2, 2), seeded(0), bins=5)
