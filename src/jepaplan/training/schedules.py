"""Learning rates: a linear warm-up, then half a cosine.

Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", arXiv 1608.03983, equation 5,
one cycle without restarts. The scaling by batch is the linear rule of Goyal et al., arXiv 1706.02677, with
256 as the reference.

    paper       here
    eta_max     peak             the learning rate at the end of the warm-up
    eta_min     peak * final_fraction
    T_cur, T_i  update, updates  the first update is number 0, the last number `updates - 1`
"""

import math

from jepaplan.types import InputError


def warmup_cosine(
    update: int, updates: int, peak: float, warmup_fraction: float = 0.1, final_fraction: float = 0.001
) -> float:
    """The learning rate of update number `update`.

    It rises linearly over the first `warmup_fraction` of all updates, never from zero (the first update
    learns something), is `peak` at the end of the warm-up and exactly `peak * final_fraction` at the last.
    """
    if not 0 <= update < updates:
        raise InputError(f"update {update} is not one of the {updates} updates 0 .. {updates - 1}")
    warmup = round(warmup_fraction * updates)
    if update < warmup:
        return peak * (update + 1) / warmup
    done = (update - warmup) / max(updates - 1 - warmup, 1)
    final = peak * final_fraction
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * done))


def scaled_learning_rate(base: float, batch: int, reference: int = 256) -> float:
    """The learning rate for `batch` items where a paper quotes `base` for `reference` items."""
    return base * batch / reference
