"""Pre-norm transformer blocks: attention with rotary positions, then a GELU perceptron.

Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv:2010.11929, equations 2 and 3, without class
token, dropout and learned positions, as V-JEPA 2 uses them (arXiv:2506.09985, section 2.1):

    paper       here
    LN          norm_attention, norm_mlp    epsilon 1e-6
    MSA         attention                   one matrix for queries, keys and values; values are not turned
    MLP         expand, contract            hidden width = mlp_ratio * width, exact GELU

Initialisation: truncated normals of standard deviation 0.02, zero biases; then what block l (from 1) adds to
its input is made 1 / sqrt(2 l) of that, so that depth does not add variance (the two products with weights
`attention.output` and `contract`).
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jepaplan.models.affine import Affine
from jepaplan.models.rotary import Rotation, refuse_unturnable_heads
from jepaplan.types import InputError

LAYER_NORM_EPSILON = 1e-6
INITIAL_STD = 0.02


class Attention(nn.Module):
    """Every token asks every token, or those an optional mask allows."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = Affine(width, 3 * width)
        self.output = Affine(width, width)

    def forward(
        self,
        tokens: Float[Tensor, "B N D"],
        rotation: Rotation,
        allowed: Bool[Tensor, "*#batch N N"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """What each token (row) gathers from those it is allowed to see (columns); None allows all."""
        by_head = self.query_key_value(tokens).unflatten(-1, (3 * self.heads, -1))
        # queries and keys lie side by side, so one pass turns both
        turned = rotation(by_head[:, :, : 2 * self.heads])
        query, key = turned.transpose(1, 2).chunk(2, dim=1)
        value = by_head[:, :, 2 * self.heads :].transpose(1, 2)
        gathered = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        return self.output(gathered.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x + attention(norm(x)), then x + perceptron(norm(x))."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        refuse_unturnable_heads(width, heads)
        hidden = hidden_width(width, mlp_ratio)
        self.norm_attention = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.attention = Attention(width, heads)
        self.norm_mlp = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.expand = Affine(width, hidden)
        self.contract = Affine(hidden, width)

    def forward(
        self,
        tokens: Float[Tensor, "B N D"],
        rotation: Rotation,
        allowed: Bool[Tensor, "*#batch N N"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """The tokens after one block."""
        tokens = tokens + self.attention(self.norm_attention(tokens), rotation, allowed)
        return tokens + self.contract(F.gelu(self.expand(self.norm_mlp(tokens))))


def hidden_width(width: int, mlp_ratio: float) -> int:
    """Width inside the perceptron; rounded, because 48/11 of 1408 is 6144 only on paper."""
    hidden = round(width * mlp_ratio)
    if hidden < 1:
        raise InputError(f"mlp_ratio={mlp_ratio} leaves no hidden channel of {width}; write mlp_ratio=4")
    return hidden


def run_blocks(
    blocks: Iterable[nn.Module],
    tokens: Float[Tensor, "B N D"],
    rotation: Rotation,
    allowed: Bool[Tensor, "*#batch N N"] | None = None,
    *,
    checkpoint_activations: bool = False,
) -> Float[Tensor, "B N D"]:
    """All blocks in turn; checkpointed ones keep only their input and are computed again for gradients."""
    again = checkpoint_activations and torch.is_grad_enabled()
    for block in blocks:
        if again:
            # nothing in a block is random, so no generator's state need be kept
            tokens = checkpoint(
                block, tokens, rotation, allowed, use_reentrant=False, preserve_rng_state=False
            )
        else:
            tokens = block(tokens, rotation, allowed)
    return tokens


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """Draw the matrices of `module` anew from torch's global generator, as the top of the file says."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=INITIAL_STD)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            part.reset_parameters()
    for part in module.modules():
        if isinstance(part, nn.ModuleList):
            for place, block in enumerate(part, start=1):
                if isinstance(block, Block):
                    block.attention.output.weight.div_(math.sqrt(2 * place))
                    block.contract.weight.div_(math.sqrt(2 * place))
