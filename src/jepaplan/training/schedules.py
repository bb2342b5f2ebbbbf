"""Learning rates: a linear warm-up, then half a cosine, or a constant rate that cools down along a line.

Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", arXiv 1608.03983, equation 5,
one cycle without restarts. Warm-up, constant, cool-down is the schedule of V-JEPA 2 (arXiv 2506.09985): the
length of the run need not be known before the cool-down begins. The scaling by batch is the linear rule of
Goyal et al., arXiv 1706.02677, with 256 as the reference.

    paper       here
    eta_max     peak             the learning rate at the end of the warm-up
    eta_min     peak * final_fraction
    T_cur, T_i  update, updates  the first update is number 0, the last number `updates - 1`
"""

import math
from dataclasses import dataclass

from jepaplan.types import InputError


def warmup_cosine(
    update: int, updates: int, peak: float, warmup_fraction: float = 0.1, final_fraction: float = 0.001
) -> float:
    """The learning rate of update number `update`.

    It rises linearly over the first `warmup_fraction` of all updates, never from zero (the first update
    learns something), is `peak` at the end of the warm-up and exactly `peak * final_fraction` at the last.
    """
    _refuse_beyond(update, updates)
    warmup = round(warmup_fraction * updates)
    if update < warmup:
        return peak * (update + 1) / warmup
    done = (update - warmup) / max(updates - 1 - warmup, 1)
    final = peak * final_fraction
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """Where a constant learning rate begins and ends, as fractions of all updates and of the rate."""

    warmup_fraction: float = 0.05  # of all updates
    cooldown_fraction: float = 0.05  # of all updates, at the end
    initial_fraction: float = 0.0  # of the peak; the warm-up starts from there
    final_fraction: float = 0.001  # of the peak; reached at the last update

    def __post_init__(self) -> None:
        for name in ("warmup_fraction", "cooldown_fraction", "initial_fraction", "final_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is a fraction between 0 and 1; got {getattr(self, name)}")
        if self.warmup_fraction + self.cooldown_fraction > 1:
            raise InputError(
                f"a warm-up of {self.warmup_fraction:g} and a cool-down of {self.cooldown_fraction:g} of all "
                "updates are more than all of them; together they are at most 1"
            )


def warmup_constant_cooldown(update: int, updates: int, peak: float, plateau: Plateau) -> float:
    """The learning rate of update number `update`: a line up, a plateau at `peak`, a line down.

    As in `warmup_cosine`, the first update is one step above where the warm-up starts, the last update of
    the warm-up is at `peak`, and the last update of all is exactly at the final rate.
    """
    _refuse_beyond(update, updates)
    warmup = round(plateau.warmup_fraction * updates)
    cooldown = min(round(plateau.cooldown_fraction * updates), updates - warmup)
    if update < warmup:
        initial = peak * plateau.initial_fraction
        return initial + (peak - initial) * (update + 1) / warmup
    left = updates - 1 - update  # updates after this one
    if left >= cooldown:
        return peak
    final = peak * plateau.final_fraction
    return final + (peak - final) * left / cooldown


def _refuse_beyond(update: int, updates: int) -> None:
    if not 0 <= update < updates:
        raise InputError(f"update {update} is not one of the {updates} updates 0 .. {updates - 1}")


def scaled_learning_rate(base: float, batch: int, reference: int = 256) -> float:
    """The learning rate for `batch` items where a paper quotes `base` for `reference` items."""
    return base * batch / reference
