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

An objective whose only protection is a moving average can also collapse in part: its loss drops, and rank,
spread and use of the latent fall behind what they were (V-JEPA 2's authors tell users to expect this and to
watch more than the loss: facebookresearch/vjepa2, issues 44, 56, 74, 109). `CollapseWatch` holds each look
beside the best one so far; `running_probe` is a cheap measure of use.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
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
    probe_accuracy: float | None = None  # of `running_probe`, where labels are known

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
        if self.probe_accuracy is not None:
            numbers["probe_accuracy"] = self.probe_accuracy
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
    if numbers["effective_rank"] < min(DEGENERATE_RANK, 0.75 * width):
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


@dataclass(frozen=True, kw_only=True)
class CollapseLimits:
    """How far a number may fall behind its own best before it is worth a warning."""

    rank: float = 0.5  # share of the best effective rank that must be left
    std: float = 0.5  # share of the best standard deviation that must be left, in itself and beside the size
    probe: float = 0.15  # accuracy that may be lost; probes of few items are noisy, so not a share
    settle: int = 5  # looks before ranks count: that of random weights is high, and falls as they learn

    def __post_init__(self) -> None:
        for name in ("rank", "std", "probe"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"limits of a fall lie between 0 and 1; got {name}={getattr(self, name)}")
        if self.settle < 0:
            raise InputError(f"settle counts looks, so it is not negative; got {self.settle}")


_RANK, _STD, _SPREAD, _PROBE = (
    f"health/{name}" for name in ("effective_rank", "std_median", "spread", "probe_accuracy")
)
_WORDS = {
    _RANK: "effective rank",
    _STD: "standard deviation (median over its dimensions)",
    _SPREAD: "spread beside its size",
    _PROBE: "running probe's accuracy",
}


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """How often the latent was looked at, and the best of each watched number; state in, state out."""

    looks: int = 0
    best: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def after(self, row: Mapping[str, Any], limits: CollapseLimits) -> "Peaks":
        """With one more row of metrics; rows without a look at the latent change nothing."""
        if _RANK not in row:
            return self
        best = dict(self.best)
        for name in _WORDS:
            value = row.get(name)
            counts = name != _RANK or self.looks >= limits.settle
            if counts and value is not None and math.isfinite(value):
                best[name] = max(value, best.get(name, -math.inf))
        return Peaks(looks=self.looks + 1, best=best)


class CollapseWatch:
    """Adds a warning to each look at the latent that is far worse than the best look before.

    `peaks` is all it remembers. A run that may be killed passes `history`, the rows of its stage's learning
    curves so far, and has nothing to save.
    """

    def __init__(
        self,
        limits: CollapseLimits | None = None,
        history: Callable[[], Iterable[Mapping[str, Any]]] = tuple,
        peaks: Peaks | None = None,
    ) -> None:
        self.limits = limits or CollapseLimits()
        self.history = history
        self.peaks = peaks or Peaks()

    def judge(self, health: Health) -> Health:
        """The same look, with what it says beside the looks before."""
        recorded = Peaks()
        for row in self.history():
            recorded = recorded.after(row, self.limits)
        # The curves lag behind what this process saw, and know what earlier ones did.
        if recorded.looks > self.peaks.looks:
            self.peaks = recorded
        words = fallen(health.metrics(), self.peaks.best, self.limits)
        self.peaks = self.peaks.after(health.metrics(), self.limits)
        return dataclasses.replace(health, warnings=[*health.warnings, *words])


def fallen(now: Mapping[str, float], best: Mapping[str, float], limits: CollapseLimits) -> list[str]:
    """Words for each watched number that is too far below its best."""
    allowed = {
        _RANK: limits.rank * best.get(_RANK, -math.inf),
        _STD: limits.std * best.get(_STD, -math.inf),
        _SPREAD: limits.std * best.get(_SPREAD, -math.inf),
        _PROBE: best.get(_PROBE, -math.inf) - limits.probe,
    }
    return [
        f"the latent's {words} fell to {now[name]:.3g} from {best[name]:.3g} at its best: it may be "
        "collapsing in part, and a falling loss would be no comfort. Lower the learning rate or raise the "
        "decay of the target encoder, and go back to a checkpoint from before the fall."
        for name, words in _WORDS.items()
        if name in now and now[name] < allowed[name]
    ]


@torch.no_grad()
def running_probe(
    latents: Float[Tensor, "fitted D"],
    labels: Int[Tensor, " fitted"],
    held_out: Float[Tensor, "held D"],
    held_out_labels: Int[Tensor, " held"],
    ridge: float = 0.1,
) -> float:
    """Held-out accuracy of the linear map that regresses labels on latents, in closed form.

    `ridge` is the penalty as a share of the variance of a standardised number. The largest output is the
    answer; a constant latent answers with the most frequent label. Cheap and without chance, for watching a
    run; `evaluation.video_probes` measures what is reported.
    """
    if ridge <= 0 or len(latents) < 2:
        raise InputError(
            f"a running probe needs two labelled latents or more and a positive ridge; got {len(latents)} "
            f"and {ridge}"
        )
    fitted, tested = latents.double(), held_out.double()
    std, centre = torch.std_mean(fitted, dim=0, unbiased=False)
    # Rounding is no information: what varies by less than it counts as constant.
    alive = std > 1e-6 * fitted.square().mean().sqrt()
    scale = torch.where(alive, 1 / std, 0.0)
    inputs = (fitted - centre) * scale
    classes = int(torch.cat([labels, held_out_labels]).max()) + 1
    answers = F.one_hot(labels, classes).double()
    shares = answers.mean(0)
    gram = inputs.T @ inputs / len(inputs)
    penalty = ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weights = torch.linalg.solve(gram + penalty, inputs.T @ (answers - shares) / len(inputs))
    scores = (tested - centre) * scale @ weights + shares
    return (scores.argmax(-1) == held_out_labels).double().mean().item()
