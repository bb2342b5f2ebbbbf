"""Show a part of a clip, predict the latents of the rest: what V-JEPA and V-JEPA 2 minimise.

V-JEPA 2 (arXiv:2506.09985, section 2.1) and its published code (facebookresearch/vjepa2, MIT licence,
c2963a47); the loss on shown tokens is that of V-JEPA 2.1 (arXiv:2603.14482). For each mask of a clip y with
shown part x and masked places delta_y:

    loss = mean over masks of   mean | P(E(x), delta_y) - h |^p / p      over items, masked places and numbers
    h    = LN(E_bar(y)) at the masked places                             LN: no scale, no shift, over numbers
           or, with target_norm="clip", each number of LN(E_bar(y)) standardised over the tokens of its
           clip: data2vec's instance normalisation (arXiv:2202.03555, section 3.3). What a clip is like as a
           whole is then no part of the target, and a latent that knows only that is of no use

    paper            here
    E                encoder         sees the shown tokens only
    P                predictor       narrow; its output is not normalised
    E_bar            target          moving average of E (`objectives/ema.py`); sees the whole clip
    sg               target runs without gradient, and it is no parameter of the optimiser
    p                loss_exponent   1 in all published runs
    tau              ema             constant 0.99925 there; its horizon of 1333 updates is longer than small
                                     runs are, so here it rises along a line, from 0.99 to 0.999
    lambda (2.1)     context_weight  0 by default; above it, shown tokens add lambda * mean w |P - h|^p / p,
                                     w = 1 over the root of the grid distance to the nearest masked token

Nothing but the average keeps the latent from collapsing; watch it (`training/health.py`).

Items are equal in length and the loss is a mean over items, so it obeys `training/distributed.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor, nn

from jepaplan.data.clips import IMAGENET_MEAN, IMAGENET_STD, ClipBatch, ClipNormaliser
from jepaplan.data.tubelet_masks import Grid, TubeletMasks
from jepaplan.objectives.ema import MovingAverage, decay_after, refuse_impossible_decays
from jepaplan.types import InputError

LAYER_NORM_EPSILON = 1e-5  # of the targets; published weights were trained with it


@runtime_checkable
class ClipEncoder(Protocol):
    """Tokens of normalised clips: all of them, or those with the ids to `keep` and seeing nothing else."""

    def __call__(
        self, clips: Float[Tensor, "B T C height width"], keep: Int[Tensor, "B K"] | None = None
    ) -> Float[Tensor, "B K D"]:
        """In the order of the ids."""
        ...


@runtime_checkable
class TokenPredictor(Protocol):
    """Latents at the ids of the target, from the tokens of the context."""

    def __call__(
        self,
        context: Float[Tensor, "B K D"],
        context_ids: Int[Tensor, "B K"],
        target_ids: Int[Tensor, "B M"],
        grid: Grid,
        mask_index: int = 0,
    ) -> Float[Tensor, "B M D"]:
        """In the order of the target's ids."""
        ...


@runtime_checkable
class DensePredictor(TokenPredictor, Protocol):
    """One that also tells what it makes of the context; only `context_weight` above 0 asks for it."""

    def predict_everywhere(
        self,
        context: Float[Tensor, "B K D"],
        context_ids: Int[Tensor, "B K"],
        target_ids: Int[Tensor, "B M"],
        grid: Grid,
        mask_index: int = 0,
    ) -> tuple[Float[Tensor, "B M D"], Float[Tensor, "B K D"]]:
        """Outputs at the target's ids and at the context's, from one pass."""
        ...


@dataclass(frozen=True, kw_only=True)
class MaskedLatentsConfig:
    """What is minimised, and how fast the target follows."""

    loss_exponent: float = 1.0  # p; 1 is the mean absolute error
    ema: tuple[float, float] = (0.99, 0.999)  # decay of the target, at the first and at the last update
    ema_updates: int = 1000  # updates over which the decay goes from one to the other, then stays
    target_norm: Literal["token", "clip"] = "token"  # clip: also over the tokens of each clip
    context_weight: float = 0.0  # lambda of V-JEPA 2.1; 0 predicts masked tokens only, as V-JEPA 2
    mask_index: int = 0  # which of the predictor's mask tokens is used, hence trained
    pixel_mean: tuple[float, ...] = IMAGENET_MEAN  # of levels over 255, per channel
    pixel_std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if not 1 <= self.loss_exponent < math.inf:
            raise InputError(f"loss_exponent is 1 or more, usually 1 or 2; got {self.loss_exponent}")
        refuse_impossible_decays(self.ema)
        if self.ema_updates < 1:
            raise InputError(f"ema_updates counts updates, so it is at least 1; got {self.ema_updates}")
        if not 0 <= self.context_weight < math.inf:
            raise InputError(f"context_weight is finite and not negative; got {self.context_weight}")
        if self.mask_index < 0:
            raise InputError(f"mask_index counts mask tokens from 0; got {self.mask_index}")


class MaskedLatents(nn.Module):
    """Encoder, predictor, target encoder and the scale of pixels; `forward` is the loss and its parts.

    `encoder` is a `ClipEncoder` and `predictor` a `TokenPredictor`. Whoever trains them calls `after_update`
    after each step of the optimiser.
    """

    def __init__(
        self, encoder: nn.Module, predictor: nn.Module, config: MaskedLatentsConfig | None = None
    ) -> None:
        super().__init__()
        self.config = config or MaskedLatentsConfig()
        if self.config.context_weight > 0 and not isinstance(predictor, DensePredictor):
            raise InputError(
                f"context_weight is {self.config.context_weight}, but a {type(predictor).__name__} has no "
                "`predict_everywhere` to tell what it makes of the context; give it one, or a weight of 0"
            )
        self.encoder = encoder
        self.predictor = predictor
        self.target = MovingAverage(encoder)
        self.pixels = ClipNormaliser(self.config.pixel_mean, self.config.pixel_std)

    def forward(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and for the record its parts, the share of tokens shown and the spread of targets."""
        if not batch.masks:
            raise InputError("a batch without masks shows everything and asks nothing; `draw_masks(...)`")
        clips = self.pixels(batch.clips)
        with torch.no_grad():
            whole = wide(self.target.average(clips))
            targets = F.layer_norm(whole, whole.shape[-1:], eps=LAYER_NORM_EPSILON)
            if self.config.target_norm == "clip":
                targets = standardised_in_clip(targets)
        losses: list[Tensor] = []
        metrics: dict[str, Tensor] = {}
        for index, masks in enumerate(batch.masks):
            _refuse_other_grid(masks, whole)
            terms = self.terms(clips, masks, targets)
            losses.append(terms["masked"] + self.config.context_weight * terms.get("context", 0.0))
            metrics |= {f"{name}_{index}": term.detach() for name, term in terms.items()}
        loss = torch.stack(losses).mean()
        masked = torch.stack([metrics[f"masked_{index}"] for index in range(len(losses))]).mean()
        return loss, metrics | mask_ratios(batch.masks, loss.device) | self._spread(targets, masked)

    def terms(
        self,
        clips: Float[Tensor, "B T C height width"],
        masks: TubeletMasks,
        targets: Float[Tensor, "B N D"],
    ) -> dict[str, Tensor]:
        """The parts of the loss for one mask per clip, unweighted."""
        power = self.config.loss_exponent
        shown = self.encoder(clips, masks.context)
        asked = (shown, masks.context, masks.target, masks.grid, self.config.mask_index)
        wanted = tokens_at(targets, masks.target)
        if self.config.context_weight == 0:
            return {"masked": latent_error(self.predictor(*asked), wanted, power).mean()}
        predicted, told = cast(DensePredictor, self.predictor).predict_everywhere(*asked)
        error = latent_error(told, tokens_at(targets, masks.context), power)
        nearness = target_distances(masks).to(error.dtype).rsqrt()
        return {
            "masked": latent_error(predicted, wanted, power).mean(),
            "context": (nearness[..., None] * error).mean(),
        }

    def after_update(self, update: int) -> None:
        """Let the target follow, once `update` updates are done."""
        self.target.follow(decay_after(update, self.config.ema_updates, self.config.ema))

    @torch.no_grad()
    def encode(self, clips: UInt8[Tensor, "B T C height width"]) -> Float[Tensor, "B N D"]:
        """Tokens of whole clips as the target encoder sees them: what probes and planners are to use."""
        return wide(self.target.average(self.pixels(clips)))

    def _spread(self, targets: Float[Tensor, "B N D"], masked: Tensor) -> dict[str, Tensor]:
        """0 where the target has collapsed: over all tokens, and over the means of the clips."""
        tokens, power = targets.flatten(0, 1), self.config.loss_exponent
        constant = latent_error(tokens.mean(0).expand_as(tokens), tokens, power).mean()
        return {
            "target_std": tokens.std(0, unbiased=False).mean(),
            "target_clip_std": targets.mean(1).std(0, unbiased=False).mean(),
            # Above 1, the predictor is worse than the mean token of the batch, whatever is shown.
            "masked_over_constant": masked / constant.clamp(min=1e-12),
        }


def standardised_in_clip(tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
    """Each number minus its mean over the tokens of a clip, over its deviation there."""
    std, mean = torch.std_mean(tokens, dim=1, keepdim=True, unbiased=False)
    return (tokens - mean) / (std.square() + LAYER_NORM_EPSILON).sqrt()


def latent_error(
    predicted: Float[Tensor, "*tokens D"], targets: Float[Tensor, "*tokens D"], exponent: float
) -> Float[Tensor, "*tokens D"]:
    """|predicted - target|^p / p, number by number, in 32 bits or more."""
    return (wide(predicted) - wide(targets)).abs().pow(exponent) / exponent


def tokens_at(tokens: Float[Tensor, "B N D"], ids: Int[Tensor, "B K"]) -> Float[Tensor, "B K D"]:
    """Those tokens of each item that have these ids."""
    return torch.take_along_dim(tokens, ids[..., None], dim=1)


def target_distances(masks: TubeletMasks) -> Float[Tensor, "B K"]:
    """How far each shown token is from the nearest one to be predicted, in steps of the grid."""
    shown, asked = (_places(ids, masks.grid).float() for ids in (masks.context, masks.target))
    # The faster form by matrix products rounds small distances.
    return torch.cdist(shown, asked, compute_mode="donot_use_mm_for_euclid_dist").amin(-1)


def mask_ratios(masks: Sequence[TubeletMasks], device: torch.device) -> dict[str, Tensor]:
    """Shares of the tokens that are shown and asked for, for the record."""
    ratios: dict[str, Tensor] = {}
    for index, mask in enumerate(masks):
        ratios[f"context_ratio_{index}"] = torch.full((), mask.context_ratio, device=device)
        ratios[f"target_ratio_{index}"] = torch.full((), mask.target_ratio, device=device)
    return ratios


def wide(tensor: Shaped[Tensor, "*any"]) -> Shaped[Tensor, "*any"]:
    """Numbers of less than 32 bits in 32: differences of latents need more digits than bf16 has."""
    return tensor.float() if tensor.element_size() < 4 else tensor


def _places(ids: Int[Tensor, "B K"], grid: Grid) -> Int[Tensor, "B K 3"]:
    """Tubelet, row and column of each id."""
    _, rows, columns = grid
    return torch.stack([ids // (rows * columns), ids // columns % rows, ids % columns], dim=-1)


def _refuse_other_grid(masks: TubeletMasks, tokens: Float[Tensor, "B N D"]) -> None:
    if tokens.shape[1] != math.prod(masks.grid):
        raise InputError(
            f"masks were drawn for a grid of {masks.grid}, {math.prod(masks.grid)} tokens, but the encoder "
            f"makes {tokens.shape[1]} of these clips; draw them for its grid: frames over tubelet length, "
            "height and width over patch"
        )
