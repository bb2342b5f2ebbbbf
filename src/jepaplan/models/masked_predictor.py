"""The narrow predictor of V-JEPA 2: latents of tokens that were not seen, from those that were.

Assran et al., "V-JEPA 2", arXiv:2506.09985, section 2.1:

    paper       here
    P_phi       MaskedPredictor
    Delta_y     a mask token, turned by the position it stands for; `target_ids`
    E(x)        context, latents of `context_ids`

The released code sorts context and mask tokens by id before its blocks and undoes it after them. Attention
with rotary positions does not notice the order, so nothing is sorted here: the same numbers up to rounding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from jepaplan.models.affine import Affine
from jepaplan.models.rotary import (
    ROPE_BASE,
    Grid,
    RopeLayout,
    refuse_other_rope,
    refuse_unturnable_heads,
    rotation_of_ids,
)
from jepaplan.models.transformer import LAYER_NORM_EPSILON, Block, hidden_width, initialise, run_blocks
from jepaplan.types import InputError


@dataclass(frozen=True, kw_only=True)
class MaskedPredictorConfig:
    """Shape of a `MaskedPredictor`; the defaults serve every encoder from `small` up."""

    width: int = 384
    depth: int = 12  # blocks
    heads: int = 12
    mlp_ratio: float = 4.0  # hidden width of a block's perceptron / width
    mask_tokens: int = 2  # learned tokens to choose from by `mask_index`; the released weights have 10
    rope_layout: RopeLayout = "interleaved"  # as the encoder's
    rope_base: float = ROPE_BASE  # of the angles; a small grid tells places apart better with a small one
    checkpoint_activations: bool = False  # keep blocks' inputs only: less memory, a third more time

    def __post_init__(self) -> None:
        if self.depth < 1 or self.mask_tokens < 1:
            raise InputError(
                f"a predictor needs depth >= 1 and mask_tokens >= 1; got {self.depth} and {self.mask_tokens}"
            )
        refuse_unturnable_heads(self.width, self.heads)
        hidden_width(self.width, self.mlp_ratio)
        refuse_other_rope(self.rope_layout, self.rope_base)


_NARROW = MaskedPredictorConfig(width=96, depth=4, heads=4)
_RELEASED = MaskedPredictorConfig()

PREDICTOR: Mapping[str, MaskedPredictorConfig] = MappingProxyType(
    {
        **dict.fromkeys(("nano", "nano16", "tiny"), _NARROW),
        **dict.fromkeys(("small", "base", "large", "huge", "giant"), _RELEASED),
    }
)


class MaskedPredictor(nn.Module):
    """Latents at `target_ids` from latents at `context_ids`, all tokens seeing all."""

    def __init__(self, encoder_width: int, config: MaskedPredictorConfig) -> None:
        super().__init__()
        if encoder_width < 1:
            raise InputError(f"encoder_width is the width of the encoder's latents; got {encoder_width}")
        self.config = config
        self.encoder_width = encoder_width
        self.embedding = Affine(encoder_width, config.width)
        self.mask_tokens = nn.Parameter(torch.empty(config.mask_tokens, config.width))
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPSILON)
        self.readout = Affine(config.width, encoder_width)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all weights anew; mask tokens start at zero."""
        initialise(self)
        nn.init.zeros_(self.mask_tokens)

    def forward(
        self,
        context: Float[Tensor, "B K D"],
        context_ids: Int[Tensor, "B K"],
        target_ids: Int[Tensor, "B M"],
        grid: Grid,
        mask_index: int = 0,
    ) -> Float[Tensor, "B M D"]:
        """Predicted latents at the target ids, which may lie beyond the clip: then in time to come."""
        tokens = self._tokens(context, context_ids, target_ids, grid, mask_index)
        return self.readout(self.norm(tokens[:, context.shape[1] :]))

    def predict_everywhere(
        self,
        context: Float[Tensor, "B K D"],
        context_ids: Int[Tensor, "B K"],
        target_ids: Int[Tensor, "B M"],
        grid: Grid,
        mask_index: int = 0,
    ) -> tuple[Float[Tensor, "B M D"], Float[Tensor, "B K D"]]:
        """Predicted latents at the target ids and at the context ids, as V-JEPA 2.1's dense loss needs."""
        tokens = self._tokens(context, context_ids, target_ids, grid, mask_index)
        read = self.readout(self.norm(tokens))
        return read[:, context.shape[1] :], read[:, : context.shape[1]]

    def _tokens(
        self, context: Tensor, context_ids: Tensor, target_ids: Tensor, grid: Grid, mask_index: int
    ) -> Tensor:
        """Context tokens, then mask tokens, after all blocks."""
        config = self.config
        if context.shape[-1] != self.encoder_width:
            raise InputError(
                f"context latents are {context.shape[-1]} wide; this predictor was built for "
                f"encoder_width={self.encoder_width}"
            )
        if not 0 <= mask_index < config.mask_tokens:
            raise InputError(
                f"mask_index={mask_index}; this predictor has {config.mask_tokens} mask tokens, so write "
                f"0 to {config.mask_tokens - 1}"
            )
        seen = self.embedding(context)
        asked = self.mask_tokens[mask_index].to(seen.dtype).expand(*target_ids.shape, -1)
        ids = torch.cat([context_ids, target_ids], dim=1)
        head_width = config.width // config.heads
        rotation = rotation_of_ids(ids, grid, head_width, config.rope_layout, seen.dtype, config.rope_base)
        return run_blocks(
            self.blocks,
            torch.cat([seen, asked], dim=1),
            rotation,
            checkpoint_activations=config.checkpoint_activations,
        )
