"""Convolutional encoders: one normalised image, and what the body feels, become one flat latent.

`ImpalaEncoder` follows Espeholt et al., "IMPALA", arXiv:1802.01561, figure 3 (right), as PLDM
(arXiv:2502.14819) uses it. `CompactEncoder` is for training on a CPU; its keypoints are the feature points
of Finn et al., "Deep Spatial Autoencoders for Visuomotor Learning", arXiv:1509.06113, section V: the
expected image coordinates under a softmax over each map.

    paper                   here
    alpha (temperature)     KeypointReadout.log_temperature    learned; one number for all maps
    (f_cx, f_cy)            spatial_expectation                coordinates in [-1, 1], x first

No final LayerNorm by default: it would pin the norm of a latent of width 512 near sqrt(512) = 22.6, so no
two latents could be more than 45.3 apart, less than the 1 / (1 - 0.98) = 50 steps that a value function with
gamma 0.98 must be able to express.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jepaplan.models.affine import Affine
from jepaplan.types import InputError


@dataclass(frozen=True, kw_only=True)
class ImpalaConfig:
    """Shape of an `ImpalaEncoder`; the defaults are the 2.2 million parameters of arXiv:2601.00844."""

    image_channels: int = 2
    image_size: int = 64  # pixels per side, square
    latent_width: int = 512
    stacks: tuple[int, ...] = (16, 32, 64)  # channels of each stack; a stack halves the resolution
    residual_blocks: int = 1  # per stack
    proprioception_dim: int = 0  # numbers appended to the flattened map
    final_norm: bool = False  # see the caution at the top of the file

    def __post_init__(self) -> None:
        _refuse_impossible_shape(self.image_size, self.latent_width, self.stacks, self.proprioception_dim)
        if self.residual_blocks < 0 or self.image_channels < 1:
            raise InputError(
                "an encoder needs image_channels >= 1 and residual_blocks >= 0; got "
                f"{self.image_channels} and {self.residual_blocks}"
            )


@dataclass(frozen=True, kw_only=True)
class CompactConfig:
    """Shape of a `CompactEncoder`: one strided convolution per entry of `channels`."""

    image_channels: int = 2
    image_size: int = 64  # pixels per side, square
    latent_width: int = 512
    channels: tuple[int, ...] = (8, 16, 32)  # each convolution halves the resolution
    readout: Literal["flatten", "keypoints"] = "flatten"
    keypoints: int = 16  # maps whose expected coordinates are read; only with readout="keypoints"
    proprioception_dim: int = 0  # numbers appended before the last linear layer
    final_norm: bool = False  # see the caution at the top of the file

    def __post_init__(self) -> None:
        _refuse_impossible_shape(self.image_size, self.latent_width, self.channels, self.proprioception_dim)
        if len(self.channels) < 2:
            raise InputError(
                f"a compact encoder needs two convolutions or more; got channels={self.channels}"
            )
        if self.readout not in ("flatten", "keypoints"):
            raise InputError(f"readout is {self.readout!r}; write readout='flatten' or readout='keypoints'")
        if self.keypoints < 1 or self.image_channels < 1:
            raise InputError(
                "keypoints and image_channels must be positive; got "
                f"{self.keypoints} and {self.image_channels}"
            )


class ImpalaEncoder(nn.Module):
    """Stacks of convolution, max-pool and residual blocks; then one linear layer to the latent."""

    def __init__(self, config: ImpalaConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ImpalaConfig()
        widths = (config.image_channels, *config.stacks)
        self.stacks = nn.Sequential(
            *(_Stack(before, after, config.residual_blocks) for before, after in pairwise(widths))
        )
        side = _side_after(config.image_size, len(config.stacks))
        self.head = LatentHead(
            config.stacks[-1] * side**2, config.latent_width, config.proprioception_dim, config.final_norm
        )

    @property
    def latent_width(self) -> int:
        """Width D of the latents."""
        return self.config.latent_width

    def forward(
        self,
        pixels: Float[Tensor, "B C height width"],
        proprioception: Float[Tensor, "B P"] | None = None,
    ) -> Float[Tensor, "B D"]:
        """Latents of normalised images."""
        return self.head(F.relu(self.stacks(pixels)).flatten(1), proprioception)


class CompactEncoder(nn.Module):
    """A few strided convolutions and a readout: trains on about eight times as many frames per second.

    `readout="keypoints"` reads where things are to a fraction of a pixel, and keeps a small flattened map
    beside it for what is not a point. Speeds on a CPU, beside `ImpalaEncoder`'s: `benchmarks/training.py`.
    """

    def __init__(self, config: CompactConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CompactConfig()
        widths = (config.image_channels, *config.channels)
        body: list[nn.Module] = []
        for layer, (before, after) in enumerate(pairwise(widths[:-1])):
            kernel = 5 if layer == 0 else 3
            body += [nn.Conv2d(before, after, kernel, stride=2, padding=kernel // 2), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*body)
        side = _side_after(config.image_size, len(config.channels))
        if config.readout == "keypoints":
            self.readout: nn.Module = KeypointReadout(widths[-2], widths[-1] // 4 or 1, config.keypoints)
            features = 2 * config.keypoints + (widths[-1] // 4 or 1) * side**2
        else:
            self.readout = FlattenReadout(widths[-2], widths[-1])
            features = widths[-1] * side**2
        self.head = LatentHead(features, config.latent_width, config.proprioception_dim, config.final_norm)

    @property
    def latent_width(self) -> int:
        """Width D of the latents."""
        return self.config.latent_width

    def forward(
        self,
        pixels: Float[Tensor, "B C height width"],
        proprioception: Float[Tensor, "B P"] | None = None,
    ) -> Float[Tensor, "B D"]:
        """Latents of normalised images."""
        return self.head(self.readout(self.body(pixels)), proprioception)


class FlattenReadout(nn.Module):
    """The last strided convolution, flattened."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, after, 3, stride=2, padding=1)

    def forward(self, maps: Float[Tensor, "B C height width"]) -> Float[Tensor, "B features"]:
        """One vector per image."""
        return F.relu(self.convolution(maps)).flatten(1)


class KeypointReadout(nn.Module):
    """Expected coordinates of some maps, then a flattened strided convolution of few channels."""

    def __init__(self, before: int, flat_channels: int, keypoints: int) -> None:
        super().__init__()
        self.keypoint_maps = nn.Conv2d(before, keypoints, 1)
        self.log_temperature = nn.Parameter(torch.zeros(()))
        self.flat = FlattenReadout(before, flat_channels)

    def forward(self, maps: Float[Tensor, "B C height width"]) -> Float[Tensor, "B features"]:
        """One vector per image: x and y of each keypoint, then the flattened map."""
        points = spatial_expectation(sharpened(self.keypoint_maps, maps, torch.exp(-self.log_temperature)))
        return torch.cat([points.flatten(1), self.flat(maps)], dim=1)


def sharpened(
    layer: nn.Conv2d, maps: Float[Tensor, "B C height width"], sharpness: Float[Tensor, ""]
) -> Float[Tensor, "B K height width"]:
    """`sharpness * layer(maps)` of a 1x1 convolution: its few weights are scaled, not all the maps."""
    assert layer.bias is not None
    return F.conv2d(maps, layer.weight * sharpness, layer.bias * sharpness)


def spatial_expectation(maps: Float[Tensor, "B K height width"]) -> Float[Tensor, "B K 2"]:
    """Expected (x, y) under the softmax of each map; -1 and 1 are the centres of the outermost pixels."""
    return _expectation(maps, levels=False)[0]


def expectation_and_level(
    maps: Float[Tensor, "B K height width"],
) -> tuple[Float[Tensor, "B K 2"], Float[Tensor, "B K"]]:
    """`spatial_expectation`, and the logarithm of the sum of exponentials of each map."""
    return _expectation(maps, levels=True)


def _expectation(
    maps: Float[Tensor, "B K height width"], *, levels: bool
) -> tuple[Float[Tensor, "B K 2"], Float[Tensor, "B K"]]:
    height, width = maps.shape[-2:]
    number = maps.dtype if maps.dtype == torch.float64 else torch.float32
    rows = torch.linspace(-1, 1, height, device=maps.device, dtype=number)
    columns = torch.linspace(-1, 1, width, device=maps.device, dtype=number)
    coordinates = torch.stack([columns.repeat(height), rows.repeat_interleave(width)])
    points, level = _Expectation.apply(maps, coordinates, levels)  # pyright: ignore[reportGeneralTypeIssues]
    return points.mT, level


class _Expectation(torch.autograd.Function):
    """The maps are read as `B pixels K`, which is how they lie in memory where channels come last.

    With weights w = softmax(m), points p = C w and levels l = logsumexp(m), the gradient of both is
    w (C' dp + dl - p dp): one product with C and one more row, and one multiplication.
    """

    @staticmethod
    def forward(
        ctx: Any,
        maps: Float[Tensor, "B K height width"],
        coordinates: Float[Tensor, "2 pixels"],
        levels: bool,
    ) -> tuple[Float[Tensor, "B 2 K"], Float[Tensor, "B K"]]:
        with torch.autocast(maps.device.type, enabled=False):
            flat = maps.to(coordinates.dtype).movedim(1, -1).flatten(1, 2)
            weights = flat.softmax(dim=1)
            points = coordinates @ weights
            # where a map is highest its weight is, too; zeros for whoever asks for points only
            level = (
                flat.amax(dim=1) - weights.amax(dim=1).log() if levels else points.new_zeros(maps.shape[:2])
            )
        ctx.save_for_backward(weights, points, coordinates)
        ctx.shape, ctx.dtype = maps.shape, maps.dtype
        return points, level

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, of_points: Float[Tensor, "B 2 K"], of_levels: Float[Tensor, "B K"]
    ) -> tuple[Float[Tensor, "B K height width"], None, None]:
        weights, points, coordinates = ctx.saved_tensors
        common = of_levels - (of_points * points).sum(1)
        slopes = torch.cat([of_points, common[:, None]], dim=1)
        slopes = torch.cat([coordinates, torch.ones_like(coordinates[:1])]).T @ slopes
        slopes = slopes.mul_(weights).unflatten(1, ctx.shape[2:]).movedim(-1, 1)
        return slopes.to(ctx.dtype), None, None


class LatentHead(nn.Module):
    """Features and proprioception, concatenated, through one linear layer."""

    def __init__(self, features: int, latent_width: int, proprioception_dim: int, final_norm: bool) -> None:
        super().__init__()
        self.proprioception_dim = proprioception_dim
        self.linear = Affine(features + proprioception_dim, latent_width)
        self.norm = nn.LayerNorm(latent_width) if final_norm else nn.Identity()

    def forward(
        self, features: Float[Tensor, "B features"], proprioception: Float[Tensor, "B P"] | None
    ) -> Float[Tensor, "B D"]:
        """The latent."""
        given = 0 if proprioception is None else proprioception.shape[-1]
        if given != self.proprioception_dim:
            raise InputError(
                f"got {given} proprioceptive numbers per frame; this encoder was built with "
                f"proprioception_dim={self.proprioception_dim}. "
                + (
                    "Leave proprioception out."
                    if self.proprioception_dim == 0
                    else "Pass `proprioception` B P."
                )
            )
        if proprioception is not None:
            features = torch.cat([features, proprioception.to(features.dtype)], dim=1)
        return self.norm(self.linear(features))


class _Stack(nn.Module):
    """Convolution, max-pool of stride 2, residual blocks."""

    def __init__(self, before: int, after: int, residual_blocks: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, after, 3, padding=1)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(_ResidualBlock(after) for _ in range(residual_blocks)))

    def forward(self, maps: Tensor) -> Tensor:
        return self.blocks(self.pool(self.convolution(maps)))


class _ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.second(F.relu(self.first(F.relu(maps))))


def _side_after(image_size: int, halvings: int) -> int:
    """Pixels per side after `halvings` layers of stride 2 that keep the border."""
    for _ in range(halvings):
        image_size = (image_size + 1) // 2
    return image_size


def _refuse_impossible_shape(
    image_size: int, latent_width: int, channels: tuple[int, ...], proprioception_dim: int
) -> None:
    if image_size < 1 or latent_width < 1 or not channels or min(channels) < 1 or proprioception_dim < 0:
        raise InputError(
            "an encoder needs positive image_size, latent_width and channels per layer, and "
            f"proprioception_dim >= 0; got image_size={image_size}, latent_width={latent_width}, "
            f"channels={channels}, proprioception_dim={proprioception_dim}"
        )
