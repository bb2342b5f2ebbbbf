"""Is the latent alive, and does the predictor know more than "nothing moves"?

Garrido et al., "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised Representations by
Their Rank", arXiv 2210.02885, equations 1 and 2.

    paper       here
    Z           latents           one row per sample
    sigma_k     singular values   of the centred latents
    RankMe(Z)   effective_rank    exp of the entropy of sigma_k / sum sigma

Departs from the paper: latents are centred first, because an offset common to all samples carries no
information and would hide the rest. The rank of a point is 1.

The copy baseline answers a rollout with the latent it started from. A predictor that does not beat it has
learned nothing about actions, however small its loss.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from jepaplan.types import InputError

COLLAPSED_SPREAD = 1e-2  # spread of the samples beside their distance from the origin; below, all look alike
DEAD_DIMENSION = 1e-2  # std beside the root mean square std; below, the dimension does not take part
DEGENERATE_RANK = 2.0  # a latent on a curve has about one effective dimension; any world has more


@dataclass(frozen=True, kw_only=True)
class Health:
    """Numbers that tell a living latent from a dead one, and what they mean in words."""

    samples: int
    width: int
    effective_rank: float  # dimensions in use, between 1 and min(samples, width)
    spread: float  # standard deviation of the samples over their root mean square; 0 for one point
    std_min: float  # over dimensions, in units of the latent
    std_median: float
    dead_fraction: float  # dimensions that hardly move beside the typical one
    rollout_errors: dict[int, float]  # horizon in model steps -> mean squared error of the predictor
    copy_errors: dict[int, float]  # the same for a predictor that repeats the first latent
    warnings: list[str]

    def metrics(self) -> dict[str, float]:
        """The numbers under flat names, for a learning curve."""
        numbers = {
            "effective_rank": self.effective_rank,
            "spread": self.spread,
            "std_min": self.std_min,
            "std_median": self.std_median,
            "dead_fraction": self.dead_fraction,
        }
        for horizon, error in self.rollout_errors.items():
            numbers[f"rollout_error_{horizon}"] = error
            numbers[f"copy_error_{horizon}"] = self.copy_errors[horizon]
        return {f"health/{name}": number for name, number in numbers.items()}


def effective_rank(latents: Float[Tensor, "samples D"]) -> float:
    """How many dimensions the samples use: exp of the entropy of the normalised singular values."""
    if not latents.isfinite().all():
        return math.nan
    centred = (latents - latents.mean(dim=0)).double()
    values = torch.linalg.svdvals(centred)
    # Rounding alone has a full rank, so below it the samples are one point.
    if values.sum() <= 1e-6 * latents.double().norm() or values.sum() == 0:
        return 1.0
    share = values / values.sum()
    return math.exp(torch.special.entr(share).sum().item())


def rollout_errors(
    predicted: Float[Tensor, "B path *latent"], observed: Float[Tensor, "B path *latent"]
) -> tuple[dict[int, float], dict[int, float]]:
    """Mean squared error of imagined paths by horizon (1, 2, 4, ..., last), and that of standing still."""
    last = predicted.shape[1] - 1
    if last < 1:
        raise InputError(
            "a path of one latent has no prediction in it; pass at least two, the first one observed"
        )
    horizons = sorted({2**power for power in range(last.bit_length()) if 2**power <= last} | {last})
    imagined = {step: (predicted[:, step] - observed[:, step]).square().mean().item() for step in horizons}
    copied = {step: (observed[:, 0] - observed[:, step]).square().mean().item() for step in horizons}
    return imagined, copied


@torch.no_grad()
def assess(
    latents: Float[Tensor, "*samples D"],
    predicted: Float[Tensor, "B path *latent"] | None = None,
    observed: Float[Tensor, "B path *latent"] | None = None,
) -> Health:
    """Examine encoded latents and, where given, imagined paths beside the observed ones."""
    rows = latents.flatten(0, -2).float()
    if rows.shape[0] < 2:
        raise InputError(
            f"health needs at least 2 latents to compare; got {rows.shape[0]}. Encode a whole batch."
        )
    if (predicted is None) != (observed is None):
        raise InputError(
            "imagined paths are judged beside the observed ones: pass both `predicted` and `observed`"
        )
    std = rows.std(dim=0, unbiased=False)
    size = rows.square().mean().sqrt()
    paths = ({}, {}) if predicted is None or observed is None else rollout_errors(predicted, observed)
    numbers = {
        "effective_rank": effective_rank(rows),
        "spread": (std.square().mean().sqrt() / size).item() if size > 0 else 0.0,
        "std_min": std.min().item(),
        "std_median": std.median().item(),
        "dead_fraction": (std <= DEAD_DIMENSION * std.square().mean().sqrt()).float().mean().item(),
    }
    samples, width = rows.shape
    words = _latent_warnings(numbers, width) + _rollout_warnings(*paths)
    return Health(
        samples=samples, width=width, rollout_errors=paths[0], copy_errors=paths[1], warnings=words, **numbers
    )


def _latent_warnings(numbers: dict[str, float], width: int) -> list[str]:
    if not all(math.isfinite(number) for number in numbers.values()):
        return ["the latent is not finite: training has diverged. Lower the learning rate or clip gradients."]
    if numbers["spread"] < COLLAPSED_SPREAD:
        return [
            "the latent has collapsed: all samples are nearly one point (their spread is "
            f"{numbers['spread']:.1e} of their "
            "size). Raise the weight of the variance term, or train without an objective that a constant "
            "solves."
        ]
    words: list[str] = []
    if numbers["effective_rank"] < min(DEGENERATE_RANK, width):
        words.append(
            f"the latent has nearly collapsed: it uses {numbers['effective_rank']:.1f} of {width} "
            "dimensions, about "
            "a line. Raise the weight of the covariance term."
        )
    if numbers["dead_fraction"] > 0.5:
        words.append(f"{numbers['dead_fraction']:.0%} of the latent's {width} dimensions hardly move.")
    return words


def _rollout_warnings(imagined: dict[int, float], copied: dict[int, float]) -> list[str]:
    worse = [step for step, error in imagined.items() if not error < copied[step]]
    if not worse:
        return []
    step = worse[0]
    return [
        f"the predictor does not beat standing still: at {'horizon' if len(worse) == 1 else 'horizons'} "
        f"{', '.join(map(str, worse))} repeating the last latent is no worse (error {imagined[step]:.3g} "
        "against "
        f"{copied[step]:.3g} after {step} model steps)."
    ]
