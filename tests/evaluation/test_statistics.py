import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.evaluation.statistics import (
    SuccessRate,
    average_ranks,
    bootstrap_interval,
    compare,
    compare_over_seeds,
    mcnemar_exact,
    over_seeds,
    seeds_interval,
    sign_flip_test,
    spearman,
    t_test,
    wilson_interval,
)
from jepaplan.types import InputError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# Made with scipy.stats.binomtest(k, n).proportion_ci(method="wilson"), scipy 1.17.1.
@pytest.mark.parametrize(
    "successes, trials, low, high",
    [
        (50, 50, 0.9286524008666412, 1.0),
        (0, 10, 0.0, 0.27753279986288926),
        (5, 10, 0.236593090512564, 0.7634069094874361),
        (48, 50, 0.8653990931249297, 0.9889611156723802),
        (142, 200, 0.6436252189922268, 0.7684597439293211),
    ],
)
def test_wilson_agrees_with_known_values(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=1e-12)


def test_a_success_rate_prints_itself_with_its_interval():
    assert str(SuccessRate(50, 50)) == "1.00 [0.93, 1.00] (50/50)"


@settings(deadline=None)
@given(trials=st.integers(1, 500), share=st.floats(0, 1))
def test_wilson_contains_the_rate_and_mirrors_failures(trials, share):
    successes = round(share * trials)
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    assert low < high
    mirrored = wilson_interval(trials - successes, trials)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_impossible_counts_are_refused():
    with pytest.raises(InputError, match="successes=11, trials=10"):
        SuccessRate(11, 10)
    with pytest.raises(InputError, match="at least one trial"):
        SuccessRate(0, 0)


# scipy.stats.binomtest(wins, wins + losses).pvalue; 0.0625 = 2 / 2**5 by hand.
@pytest.mark.parametrize(
    "wins, losses, p",
    [(8, 2, 0.109375), (15, 3, 0.007537841796875), (0, 5, 0.0625), (1, 0, 1.0), (0, 0, 1.0)],
)
def test_mcnemar_agrees_with_known_values(wins, losses, p):
    assert mcnemar_exact(wins, losses) == pytest.approx(p)
    assert mcnemar_exact(losses, wins) == pytest.approx(p)


def test_comparison_counts_pairs_and_says_what_they_mean():
    ours = torch.tensor([True] * 18 + [False] * 2)
    theirs = torch.tensor([True] * 8 + [False] * 12)
    record = compare(("value-guided", ours), ("baseline", theirs), seeded())
    assert (record.wins, record.losses, record.ties) == (10, 0, 10)
    assert record.difference == pytest.approx(0.5)
    assert record.low < 0.5 < record.high
    assert "value-guided succeeds 50 percentage points more often than baseline" in record.words()
    assert "value-guided alone solved 10 instances, baseline alone 0" in record.words()


def test_comparison_of_near_equals_claims_nothing():
    ours, theirs = torch.tensor([True, False, True, True]), torch.tensor([True, True, True, False])
    record = compare(("a", ours), ("b", theirs), seeded())
    assert record.p == 1.0
    assert "cannot be told apart" in record.words()


def test_comparison_refuses_other_instances():
    with pytest.raises(InputError, match="same instance file"):
        compare(("a", torch.ones(3, dtype=torch.bool)), ("b", torch.ones(4, dtype=torch.bool)), seeded())


def test_bootstrap_matches_the_normal_theory_of_the_mean():
    values = torch.randn(400, generator=seeded(1), dtype=torch.float64)
    low, high = bootstrap_interval(values, seeded(2))
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(float(values.mean() - half), abs=0.02)
    assert high == pytest.approx(float(values.mean() + half), abs=0.02)


def test_seeds_that_differ_widen_the_interval_beyond_that_of_instances():
    agreeing = (torch.rand(1, 200, generator=seeded(3)) < 0.7).repeat(3, 1)
    differing = torch.stack([torch.rand(200, generator=seeded(4)) < share for share in (0.4, 0.7, 1.0)])
    narrow, wide = over_seeds(agreeing, seeded()), over_seeds(differing, seeded())
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
    # Three copies of one outcome table are worth one table: the interval stays that of 200 instances.
    low, high = wilson_interval(int(agreeing[0].sum()), 200)
    assert narrow.high - narrow.low == pytest.approx(high - low, abs=0.015)


def test_unanimous_seeds_are_not_certainty():
    rate = over_seeds(torch.ones(3, 50, dtype=torch.bool), seeded())
    assert (rate.successes, rate.trials) == (150, 150)
    assert rate.low == pytest.approx(0.92865, abs=1e-4)


# scipy.stats.spearmanr, scipy 1.17.1.
@pytest.mark.parametrize(
    "first, second, expected",
    [
        ([1, 2, 2, 3, 5, 4, 7], [3, 1, 4, 1, 5, 9, 2], 0.22727272727272727),
        ([0.3, 1.2, -4, 8, 8, 8], [1, 1, 2, 5, 0, 5], 0.1875916198442167),
    ],
)
def test_rank_correlation_agrees_with_known_values(first, second, expected):
    assert spearman(torch.tensor(first).float(), torch.tensor(second).float()) == pytest.approx(expected)


@settings(deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12))
def test_ranks_are_the_mean_over_all_orders_of_ties(values):
    tensor = torch.tensor(values).float()
    below = (tensor[None] < tensor[:, None]).sum(1)
    equal = (tensor[None] == tensor[:, None]).sum(1)
    expected = below + (equal + 1) / 2
    torch.testing.assert_close(average_ranks(tensor), expected.double())


@settings(deadline=None)
@given(st.permutations(list(range(7))))
def test_rank_correlation_is_blind_to_increasing_functions(order):
    first, second = torch.arange(7).float(), torch.tensor(order).float()
    assert spearman(first, second.exp()) == pytest.approx(spearman(first, second))
    inversions = [(order.index(a) - order.index(b)) for a, b in itertools.pairwise(range(7))]
    assert (spearman(first, second) == pytest.approx(1.0)) == all(step < 0 for step in inversions)


def test_rank_correlation_of_a_constant_is_not_a_number():
    assert math.isnan(spearman(torch.zeros(4), torch.arange(4).float()))


def outcomes(*rows):
    return torch.tensor(rows, dtype=torch.bool)


@settings(deadline=None, max_examples=25)
@given(seeds=st.integers(1, 4), instances=st.integers(1, 12), seed=st.integers(0, 99))
def test_a_method_does_not_differ_from_itself_and_two_differ_alike_in_both_directions(seeds, instances, seed):
    first, second = torch.rand(2, seeds, instances, generator=seeded(seed)) < 0.5
    same = compare_over_seeds(first, first, seeded(), resamples=100)
    assert (same.mean, same.low, same.high, same.p, same.verdict) == (0, 0, 0, 1, "open")
    there = compare_over_seeds(first, second, seeded(), resamples=100)
    back = compare_over_seeds(second, first, seeded(), resamples=100)
    assert (there.mean, there.p) == pytest.approx((-back.mean, back.p))
    assert there.mean == pytest.approx(float(first.double().mean() - second.double().mean()))
    assert there.low <= there.mean + 1e-12
    assert there.mean - 1e-12 <= there.high


def test_one_seed_is_an_ordinary_paired_comparison():
    ours, theirs = outcomes([True] * 18 + [False] * 2), outcomes([True] * 8 + [False] * 12)
    record = compare(("ours", ours[0]), ("theirs", theirs[0]), seeded())
    over = compare_over_seeds(ours, theirs, seeded())
    assert over.mean == pytest.approx(record.difference)
    assert (over.low, over.high) == pytest.approx((record.low, record.high), abs=0.051)  # other draws
    assert over.p == pytest.approx(mcnemar_exact(10, 0))
    assert over.verdict == "holds"


def test_a_difference_of_some_seeds_only_stays_open():
    """All instances agree, the seeds do not: the bootstrap alone would be sure."""
    ours = outcomes([True] * 20, [True] * 20, [True] * 8 + [False] * 12)
    record = compare_over_seeds(ours, ~ours & False, seeded())
    assert record.low > 0
    assert record.p == pytest.approx(1 - 4 / math.sqrt(18))  # t = 4 of two degrees of freedom
    assert record.verdict == "open"


def test_few_instances_stay_open():
    """Four wins and no loss: the bootstrap alone would be sure, McNemar is not."""
    record = compare_over_seeds(outcomes([True] * 4 + [False] * 46), outcomes([False] * 50), seeded())
    assert record.low > 0
    assert (record.p, record.verdict) == (0.125, "open")


def test_other_seeds_or_instances_cannot_be_compared():
    with pytest.raises(InputError, match=r"got outcomes of shape \(2, 3\) and \(1, 3\)"):
        compare_over_seeds(torch.zeros(2, 3).bool(), torch.zeros(1, 3).bool(), seeded())


def test_the_interval_over_seeds_is_that_of_resampled_tables():
    """Against the definition, written out: draw rows, draw columns, take the mean."""
    values = torch.rand(3, 7, generator=seeded(1), dtype=torch.float64)
    generator = seeded(2)
    rows = torch.randint(3, (500, 3), generator=generator)
    columns = torch.randint(7, (500, 7), generator=generator)
    means = torch.stack([values[r][:, c].mean() for r, c in zip(rows, columns, strict=True)])
    expected = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert seeds_interval(values, seeded(2), resamples=500) == pytest.approx(tuple(expected), abs=1e-12)


@settings(deadline=None)
@given(gains=st.lists(st.integers(-3, 3), min_size=1, max_size=8))
def test_sign_flips_are_counted(gains):
    """Against enumeration of all signs."""
    sums = [
        sum(sign * gain for sign, gain in zip(signs, gains, strict=True))
        for signs in itertools.product((-1, 1), repeat=len(gains))
    ]
    expected = sum(abs(one) >= abs(sum(gains)) for one in sums) / len(sums)
    assert sign_flip_test(torch.tensor(gains)) == pytest.approx(expected)


# scipy.stats.ttest_1samp(values, 0).pvalue, scipy 1.17.1; equal values leave no doubt.
@pytest.mark.parametrize(
    "values, p",
    [
        ([0.3, 0.1, 0.25, 0.4], 0.02463207889211514),
        ([0.1, 0.2], 0.20483276469913345),
        ([-0.5, 0.5], 1.0),
        ([0.2, 0.2, 0.2], 0.0),
        ([0.0, 0.0], 1.0),
    ],
)
def test_students_test_agrees_with_known_values(values, p):
    assert t_test(torch.tensor(values, dtype=torch.float64)) == pytest.approx(p, abs=1e-6)
