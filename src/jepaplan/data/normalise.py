"""The border of units: pixels, what is felt and actions become numbers around zero here, and only here.

Statistics are buffers, so they travel with the weights. Z-scores per action axis, per image channel and per
number of proprioception follow PLDM (arXiv:2502.14819).
"""

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn

from jepaplan.types import InputError


class ActionNormaliser(nn.Module):
    """Environment actions to z-scores per axis, and back."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Float[Tensor, " A"], std: Float[Tensor, " A"]) -> None:
        super().__init__()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())

    @classmethod
    def fit(cls, actions: Float[Tensor, "K A"]) -> "ActionNormaliser":
        """Statistics of recorded actions. An axis that never moves keeps its scale."""
        return cls(*_mean_and_std(actions, "action components"))

    @classmethod
    def identity(cls, action_dim: int) -> "ActionNormaliser":
        """Leaves actions as they are; also the empty form into which stored statistics are loaded."""
        return cls(torch.zeros(action_dim), torch.ones(action_dim))

    def normalise(self, actions: Shaped[Tensor, "*actions"]) -> Shaped[Tensor, "*actions"]:
        """Environment units to normalised units; the last axis is the action's."""
        self._check(actions)
        return (actions - self.mean) / self.std

    def inverse(self, actions: Shaped[Tensor, "*actions"]) -> Shaped[Tensor, "*actions"]:
        """Normalised units to environment units."""
        self._check(actions)
        return actions * self.std + self.mean

    def forward(self, actions: Shaped[Tensor, "*actions"]) -> Shaped[Tensor, "*actions"]:
        """The same as `normalise`."""
        return self.normalise(actions)

    def _check(self, actions: Tensor) -> None:
        width = len(self.mean)
        if actions.ndim == 0 or actions.shape[-1] != width:
            raise InputError(
                f"actions have shape {tuple(actions.shape)}; this normaliser was fitted to actions of "
                f"{width} "
                f"components, which must be the last axis. Several environment actions in one model step? "
                f"Normalise them first, then pack them."
            )
        _refuse_not_finite(actions, "action components")


class ProprioceptionNormaliser(nn.Module):
    """What the body feels to z-scores, number by number."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Float[Tensor, " P"], std: Float[Tensor, " P"]) -> None:
        super().__init__()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())

    @classmethod
    def fit(cls, felt: Float[Tensor, "F P"]) -> "ProprioceptionNormaliser":
        """Statistics of all recorded frames. A number that never changes keeps its scale."""
        return cls(*_mean_and_std(felt, "proprioceptive numbers"))

    @classmethod
    def identity(cls, width: int) -> "ProprioceptionNormaliser":
        """Leaves what is felt as it is; also the empty form into which stored statistics are loaded."""
        return cls(torch.zeros(width), torch.ones(width))

    def forward(self, felt: Float[Tensor, "*felt"]) -> Float[Tensor, "*felt"]:
        """The world's units to normalised units; the last axis counts the numbers."""
        if felt.ndim == 0 or felt.shape[-1] != len(self.mean):
            raise InputError(
                f"proprioception has shape {tuple(felt.shape)}; this normaliser was fitted to "
                f"{len(self.mean)} numbers per frame, which must be the last axis"
            )
        _refuse_not_finite(felt, "proprioceptive numbers")
        return (felt - self.mean) / self.std


class PixelNormaliser(nn.Module):
    """uint8 images to floats: per channel divided by 255, minus the mean, over the standard deviation."""

    mean: Tensor
    std: Tensor
    image_shape: Tensor

    def __init__(
        self, mean: Float[Tensor, " C"], std: Float[Tensor, " C"], image_shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        if len(mean) != image_shape[0] or len(std) != image_shape[0]:
            raise InputError(
                f"{len(mean)} means and {len(std)} deviations for images C height width = {image_shape}"
            )
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())
        self.register_buffer("image_shape", torch.tensor(image_shape))

    @classmethod
    def fit(cls, observations: UInt8[Tensor, "F C height width"], block: int = 256) -> "PixelNormaliser":
        """Statistics over all pixels, `block` frames at a time. A constant channel keeps its scale."""
        if observations.numel() == 0:
            raise InputError(f"the scale of pixels needs a frame or more; got {tuple(observations.shape)}")
        total = torch.zeros(2, observations.shape[1], dtype=torch.float64)
        for frames in observations.split(block):
            scaled = frames.flatten(2).float() / 255
            sums = torch.stack([scaled.sum(-1), scaled.square().sum(-1)])
            total += sums.double().sum(1).cpu()
        mean, square = total / (observations.numel() / observations.shape[1])
        std = (square - mean.square()).clamp(min=0).sqrt()
        shape = (observations.shape[1], observations.shape[2], observations.shape[3])
        return cls(mean.float(), torch.where(std > 1e-6, std, 1.0).float(), shape)

    @classmethod
    def identity(cls, image_shape: tuple[int, int, int]) -> "PixelNormaliser":
        """Divides by 255 only; also the empty form into which stored statistics are loaded."""
        return cls(torch.zeros(image_shape[0]), torch.ones(image_shape[0]), image_shape)

    def forward(self, pixels: Shaped[Tensor, "*pixels"]) -> Float[Tensor, "*pixels"]:
        """Normalised images in the precision of the statistics; any axes may come before C height width."""
        self._check(pixels)
        scale = 1 / (255 * self.std)
        shift = self.mean / self.std
        images = pixels.to(self.mean.dtype) * scale[:, None, None] - shift[:, None, None]
        if images.ndim == 4 and images.device.type == "cpu":
            # a processor convolves faster where the channels of a pixel are neighbours in memory
            images = images.contiguous(memory_format=torch.channels_last)
        return images

    def _check(self, pixels: Tensor) -> None:
        channels, height, width = due = tuple(int(length) for length in self.image_shape)
        shape = tuple(pixels.shape)
        if shape[-3:] != due:
            advice = f"resize or crop the images to {height} x {width} pixels and {channels} channels"
            if shape[-3:] == (height, width, channels):
                advice = "the channels come last: write `pixels.movedim(-1, -3)`"
            raise InputError(
                f"images have shape {shape}, their last three axes should be C height width = {due}; {advice}"
            )
        if pixels.dtype != torch.uint8:
            raise InputError(
                f"images of shape {shape} are {pixels.dtype}, expected uint8 of shape (..., {channels}, "
                f"{height}, "
                f"{width}) with levels 0 to 255; if yours are 0 to 1, write `(255 * "
                f"pixels).round().to(torch.uint8)`"
            )


def _mean_and_std(recorded: Float[Tensor, "K W"], what: str) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each column; 1 in place of a deviation of nothing."""
    _refuse_not_finite(recorded, what)
    if len(recorded) < 2:
        raise InputError(f"the scale of {what} needs two recorded ones or more; got {len(recorded)}")
    std, mean = torch.std_mean(recorded.double(), dim=0)
    return mean.float(), torch.where(std > 0, std, 1.0).float()


def _refuse_not_finite(numbers: Tensor, what: str) -> None:
    if not bool(torch.isfinite(numbers).all()):
        bad = int((~torch.isfinite(numbers)).sum())
        raise InputError(
            f"{bad} of {numbers.numel()} {what} are not finite (NaN or infinite); "
            f"repair or leave out those steps"
        )
