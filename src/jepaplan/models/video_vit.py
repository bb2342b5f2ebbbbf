"""The video transformer of V-JEPA 2: a clip cut into tubelets, all of them or only those that are kept.

Assran et al., "V-JEPA 2", arXiv:2506.09985, section 2.1; the sizes are those of its released code. A clip
`B C T height width` of the paper is `B T C height width` here.

    paper                 here
    tubelet 2 x 16 x 16   tubelet frames x patch x patch pixels, one token each
    x                     clips; only tokens named by `keep` are ever embedded
    E_theta               VideoTransformer; its latents have passed the final LayerNorm
    N                     tokens = tubelets * rows * columns, ids run through columns, then rows, then time

The embedding is the convolution of the paper written as one product: kernel and stride are equal, so patches
do not overlap. Its weight keeps the convolution's shape, and can be loaded from one. Forward and backward of
16 clips of 8 x 64 x 64 pixels take a CPU as long as the convolution (8.8 and 8.7 ms), and 5.5 ms when a
quarter of the tokens is kept.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from jepaplan.models.affine import affine
from jepaplan.models.rotary import (
    ROPE_BASE,
    Grid,
    RopeLayout,
    refuse_other_rope,
    refuse_unturnable_heads,
    rotation_of_grid,
)
from jepaplan.models.transformer import (
    INITIAL_STD,
    LAYER_NORM_EPSILON,
    Block,
    hidden_width,
    initialise,
    run_blocks,
)
from jepaplan.types import InputError


@dataclass(frozen=True, kw_only=True)
class VideoTransformerConfig:
    """Shape of a `VideoTransformer`; clips of other lengths and sizes are fine if they cut into tubelets."""

    frames: int = 16  # of a training clip
    image: int = 256  # pixels per side of a training clip, square
    channels: int = 3
    patch: int = 16  # pixels per side of a token
    tubelet: int = 2  # frames of a token
    width: int = 1024
    depth: int = 24  # blocks
    heads: int = 16
    mlp_ratio: float = 4.0  # hidden width of a block's perceptron / width
    rope_layout: RopeLayout = "interleaved"  # "tiled" for released weights, see `rotary.py`
    rope_base: float = ROPE_BASE  # of the angles; a small grid tells places apart better with a small one
    checkpoint_activations: bool = False  # keep blocks' inputs only: less memory, a third more time

    def __post_init__(self) -> None:
        sizes = (self.frames, self.image, self.channels, self.patch, self.tubelet, self.depth)
        if min(sizes) < 1:
            raise InputError(
                "frames, image, channels, patch, tubelet and depth must be positive; got "
                + ", ".join(str(size) for size in sizes)
            )
        if self.frames % self.tubelet or self.image % self.patch:
            raise InputError(
                f"a clip of {self.frames} frames of {self.image} x {self.image} pixels does not cut into "
                f"tubelets of {self.tubelet} frames and patches of {self.patch} pixels; choose frames "
                f"divisible by {self.tubelet} and image divisible by {self.patch}"
            )
        refuse_unturnable_heads(self.width, self.heads)
        hidden_width(self.width, self.mlp_ratio)
        refuse_other_rope(self.rope_layout, self.rope_base)

    @property
    def grid(self) -> Grid:
        """Tubelets, rows and columns of a training clip."""
        side = self.image // self.patch
        return self.frames // self.tubelet, side, side

    @property
    def tokens(self) -> int:
        """Tokens of a training clip."""
        return math.prod(self.grid)


_SMALL_CLIPS = VideoTransformerConfig(frames=8, image=64, patch=8, width=128, depth=6, heads=4)

VIDEO_SIZES: Mapping[str, VideoTransformerConfig] = MappingProxyType(
    {
        "nano": _SMALL_CLIPS,
        "nano16": replace(_SMALL_CLIPS, frames=16),
        "tiny": replace(_SMALL_CLIPS, width=192, depth=12, heads=3),
        "small": VideoTransformerConfig(width=384, depth=12, heads=6),
        "base": VideoTransformerConfig(width=768, depth=12, heads=12),
        "large": VideoTransformerConfig(width=1024, depth=24, heads=16),
        "huge": VideoTransformerConfig(width=1280, depth=32, heads=16),
        # the released giant has 22 heads, not the 16 that the name `vit_giant` has elsewhere
        "giant": VideoTransformerConfig(width=1408, depth=40, heads=22, mlp_ratio=48 / 11),
    }
)


class VideoTransformer(nn.Module):
    """Latents of a clip's tokens, each seeing all tokens that are kept."""

    def __init__(self, config: VideoTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.patches = PatchEmbedding(config.channels, config.tubelet, config.patch, config.width)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPSILON)
        self.reset_parameters()

    @property
    def latent_width(self) -> int:
        """Width D of the latents."""
        return self.config.width

    def reset_parameters(self) -> None:
        """Draw all weights anew, for instance after moving a model built on the meta device."""
        initialise(self)
        self.patches.reset_parameters()

    def grid(self, clips: Float[Tensor, "B T C height width"]) -> Grid:
        """Tubelets, rows and columns of these clips; refuses clips that do not cut into whole tubelets."""
        return self.patches.grid(clips)

    def forward(
        self, clips: Float[Tensor, "B T C height width"], keep: Int[Tensor, "B K"] | None = None
    ) -> Float[Tensor, "B K D"]:
        """Latents of the tokens named by `keep`, in that order, seeing one another only; None keeps all."""
        config, grid = self.config, self.patches.grid(clips)
        tokens = self.patches(clips, keep)
        rotation = rotation_of_grid(
            grid,
            config.width // config.heads,
            config.rope_layout,
            clips.device,
            clips.dtype,
            config.rope_base,
        )
        if keep is not None:
            rotation = rotation.at(keep)
        tokens = run_blocks(
            self.blocks, tokens, rotation, checkpoint_activations=config.checkpoint_activations
        )
        return self.norm(tokens)

    def encode_frames(self, frames: Float[Tensor, "B T C height width"]) -> Float[Tensor, "B T P D"]:
        """Latents of single frames, each repeated to fill a tubelet, none of which sees another frame."""
        batch, steps = frames.shape[:2]
        still = frames.flatten(0, 1).unsqueeze(1).expand(-1, self.config.tubelet, -1, -1, -1)
        return self(still).unflatten(0, (batch, steps))


class PatchEmbedding(nn.Module):
    """One linear map of each tubelet's pixels; `weight` has the shape of the equivalent convolution's."""

    def __init__(self, channels: int, tubelet: int, patch: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, channels, tubelet, patch, patch))
        self.bias = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        nn.init.trunc_normal_(self.weight, std=INITIAL_STD)
        nn.init.zeros_(self.bias)

    def grid(self, clips: Float[Tensor, "B T C height width"]) -> Grid:
        """Tubelets, rows and columns of these clips."""
        frames, channels, height, width = clips.shape[1:]
        _, due, tubelet, patch, _ = self.weight.shape
        if channels != due:
            raise InputError(
                f"clips have {channels} channels; this encoder was built for channels={due}. Clips are "
                "`B T C height width`: frames come before channels"
            )
        if min(frames, height, width) < 1 or frames % tubelet or height % patch or width % patch:
            raise InputError(
                f"clips of {frames} frames of {height} x {width} pixels do not cut into tubelets of "
                f"{tubelet} frames and patches of {patch} x {patch} pixels; give a number of frames "
                f"divisible by {tubelet} (repeat the last) and sides divisible by {patch} (resize or crop)"
            )
        return frames // tubelet, height // patch, width // patch

    def forward(
        self, clips: Float[Tensor, "B T C height width"], keep: Int[Tensor, "B K"] | None = None
    ) -> Float[Tensor, "B K D"]:
        """Embedded tokens; pixels of tokens that are not kept are never read."""
        pixels = self._tubelets(clips)
        if keep is not None:
            pixels = _pick(pixels, keep)
        return affine(pixels.flatten(2), self.weight.flatten(1), self.bias)

    def _tubelets(self, clips: Tensor) -> Tensor:
        """Pixels of each token in the order of the weight: channel, frame, row, column. No copy yet."""
        tubelets, rows, columns = self.grid(clips)
        tubelet, patch = self.weight.shape[2:4]
        cut = (
            clips.unflatten(4, (columns, patch)).unflatten(3, (rows, patch)).unflatten(1, (tubelets, tubelet))
        )
        # B T' t C H' p W' p -> B T' H' W' C t p p
        return cut.permute(0, 1, 4, 6, 3, 2, 5, 7).reshape(clips.shape[0], tubelets * rows * columns, -1)


def _pick(pixels: Float[Tensor, "B N I"], keep: Int[Tensor, "B K"]) -> Float[Tensor, "B K I"]:
    """Tokens by their ids, for each clip its own."""
    # Where reading the numbers would make an accelerator wait, its own check of indices must do.
    on_cpu = keep.device.type == "cpu" and not torch.compiler.is_compiling()
    if on_cpu and keep.numel() and not 0 <= int(keep.min()) <= int(keep.max()) < pixels.shape[1]:
        raise InputError(
            f"keep names tokens {int(keep.min())} to {int(keep.max())}; these clips have {pixels.shape[1]}, "
            f"so ids run from 0 to {pixels.shape[1] - 1}. Were the masks drawn for another grid?"
        )
    return pixels.gather(1, keep.unsqueeze(-1).expand(-1, -1, pixels.shape[-1]))
