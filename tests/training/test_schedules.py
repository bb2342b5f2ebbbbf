import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jepaplan.training.schedules import scaled_learning_rate, warmup_cosine
from jepaplan.types import InputError


def test_the_schedule_of_ten_updates_by_hand():
    rates = [warmup_cosine(u, 10, peak=1.0, warmup_fraction=0.2, final_fraction=0.0) for u in range(10)]
    expected = [0.5, 1.0] + [0.5 * (1 + math.cos(math.pi * k / 7)) for k in range(8)]
    assert rates == pytest.approx(expected)


@given(
    updates=st.integers(2, 500),
    warmup=st.floats(0, 0.5),
    final=st.floats(1e-6, 1),
    peak=st.floats(1e-6, 1.0),
)
def test_it_rises_to_the_peak_falls_and_ends_where_promised(updates, warmup, final, peak):
    rates = [warmup_cosine(u, updates, peak, warmup, final) for u in range(updates)]
    top = rates.index(max(rates))
    assert all(a <= b for a, b in pairwise(rates[: top + 1]))
    assert all(a >= b - 1e-15 for a, b in pairwise(rates[top:]))
    assert max(rates) == pytest.approx(peak)
    assert min(rates) > 0
    if round(warmup * updates) < updates - 1:
        assert rates[-1] == pytest.approx(peak * final, abs=1e-12)


def test_no_warmup_starts_at_the_peak():
    assert warmup_cosine(0, 100, 0.3, warmup_fraction=0.0) == pytest.approx(0.3)


def test_the_published_rate_of_0_0028_at_a_batch_of_64():
    assert scaled_learning_rate(0.0028, 64) == pytest.approx(7e-4)


def test_an_update_beyond_the_last_is_refused():
    with pytest.raises(InputError, match=r"0 \.\. 9"):
        warmup_cosine(10, 10, 1.0)
