"""A trained predictor whose products are those of 8-bit integers: for planning on a processor, fast.

    weights        W is about s_o q, one scale for each output o, q from -127 to 127
    rows           x is about s_x q, one scale for each row, found as the row comes
    W x            about s_o s_x (sum of q q), summed in 32-bit integers, exactly
    between        bias, LayerNorm, ReLU and the next rounding in float32, one compiled pass (`int8_loops`)
    actions        in float32, with their weights: a few columns, and they are what plans differ by
    change         a predictor with `residual` rounds only what it adds; the latent itself stays as it is

Scales by row keep problems apart: what one row gives depends on no other, and as integers are summed exactly,
not even on how many there are. Scales by row and by output are the vector-wise quantisation of Dettmers et
al., "LLM.int8()", arXiv:2208.07339; weights need no data to be rounded, and nothing is trained again. What it
gives and what it costs is in benchmarks/results (`benchmarks/planning.py`, `benchmarks/precision.py`).

torch reaches the product through an operator without a public name. It is tried once, on numbers known by
heart, since processors without instructions for it (VNNI) saturate. The loops run on one core: with many
threads bfloat16 may be faster.
"""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, Int32
from torch import Tensor, nn

from jepaplan.models.affine import others_choose
from jepaplan.models.predictors import MLPPredictor
from jepaplan.types import InputError

if TYPE_CHECKING:
    from jepaplan.models.int8_loops import Norm

_MIDDLE = 127  # rows after a ReLU are kept as q - 127
_INSTEAD = "plan with --precision bf16 or fp32"


@dataclass(frozen=True)
class RoundedWeights:
    """A weight as integers: W is about scale[:, None] * numbers."""

    numbers: Int8[Tensor, "O I"]
    scale: Float[Tensor, " O"]


def rounded(weight: Float[Tensor, "O I"]) -> RoundedWeights:
    """The nearest integers, with the smallest scales that cut nothing off."""
    scale = weight.abs().amax(dim=1) / _MIDDLE
    numbers = (weight / scale.clamp(min=torch.finfo(scale.dtype).tiny)[:, None]).round()
    return RoundedWeights(numbers.to(torch.int8), scale)


class Int8Predictor(nn.Module):
    """`MLPPredictor` for planning: latents and actions are float32 as before, and there are no gradients."""

    def __init__(self, trained: MLPPredictor) -> None:
        super().__init__()
        if trained.config.activation != "relu":
            raise InputError(
                f"8-bit products are written for predictors with relu; this one has "
                f"{trained.config.activation}, so {_INSTEAD}"
            )
        refuse_where_products_are_wrong()
        for name, weight in trained.named_parameters():
            if weight.device.type != "cpu":
                raise InputError(
                    f"8-bit products are made on a processor, and this predictor is on {weight.device}; take "
                    f"--device cpu, or {_INSTEAD}"
                )
            if not bool(weight.isfinite().all()):
                raise InputError(
                    f"the predictor's {name} holds numbers that are infinite or none; no plan can be made "
                    "with them, so train again with a lower learning rate"
                )
        self.action_dim = trained.action_dim
        self._layers = _Layers(trained)
        # the loops are compiled, or fetched, before anybody takes the time of a search
        self(torch.zeros(1, trained.latent_width), torch.zeros(1, trained.action_dim))

    def forward(self, latent: Float[Tensor, "B D"], action: Float[Tensor, "B A"]) -> Float[Tensor, "B D"]:
        """The latent one model step later, computed in float32 and given in the latent's dtype."""
        if others_choose():
            raise InputError(f"integers cannot be had under vmap, autocast or a compiler; {_INSTEAD}")
        if torch.is_grad_enabled() and (latent.requires_grad or action.requires_grad):
            raise InputError(f"integers have no gradients, which this planner follows: {_INSTEAD}")
        found = self._layers(latent.detach().float().contiguous(), action.detach().float().contiguous())
        return found.to(latent.dtype)


class _Layers:
    """The numbers that the loops read, as arrays."""

    def __init__(self, trained: MLPPredictor) -> None:
        # numba takes 0.3 s to import, and who only looks at a run has no use for it
        from jepaplan.models.int8_loops import Layer

        self.residual = trained.config.residual
        width = trained.latent_width
        self.norms = norms = [_norm(part, trained.config.hidden) for part in trained.norms]
        linears = cast("list[nn.Linear]", [trained.first, *trained.hidden, trained.last])
        self.weights: list[Int8[Tensor, "I O"]] = []
        self.layers: list[Layer] = []
        for number, linear in enumerate(linears):
            weight, bias = linear.weight.detach().double(), linear.bias.detach().double()
            if number < len(norms) and norms[number].active:
                # a norm takes the mean over all outputs away; taken out of the weights it is gone beforehand
                weight, bias = weight - weight.mean(dim=0), bias - bias.mean()
            if number == 0:
                self.of_action = weight[:, width:].T.float().contiguous().numpy()
                weight = weight[:, :width]
            kept = rounded(weight.float())
            # latents lie around zero, what a ReLU lets through does not
            moved = _MIDDLE * kept.numbers.sum(dim=1, dtype=torch.float32) * (number > 0)
            self.weights.append(kept.numbers.T)
            self.layers.append(
                Layer(
                    scale=kept.scale.numpy(),
                    offset=moved.numpy(),
                    bias=bias.float().numpy(),
                )
            )

    def __call__(self, latent: Float[Tensor, "B D"], action: Float[Tensor, "B A"]) -> Float[Tensor, "B D"]:
        from jepaplan.models.int8_loops import (
            Rows,
            Sums,
            hidden_to_integers,
            latents_to_integers,
            to_latents,
        )

        count = len(latent)
        if count == 0:
            return torch.empty_like(latent)

        def empty(width: int) -> tuple[Int8[Tensor, "B I"], Rows]:
            numbers = torch.empty(count, width, dtype=torch.int8)
            return numbers, Rows(numbers.numpy(), torch.empty(count).numpy())

        numbers, rows = empty(latent.shape[1])
        latents_to_integers(latent.numpy(), rows)
        given, of_action = action.numpy(), self.of_action
        *inner, last = zip(self.weights, self.layers, strict=True)
        for (weight, layer), norm in zip(inner, self.norms, strict=True):
            sums = Sums(_product(numbers, weight).numpy(), rows.scale)
            numbers, rows = empty(sums.numbers.shape[1])
            hidden_to_integers(sums, layer, given, of_action, norm, rows)
            given, of_action = given[:, :0], of_action[:0]
        answer = torch.empty_like(latent)
        weight, layer = last
        sums = Sums(_product(numbers, weight).numpy(), rows.scale)
        to_latents(sums, layer, latent.numpy(), self.residual, answer.numpy())
        return answer


def _norm(part: nn.Module, width: int) -> "Norm":
    from jepaplan.models.int8_loops import Norm

    given = part if isinstance(part, nn.LayerNorm) else nn.LayerNorm(width)
    weight, bias = (parameter.detach().float().numpy().copy() for parameter in (given.weight, given.bias))
    return Norm(active=given is part, weight=weight, bias=bias, epsilon=given.eps)


def _product(rows: Int8[Tensor, "B I"], weight: Int8[Tensor, "I O"]) -> Int32[Tensor, "B O"]:
    if len(weight) == 1:  # torch answers with whatever lies in memory
        rows, weight = F.pad(rows, (0, 1)), F.pad(weight, (0, 0, 0, 1))
    return torch.ops.aten._int_mm(rows, weight)


@functools.cache
def products_are_right() -> bool:
    """Whether this torch multiplies 8-bit integers by oneDNN, and this processor without cutting sums off."""
    if not torch.backends.mkldnn.is_available():
        return False  # torch's own loop is exact, and slower than float32
    extremes = torch.tensor([[_MIDDLE] * 512, [-_MIDDLE] * 512, [_MIDDLE, -_MIDDLE] * 256], dtype=torch.int8)
    rows = extremes.repeat(11, 1)
    try:
        found = _product(rows, extremes.T)
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False
    return torch.equal(found.long(), rows.long() @ extremes.T.long())


def refuse_where_products_are_wrong() -> None:
    """Say so where 8-bit products are missing or not exact."""
    if not products_are_right():
        raise InputError(
            f"this torch ({torch.__version__}) on this processor has no exact products of 8-bit integers; "
            f"{_INSTEAD}"
        )
