import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jepaplan.training.schedules import (
    Plateau,
    scaled_learning_rate,
    warmup_constant_cooldown,
    warmup_cosine,
)
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


def test_the_plateau_of_ten_updates_by_hand():
    plateau = Plateau(warmup_fraction=0.2, cooldown_fraction=0.3, initial_fraction=0.5, final_fraction=0.1)
    rates = [warmup_constant_cooldown(u, 10, 2.0, plateau) for u in range(10)]
    assert rates == pytest.approx([1.5, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.4, 0.8, 0.2])


@given(
    updates=st.integers(2, 500),
    warmup=st.floats(0, 0.5),
    cooldown=st.floats(0, 0.5),
    initial=st.floats(0, 1),
    final=st.floats(0, 1),
)
def test_the_plateau_rises_stays_and_falls(updates, warmup, cooldown, initial, final):
    plateau = Plateau(
        warmup_fraction=warmup, cooldown_fraction=cooldown, initial_fraction=initial, final_fraction=final
    )
    rates = [warmup_constant_cooldown(u, updates, 0.3, plateau) for u in range(updates)]
    rising, falling = (
        round(warmup * updates),
        min(round(cooldown * updates), updates - round(warmup * updates)),
    )
    assert all(a <= b + 1e-15 for a, b in pairwise(rates[:rising]))
    assert rates[rising : updates - falling] == [0.3] * (updates - rising - falling)
    assert all(a >= b - 1e-15 for a, b in pairwise(rates[max(rising - 1, 0) :]))
    if falling:
        assert rates[-1] == pytest.approx(0.3 * final, abs=1e-12)


def test_the_published_schedule_of_v_jepa_2():
    """12,000 updates of warm-up from 1e-4 to 5.25e-4, 228,000 constant, 12,000 to cool down."""
    plateau = Plateau(
        warmup_fraction=12 / 252,
        cooldown_fraction=12 / 252,
        initial_fraction=1e-4 / 5.25e-4,
        final_fraction=1e-6 / 5.25e-4,
    )
    rates = {u: warmup_constant_cooldown(u, 252_000, 5.25e-4, plateau) for u in (0, 11_999, 239_999, 251_999)}
    expected = {0: 1e-4 + 4.25e-4 / 12_000, 11_999: 5.25e-4, 239_999: 5.25e-4, 251_999: 1e-6}
    assert rates == pytest.approx(expected)


def test_fractions_that_are_more_than_everything_are_refused():
    with pytest.raises(InputError, match=r"0\.6 and a cool-down of 0\.5"):
        Plateau(warmup_fraction=0.6, cooldown_fraction=0.5)
    with pytest.raises(InputError, match="cooldown_fraction is a fraction"):
        Plateau(cooldown_fraction=1.5)


def test_an_update_beyond_the_last_is_refused():
    with pytest.raises(InputError, match=r"0 \.\. 9"):
        warmup_constant_cooldown(-1, 10, 1.0, Plateau())
    with pytest.raises(InputError, match=r"0 \.\. 9"):
        warmup_cosine(10, 10, 1.0)
