"""Noise with a colour, and noise that knows the bounds only.

Timmer & König, "On generating power law noise", Astronomy and Astrophysics 300, 1995; for planning: Pinneri
et al., "Sample-efficient Cross-Entropy Method for Real-time Planning", CoRL 2020 (arXiv:2008.06389).

    paper               here
    beta                exponent      power falls with frequency f as f^-beta
    C^beta(d, h)        `coloured`

Departs from the papers: white noise is filtered in the frequency domain instead of drawing the frequencies.
The distribution is the same, and with exponent 0 so are the numbers.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from jepaplan.planners.proposals import BoxBound, NormBound, Randomness, around, unit_noise
from jepaplan.types import InputError, Plan


@dataclass(frozen=True, kw_only=True)
class ColouredNoise:
    """The current plan and noise whose power falls with frequency as f^-exponent: slow motions are common.

    Single steps deviate as the plan says. Below the lowest frequency that fits into the horizon, 1 / H, the
    spectrum is flat.
    """

    exponent: float = 2.0  # 0 is white, 1 pink, 2 red; iCEM uses 2 to 4

    def __post_init__(self) -> None:
        """Refuse blue noise."""
        check_exponent(self.exponent)

    def sample(self, current: Plan, samples: int, generator: Randomness) -> Float[Tensor, "B S H A"]:
        """Candidates around the plan's mean."""
        return around(current, coloured(unit_noise(current, samples, 0.0, generator), self.exponent))


@dataclass(frozen=True, kw_only=True)
class UniformNoise:
    """Anything allowed is equally likely at every step, whatever the current plan says."""

    bounds: NormBound | BoxBound

    def sample(self, current: Plan, samples: int, generator: Randomness) -> Float[Tensor, "B S H A"]:
        """Candidates spread evenly over the bounds."""
        problems, horizon, components = current.mean.shape
        return self.bounds.uniform(current.mean.new_empty(problems, samples, horizon, components), generator)


def coloured(white: Float[Tensor, "B S H A"], exponent: float) -> Float[Tensor, "B S H A"]:
    """White noise of deviation 1, filtered so that its power is f^-exponent and its deviation still 1."""
    horizon = white.shape[2]
    if exponent == 0:
        return white
    # the Fourier transform knows no half precision; filtering real noise keeps it real and Gaussian
    wide = white.to(torch.promote_types(white.dtype, torch.float32))
    frequency = torch.fft.rfftfreq(horizon, dtype=wide.dtype, device=wide.device).clamp(min=1 / horizon)
    gain = frequency.pow(-exponent / 2)
    # each frequency between zero and Nyquist stands for its negative as well
    both = torch.full_like(gain, 2.0)
    both[0] = 1.0
    if horizon % 2 == 0:
        both[-1] = 1.0
    gain = gain / ((both * gain.square()).sum() / horizon).sqrt()
    return torch.fft.irfft(torch.fft.rfft(wide, dim=2) * gain[:, None], n=horizon, dim=2).to(white.dtype)


def check_exponent(exponent: float) -> None:
    """Refuse noise that is wild at the shortest times."""
    if not 0 <= exponent < math.inf:
        raise InputError(
            f"the exponent says how fast the noise's power falls with frequency, 0 or more; got {exponent}"
        )
