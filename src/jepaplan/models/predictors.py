"""Action-conditioned predictors of the next latent.

The multilayer perceptron of arXiv:2601.00844 (section 4, "1.3M parameters"): latent and action,
concatenated, through four hidden layers of 512 fit that count best. Where torch's own products are used the
concatenation is never made: the first layer's weight is split into the columns that meet the latent and
those that meet the action, W [z, a] = W_z z + W_a a. oneDNN multiplies the two together sooner than apart.

One step of 2000 latents without gradients, as a multiple of five bare products 2000 x 512 x 512 (fp32, one
core, median [range] of 10 paired rounds): relu 1.15 [1.12-1.24], gelu 1.22 [1.11-1.39], mish 1.41
[1.36-1.45], relu without norm 1.06 [0.98-1.12]; concatenating, and activating out of place, 1.31 [1.24-1.46].
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jepaplan.models.affine import Affine, affine, product, takes_onednn
from jepaplan.models.norm_relu import norm_relu, relu
from jepaplan.types import InputError

Activation = Literal["relu", "gelu", "mish"]


def _mish(hidden: Tensor) -> Tensor:
    return F.mish(hidden, inplace=not hidden.requires_grad)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": relu, "gelu": F.gelu, "mish": _mish}


@dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """Shape of an `MLPPredictor`; the defaults have 1.32 million parameters for latents of 512."""

    hidden: int = 512  # width of each hidden layer
    layers: int = 4  # hidden layers
    activation: Activation = "relu"
    norm: bool = True  # LayerNorm before each activation
    residual: bool = False  # predict the change of the latent instead of the latent
    held: int = 0  # leading numbers of the latent that no action changes: the scene
    begins_still: bool = False  # with `residual`: before training, every action leaves the latent as it is

    def __post_init__(self) -> None:
        if self.hidden < 1 or self.layers < 1:
            raise InputError(
                "a predictor needs hidden >= 1 and layers >= 1; got "
                f"hidden={self.hidden}, layers={self.layers}"
            )
        if self.held < 0:
            raise InputError(
                f"held counts the leading numbers of the latent that no action changes; got {self.held}, "
                "write 0 for none"
            )
        if self.begins_still and not self.residual:
            raise InputError(
                "begins_still needs residual=True: without it the predictor begins by answering zero, not by "
                "leaving the latent as it is"
            )
        if self.activation not in _ACTIVATIONS:
            raise InputError(f"activation is {self.activation!r}; known: {', '.join(_ACTIVATIONS)}")


class MLPPredictor(nn.Module):
    """The next latent from this one and an action in normalised units."""

    def __init__(self, latent_width: int, action_dim: int, config: PredictorConfig | None = None) -> None:
        super().__init__()
        if latent_width < 1 or action_dim < 1:
            raise InputError(
                f"latent_width and action_dim must be positive; got {latent_width} and {action_dim}"
            )
        self.config = config = config or PredictorConfig()
        self.latent_width = latent_width
        self.action_dim = action_dim
        self.first = Affine(latent_width + action_dim, config.hidden)
        self.hidden = nn.ModuleList(Affine(config.hidden, config.hidden) for _ in range(config.layers - 1))
        self.norms = nn.ModuleList(
            nn.LayerNorm(config.hidden) if config.norm else nn.Identity() for _ in range(config.layers)
        )
        if config.held >= latent_width:
            raise InputError(
                f"held={config.held} of {latent_width} numbers of the latent never change; "
                "it must leave some that do"
            )
        self.last = Affine(config.hidden, latent_width - config.held)
        if config.begins_still:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    def forward(self, latent: Float[Tensor, "B D"], action: Float[Tensor, "B A"]) -> Float[Tensor, "B D"]:
        """The latent one model step later."""
        hidden = self._activate(self.norms[0], self._mix(latent, action))
        for linear, norm in zip(self.hidden, self.norms[1:], strict=True):
            hidden = self._activate(norm, linear(hidden))
        held = self.config.held
        moved = self.last(hidden)
        if self.config.residual:
            moved = moved + latent[:, held:]
        return torch.cat([latent[:, :held], moved], dim=1) if held else moved

    def _activate(self, norm: nn.Module, hidden: Tensor) -> Tensor:
        if self.config.activation == "relu" and isinstance(norm, nn.LayerNorm):
            return norm_relu(norm, hidden)
        return _ACTIVATIONS[self.config.activation](norm(hidden))

    def _mix(self, latent: Tensor, action: Tensor) -> Tensor:
        weight, bias, width = self.first.weight, self.first.bias, self.latent_width
        action = action.to(latent.dtype)
        if takes_onednn(latent, weight):
            return product(torch.cat([latent, action], dim=1), weight, bias)
        # addmm_ adds the action's share in place: no concatenation of latents and actions, no second buffer.
        of_latent = affine(latent, weight[:, :width], bias)
        return of_latent.addmm_(action.to(of_latent.dtype), weight[:, width:].T.to(of_latent.dtype))


def to_bfloat16(predictor: nn.Module) -> nn.Module:
    """The predictor itself, now in bfloat16; on a processor its norms keep their parameters in float32.

    A processor's LayerNorm takes the mixture and has less to convert; accelerators refuse it, so move a
    predictor there first.
    """
    predictor.to(torch.bfloat16)
    for part in predictor.modules():
        if isinstance(part, nn.LayerNorm) and part.weight.device.type == "cpu":
            part.float()
    return predictor
