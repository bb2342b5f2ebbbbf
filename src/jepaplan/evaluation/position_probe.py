"""The position of the dot, decoded from a latent: what an encoder knows, read off by a probe.

Ridge regression says what lies in the latent as a linear function (Alain and Bengio, "Understanding
intermediate layers using linear classifier probes", arXiv:1610.01644); a small network says what lies in it
at all. Probes look at true states, which training never does.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepaplan.types import InputError


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How the position is decoded from the latent."""

    kind: Literal["linear", "network"] = "linear"
    ridge: float = 1e-4  # penalty, as a share of the latents' variance
    hidden: int = 256  # units of each of the network's two hidden layers
    updates: int = 2000
    batch: int = 512
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse probes that cannot be fitted."""
        if min(self.ridge, self.learning_rate) <= 0 or min(self.hidden, self.updates, self.batch) < 1:
            raise InputError(
                f"a probe needs positive ridge, learning_rate, hidden, updates and batch; got {self}"
            )


@dataclass(frozen=True, kw_only=True)
class ProbeError:
    """Held-out distance between decoded and true positions, in their unit: for our worlds pixels."""

    kind: str
    mean: float
    median: float
    worst_twentieth: float  # the 95th percentile
    frames: int


def fit_position_probe(
    latents: Float[Tensor, "B D"],
    positions: Float[Tensor, "B W"],
    config: ProbeConfig,
    generator: torch.Generator,
    moves_from: int = 0,
) -> nn.Module:
    """A module from latents to positions, fitted to encoded frames and their true positions.

    It reads the numbers from `moves_from` on: a map shows the dot where the picture was taken, however far
    imagination has gone since.
    """
    latents = latents[:, moves_from:]
    centre, scale = latents.mean(0), latents.std(0).clamp(min=1e-6)
    middle, spread = positions.mean(0), positions.std(0).clamp(min=1e-6)
    inputs, targets = (latents - centre) / scale, (positions - middle) / spread
    if config.kind == "linear":
        body = _ridge(inputs, targets, config.ridge)
    else:
        body = _network(inputs, targets, config, generator)
    return _assembled(moves_from, _Affine(1 / scale, -centre / scale), body, _Affine(spread, middle))


def position_probe_from(tensors: Mapping[str, Tensor], config: ProbeConfig, moves_from: int = 0) -> nn.Module:
    """The module whose `state_dict` these are, as `fit_position_probe` made it with the same settings."""
    before, after = (_Affine(*(tensors[f"{part}.{name}"] for name in ("scale", "offset"))) for part in (1, 3))
    inputs, outputs = len(tensors["1.scale"]), len(tensors["3.scale"])
    if config.kind == "linear":
        body = nn.Linear(inputs, outputs, bias=False)
    else:
        body = _layers(inputs, config.hidden, outputs)
    probe = _assembled(moves_from, before, body, after)
    probe.load_state_dict(tensors)
    return probe


@torch.no_grad()
def probe_error(
    probe: nn.Module, latents: Float[Tensor, "B D"], positions: Float[Tensor, "B W"], kind: str
) -> ProbeError:
    """The probe's error on frames it has not seen."""
    errors = (probe(latents) - positions).norm(dim=-1).double()
    return ProbeError(
        kind=kind,
        mean=float(errors.mean()),
        median=float(errors.quantile(0.5)),
        worst_twentieth=float(errors.quantile(0.95)),
        frames=len(errors),
    )


def _assembled(moves_from: int, before: nn.Module, body: nn.Module, after: nn.Module) -> nn.Module:
    return nn.Sequential(_From(moves_from), before, body, after).eval()


def _layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    first, second, last = itertools.starmap(nn.Linear, itertools.pairwise((inputs, hidden, hidden, outputs)))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)


class _From(nn.Module):
    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def forward(self, values: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch K"]:
        return values[..., self.first :]


class _Affine(nn.Module):
    def __init__(self, scale: Float[Tensor, " K"], offset: Float[Tensor, " K"]) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)

    def forward(self, values: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch K"]:
        return values * self.get_buffer("scale") + self.get_buffer("offset")


def _ridge(inputs: Float[Tensor, "B D"], targets: Float[Tensor, "B W"], ridge: float) -> nn.Linear:
    """Least squares with a penalty; inputs are standardised, so one penalty suits all of them."""
    design, wanted = inputs.double(), targets.double()
    gram = design.T @ design / len(design) + ridge * torch.eye(design.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, design.T @ wanted / len(design))
    layer = nn.Linear(design.shape[1], wanted.shape[1], bias=False)
    layer.weight.data.copy_(weight.T)
    return layer


def _network(
    inputs: Float[Tensor, "B D"],
    targets: Float[Tensor, "B W"],
    config: ProbeConfig,
    generator: torch.Generator,
) -> nn.Module:
    network = _layers(inputs.shape[1], config.hidden, targets.shape[1])
    for layer in network:
        if isinstance(layer, nn.Linear):
            bound = 1 / math.sqrt(layer.in_features)
            layer.weight.data.copy_((2 * torch.rand(layer.weight.shape, generator=generator) - 1) * bound)
            layer.bias.data.zero_()
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.updates)
    with torch.enable_grad():
        for _ in range(config.updates):
            chosen = torch.randint(len(inputs), (config.batch,), generator=generator)
            loss = (network(inputs[chosen].detach()) - targets[chosen]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network
