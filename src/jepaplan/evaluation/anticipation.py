"""What a clip says about the time after it: probes of encoder and predictor tokens, and two simple guesses.

Assran et al., "V-JEPA 2", arXiv:2506.09985, action anticipation on Epic-Kitchens-100: the probe reads the
encoder's tokens of a clip and, beside them, what the predictor imagines at the tokens of a moment after its
end. Damen et al., "Rescaling Egocentric Vision", arXiv:2006.13256: mean over classes of recall at k.

    paper                       here
    anticipation time           seconds        from the end of the clip to the moment asked for
    N + h w int(s fps / t)      future_ids     tokens of one tubelet, s seconds after the end

Guesses from the known last place and velocity: the sprite stays, or goes on (`constant_velocity`); with
`box` the latter bounces and is an oracle of the generated task. Guesses rank classes by `nearness`.

Departs from the paper: one query per probe instead of one per kind of label, cross-entropy instead of a focal
loss, and one anticipation time instead of a range of them in training.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from jepaplan.data.sprite_videos import BouncingConfig
from jepaplan.evaluation.statistics import RESAMPLES, wilson_interval
from jepaplan.evaluation.value_diagnostics import Estimate
from jepaplan.models.masked_predictor import MaskedPredictor
from jepaplan.models.rotary import Grid
from jepaplan.models.video_vit import VideoTransformer
from jepaplan.types import InputError

WAVES = (4, 6, 6)  # of time, rows and columns
CODE = 2 * sum(WAVES)  # numbers


@dataclass(frozen=True, kw_only=True)
class AheadConfig:
    """Which moment after the clip the predictor is asked for."""

    # From the end of the clip, which is 1 / rate after its last frame began: what `BouncingConfig` asks for,
    # `ahead` seconds after the last frame, is at `ahead - 1 / rate`.
    seconds: float = 1.0
    rate: float = 8.0  # frames per second of the clip
    mask_index: int = 0  # which mask token stands for what is not seen

    def __post_init__(self) -> None:
        """Refuse moments that are no future."""
        if self.seconds < 0 or self.rate <= 0:
            raise InputError(f"the future lies ahead and frames have a rate; got {self}")


class TokensAhead(nn.Module):
    """Encoder tokens of a clip, followed by the predictor's of one tubelet after it, each with its place.

    Without a predictor, the clip's tokens only. Rotary positions are relative, so that a token hardly knows
    where in the picture it lies, and a probe that averages tokens could not say where anything is:
    `place_codes` tell it. Give it to `encode_clips`.
    """

    def __init__(
        self, encoder: VideoTransformer, predictor: MaskedPredictor | None, config: AheadConfig
    ) -> None:
        super().__init__()
        self.encoder, self.predictor, self.config = encoder, predictor, config

    def forward(self, clips: Float[Tensor, "B T C height width"]) -> Float[Tensor, "B K W"]:
        """The K tokens are the N of the clip, then the M of the moment ahead; W is D + `CODE`."""
        tokens, grid = self.encoder(clips), self.encoder.grid(clips)
        ids = torch.arange(tokens.shape[1], device=tokens.device)
        if self.predictor is not None:
            asked = future_ids(grid, self.encoder.config.tubelet, self.config).to(tokens.device)
            some = (ids.expand(len(clips), -1), asked.expand(len(clips), -1))
            imagined = self.predictor(tokens, *some, grid, self.config.mask_index)
            tokens, ids = torch.cat([tokens, imagined], dim=1), torch.cat([ids, asked])
        codes = place_codes(ids, grid).to(tokens.dtype)
        return torch.cat([tokens, codes.expand(len(clips), -1, -1)], dim=2)


def place_codes(ids: Int[Tensor, " K"], grid: Grid) -> Float[Tensor, "K code"]:
    """Sines and cosines of where tokens lie: `WAVES` of time, rows and columns, 0 to 1 across the grid.

    The longest wave is four grids long, so that no two places look alike, nor moments up to a clip's length
    after it.
    """
    _, rows, columns = grid
    places = (ids // (rows * columns), ids // columns % rows, ids % columns)
    codes: list[Tensor] = []
    for place, size, waves in zip(places, grid, WAVES, strict=True):
        halves = torch.arange(1, waves + 1, device=ids.device)
        angles = place[:, None] / max(1, size - 1) * halves * (math.pi / 2)
        codes += [angles.sin(), angles.cos()]
    return torch.cat(codes, dim=1)


def future_ids(grid: Grid, tubelet: int, config: AheadConfig) -> Int[Tensor, " M"]:
    """Ids of the tokens of one tubelet, counted on beyond the clip."""
    tubelets, rows, columns = grid
    # the small term keeps 0.3 s x 10 frames/s = 3 frames from becoming 2
    skipped = int(config.seconds * config.rate / tubelet + 1e-6)
    return (tubelets + skipped) * rows * columns + torch.arange(rows * columns)


def constant_velocity(
    places: Float[Tensor, "items 2"],
    velocities: Float[Tensor, "items 2"],
    seconds: float,
    box: tuple[float, float] | None = None,
) -> Float[Tensor, "items 2"]:
    """Where it will be if it goes on; at the lowest and highest coordinate of a `box` it bounces.

    Places and velocities of the generated task: `data.sprite_videos.bouncing_states`. The other guess, that
    nothing moves, is `places` itself.
    """
    ahead = places + velocities * seconds
    if box is None:
        return ahead
    low, room = box[0], box[1] - box[0]
    along = (ahead - low).remainder(2 * room)
    return low + torch.minimum(along, 2 * room - along)


def bin_centres(config: BouncingConfig) -> Float[Tensor, "classes 2"]:
    """Middle (x, y) of every cell of the bouncing task, row by row as its labels run."""
    low, high = config.box
    middles = low + (torch.arange(config.bins) + 0.5) * ((high - low) / config.bins)
    rows, columns = torch.meshgrid(middles, middles, indexing="ij")
    return torch.stack([columns, rows], dim=-1).flatten(0, 1)


def nearness(
    places: Float[Tensor, "items 2"], centres: Float[Tensor, "classes 2"]
) -> Float[Tensor, "items classes"]:
    """Scores of position bins: the nearer a bin's centre, the higher."""
    return -(places[:, None] - centres).norm(dim=-1)


def hits_at(
    scores: Float[Tensor, "items classes"], labels: Int[Tensor, " items"], k: int
) -> Bool[Tensor, " items"]:
    """Whether the true class is among the k best; of equal scores the true one comes last."""
    if not 1 <= k <= scores.shape[1]:
        raise InputError(f"recall at k looks at 1 to {scores.shape[1]} classes; got k={k}")
    if not bool(scores.isfinite().all()):
        raise InputError("scores must be finite; some are not")
    own = scores.gather(1, labels[:, None])
    return (scores >= own).sum(dim=1) <= k


def mean_class_recall(
    hits: Bool[Tensor, "*seeds items"],
    labels: Int[Tensor, " items"],
    generator: torch.Generator,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Share of hits of each class, averaged over the classes there are; 95 % interval by the bootstrap.

    Resamples items and, with several seeds, seeds; a class that a resample misses is left out of it. Where
    all items agree the bootstrap would claim certainty; there it is Wilson's interval of the items.
    """
    table = hits.double().view(-1, len(labels))
    seeds, items = table.shape
    if items == 0:
        raise InputError("recall needs at least one item")
    mean = float(_class_mean(table.mean(dim=0)[None], labels[None])[0])
    if bool((table == table[0, 0]).all()):
        low, high = wilson_interval(items * round(mean), items)
        return Estimate(mean=mean, low=low, high=high, count=items)
    drawn = torch.randint(items, (resamples, items), generator=generator)
    chosen = torch.randint(seeds, (resamples, seeds), generator=generator)
    found = torch.cat(
        [
            _class_mean(_seed_means(table, some, which), labels[which])
            for some, which in zip(chosen.split(500), drawn.split(500), strict=True)
        ]
    )
    low, high = found.quantile(torch.tensor([0.025, 0.975], dtype=found.dtype)).tolist()
    return Estimate(mean=mean, low=low, high=high, count=items)


def _seed_means(
    table: Float[Tensor, "seeds items"], seeds: Int[Tensor, "R seeds"], items: Int[Tensor, "R items"]
) -> Float[Tensor, "R items"]:
    """Hits of drawn items, averaged over drawn seeds: the same for every item of a resample."""
    times = functional.one_hot(seeds, len(table)).sum(dim=1).to(table)
    return (times @ table / len(table)).gather(1, items)


def _class_mean(values: Float[Tensor, "R items"], labels: Int[Tensor, "R items"]) -> Float[Tensor, " R"]:
    """Mean over classes of the mean within each, row by row."""
    totals = values.new_zeros(len(values), int(labels.max()) + 1)
    counts = torch.zeros_like(totals).scatter_add_(1, labels, torch.ones_like(values))
    totals.scatter_add_(1, labels, values)
    present = counts > 0
    return (totals / counts.clamp(min=1)).sum(dim=1) / present.sum(dim=1)
