"""Small heads on latents: values of states, goals and actions; a quasimetric; the inverse dynamics.

`ValueHead`: a network on a pair of latents, with |z - g| beside them as in arXiv:2605.22164.
`QuasimetricHead`: projector, then IQE (or MRN), as in Wang et al., "Optimal Goal-Reaching Reinforcement
Learning via Quasimetric Learning", arXiv:2304.01203; minus it is a value (`NegativeDistance`).
`ValueEnsemble`: heads that differ in their first weights, to be read with caution where they disagree; the
minimum of two is that of Fujimoto et al., arXiv:1802.09477. `InverseDynamics`: the action that led from one
latent to the next, PLDM (arXiv:2502.14819).

    paper             here
    V(z), V(z, g)     ValueHead with goal=False, goal=True
    Q(z, a[, g])      ValueHead with action=True; actions in normalised units
    c                 Reading.caution      mean - c std of the members

Values are what is still earned: minus the steps to go, where each step costs one. Such a value is never
positive, and 0 at the goal; `ValueHeadConfig` builds both in. What `costs` minimise is minus a value.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from jepaplan.models.affine import Affine
from jepaplan.models.quasimetric import IQE, MRN
from jepaplan.types import InputError

_ROOT_EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class QuasimetricHeadConfig:
    """Shape of a `QuasimetricHead`."""

    hidden: int = 512  # width of the projector's hidden layers
    layers: int = 1  # hidden layers of the projector
    width: int = 512  # what the quasimetric sees: components x intervals
    components: int = 32
    quasimetric: Literal["iqe", "mrn"] = "iqe"
    norm: bool = True  # LayerNorm before each hidden activation

    def __post_init__(self) -> None:
        if min(self.hidden, self.width, self.components) < 1 or self.layers < 0:
            raise InputError(
                "a quasimetric head needs positive hidden, width and components, and layers >= 0; got "
                f"hidden={self.hidden}, "
                f"width={self.width}, components={self.components}, layers={self.layers}"
            )


def build_projector(latent_width: int, config: QuasimetricHeadConfig) -> nn.Sequential:
    """The network that makes of a latent what a distance compares."""
    widths = (latent_width, *(config.hidden for _ in range(config.layers)))
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [Affine(before, after), *([nn.LayerNorm(after)] if config.norm else []), nn.ReLU()]
    return nn.Sequential(*layers, Affine(widths[-1], config.width))


class QuasimetricHead(nn.Module):
    """Steps to go between raw latents; a quasimetric of any function of points is a quasimetric."""

    def __init__(self, latent_width: int, config: QuasimetricHeadConfig | None = None) -> None:
        super().__init__()
        config = config or QuasimetricHeadConfig()
        self.projector = build_projector(latent_width, config)
        kind = IQE if config.quasimetric == "iqe" else MRN
        self.distance = kind(width=config.width, components=config.components)
        # Stretches all distances: from the unit scale of latents to tens of steps in few updates.
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(
        self, source: Float[Tensor, "*#batch D"], goal: Float[Tensor, "*#batch D"]
    ) -> Float[Tensor, "*batch"]:
        """Distances of broadcastable batches; each side is projected before it is broadcast."""
        return self.between(self.project(source), self.project(goal))

    def pairwise(
        self, sources: Float[Tensor, "B M D"], goals: Float[Tensor, "B N D"]
    ) -> Float[Tensor, "B M N"]:
        """Distances from every source to every goal of the same problem."""
        return self.log_scale.exp() * self.distance.pairwise(self.project(sources), self.project(goals))

    def project(self, latents: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch W"]:
        """What the quasimetric compares."""
        return self.projector(latents)

    def between(
        self, source: Float[Tensor, "*#batch W"], goal: Float[Tensor, "*#batch W"]
    ) -> Float[Tensor, "*batch"]:
        """Distances of projected latents."""
        return self.log_scale.exp() * self.distance(source, goal)


class InverseDynamics(nn.Module):
    """The normalised action between two successive latents.

    With `moves_from` only the numbers from there on are read, and of the second latent how it differs from
    the first, ten times as large: what moves changes little in a step.
    """

    def __init__(self, latent_width: int, action_dim: int, hidden: int = 512, moves_from: int = 0) -> None:
        super().__init__()
        self.moves_from = moves_from
        seen = 2 * (latent_width - moves_from)
        self.layers = nn.Sequential(Affine(seen, hidden), nn.ReLU(), Affine(hidden, action_dim))

    def forward(
        self, latent: Float[Tensor, "*batch D"], next_latent: Float[Tensor, "*batch D"]
    ) -> Float[Tensor, "*batch A"]:
        """Predicted actions."""
        if self.moves_from:
            latent, next_latent = latent[..., self.moves_from :], next_latent[..., self.moves_from :]
            next_latent = 10 * (next_latent - latent)
        return self.layers(torch.cat([latent, next_latent], dim=-1))


@dataclass(frozen=True, kw_only=True)
class ValueHeadConfig:
    """What a value depends on, and what is true of it by construction."""

    goal: bool = True  # V(z, g) rather than V(z)
    action: bool = False  # Q(z, a[, g]): the value of taking a first
    geometry: Literal["network", "quasimetric"] = "network"  # quasimetric: minus a `QuasimetricHead`
    hidden: int = 256  # width of the hidden layers of the network
    layers: int = 2  # hidden layers of the network
    norm: bool = True  # LayerNorm before each hidden activation of the network
    nonpositive: bool = True  # V <= 0, as where every step costs; False where rewards may be positive
    zero_at_goal: bool = True  # V(g, g) = 0; only where there are goals, and always of a quasimetric
    quasimetric: QuasimetricHeadConfig = field(default_factory=QuasimetricHeadConfig)

    def __post_init__(self) -> None:
        if min(self.hidden, self.layers) < 1:
            raise InputError(
                "a value head needs hidden >= 1 and layers >= 1; got "
                f"hidden={self.hidden}, layers={self.layers}"
            )
        if self.geometry == "quasimetric" and (not self.goal or self.action or not self.nonpositive):
            raise InputError(
                "a quasimetric is a distance between two latents: it needs goal=True, action=False and "
                f"nonpositive=True; got goal={self.goal}, action={self.action}, "
                f"nonpositive={self.nonpositive}. Write geometry='network' for other values"
            )


class ValueHead(nn.Module):
    """V(z), V(z, g), Q(z, a) or Q(z, a, g) by a network of z, g, |z - g| and a.

    z - g itself is left out: the first layer is linear, so z and g hold it. Each is multiplied before it is
    broadcast, so one goal for thousands of imagined latents costs one row.
    """

    def __init__(self, latent_width: int, config: ValueHeadConfig, action_dim: int = 0) -> None:
        super().__init__()
        if config.action and action_dim < 1:
            raise InputError(
                f"an action value needs to know how many components actions have; got action_dim={action_dim}"
            )
        self.config = config
        hidden = config.hidden
        self.of_latent = Affine(latent_width, hidden)
        self.of_goal = Affine(latent_width, hidden, bias=False) if config.goal else None
        self.of_gap = Affine(latent_width, hidden, bias=False) if config.goal else None
        self.of_action = Affine(action_dim, hidden, bias=False) if config.action else None
        layers: list[nn.Module] = []
        for _ in range(config.layers - 1):
            layers += [*([nn.LayerNorm(hidden)] if config.norm else []), nn.ReLU(), Affine(hidden, hidden)]
        layers += [*([nn.LayerNorm(hidden)] if config.norm else []), nn.ReLU()]
        self.layers = nn.Sequential(*layers, Affine(hidden, 1))
        # As in `QuasimetricHead`: from the unit scale of networks to tens of steps in few updates.
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.log_radius = nn.Parameter(torch.tensor(-2.0)) if config.goal and config.zero_at_goal else None

    def forward(
        self,
        latent: Float[Tensor, "*#batch D"],
        goal: Float[Tensor, "*#batch D"] | None = None,
        action: Float[Tensor, "*#batch A"] | None = None,
    ) -> Float[Tensor, "*batch"]:
        """Values of broadcastable batches; what the head does not depend on is refused."""
        self._check(goal, action)
        mixed = self.of_latent(latent)
        if goal is not None and self.of_goal is not None and self.of_gap is not None:
            mixed = mixed + self.of_goal(goal) + self.of_gap((latent - goal).abs())
        if action is not None and self.of_action is not None:
            mixed = mixed + self.of_action(action)
        value = self.layers(mixed)[..., 0]
        if self.config.nonpositive:
            value = -F.softplus(value)
        value = self.log_scale.exp() * value
        return value if goal is None or self.log_radius is None else value * self._away(latent, goal)

    def _away(self, latent: Tensor, goal: Tensor) -> Tensor:
        """0 at the goal, 1/2 at the learned radius around it, towards 1 far from it."""
        assert self.log_radius is not None
        gap = _root((latent - goal).square().mean(-1))
        return gap / (gap + self.log_radius.exp())

    def _check(self, goal: Tensor | None, action: Tensor | None) -> None:
        for name, given, wanted in (("goal", goal, self.config.goal), ("action", action, self.config.action)):
            if (given is not None) != wanted:
                raise InputError(
                    f"this value head was built with {name}={wanted} and was given "
                    f"{f'no {name}' if wanted else 'one'}. Pass what it depends on and nothing else, or "
                    f"build it with ValueHeadConfig({name}={not wanted})"
                )


class NegativeDistance(nn.Module):
    """Minus a distance, as a value: never positive, 0 at the goal."""

    def __init__(self, distance: nn.Module) -> None:
        super().__init__()
        self.distance = distance

    def forward(
        self,
        latent: Float[Tensor, "*#batch D"],
        goal: Float[Tensor, "*#batch D"] | None = None,
        action: Tensor | None = None,
    ) -> Float[Tensor, "*batch"]:
        """Minus the steps from `latent` to `goal`."""
        if goal is None or action is not None:
            raise InputError("minus a distance is a value of a latent and a goal: pass a goal and no action")
        return -self.distance(latent, goal)


ReadBy = Literal["mean", "minimum", "lower_confidence"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the values of an ensemble become one."""

    by: ReadBy = "mean"
    caution: float = 1.0  # standard deviations below the mean, for "lower_confidence"

    def __post_init__(self) -> None:
        if not 0 <= self.caution < float("inf"):
            raise InputError(
                f"caution counts standard deviations below the mean, at least 0; got {self.caution}"
            )

    def __call__(self, values: Float[Tensor, "*batch M"]) -> Float[Tensor, "*batch"]:
        """One value from those of M members."""
        if self.by == "mean":
            return values.mean(-1)
        if self.by == "minimum":
            return values.amin(-1)
        return values.mean(-1) - self.caution * spread(values)


def spread(values: Float[Tensor, "*batch M"]) -> Float[Tensor, "*batch"]:
    """Standard deviation over the members; its gradient is finite where they agree."""
    return _root(values.var(-1, unbiased=False))


def _root(square: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """The square root of numbers well above epsilon squared, exactly 0 at 0 and differentiable there."""
    return square / ((square + _ROOT_EPSILON**2).sqrt() + _ROOT_EPSILON)


class ValueEnsemble(nn.Module):
    """M value heads of one kind; `forward` keeps them apart, on a last axis.

    Members run one after the other: on a processor core the forward pass was never slower than with batched
    weights or `vmap` (5 members of 128-256-256-1: even at 64 rows, half their time at 16,384, where one
    member's activations still fit the cache).
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if not members:
            raise InputError("an ensemble needs a member or more; got none")
        self.members = nn.ModuleList(members)

    def __len__(self) -> int:
        """M."""
        return len(self.members)

    def forward(
        self,
        latent: Float[Tensor, "*#batch D"],
        goal: Float[Tensor, "*#batch D"] | None = None,
        action: Float[Tensor, "*#batch A"] | None = None,
    ) -> Float[Tensor, "*batch M"]:
        """The value of every member."""
        return torch.stack([member(latent, goal, action) for member in self.members], dim=-1)


class ReadValue(nn.Module):
    """An ensemble read as one value: what costs and diagnostics take."""

    def __init__(self, ensemble: ValueEnsemble, reading: Reading | None = None) -> None:
        super().__init__()
        self.ensemble = ensemble
        self.reading = reading or Reading()

    @property
    def takes_goals(self) -> bool:
        """Whether it is V(z, g); V(z) alone otherwise."""
        member = self.ensemble.members[0]
        return not isinstance(member, ValueHead) or member.config.goal

    @property
    def takes_actions(self) -> bool:
        """Whether it is a value of taking an action first."""
        member = self.ensemble.members[0]
        return isinstance(member, ValueHead) and member.config.action

    def forward(
        self,
        latent: Float[Tensor, "*#batch D"],
        goal: Float[Tensor, "*#batch D"] | None = None,
        action: Float[Tensor, "*#batch A"] | None = None,
    ) -> Float[Tensor, "*batch"]:
        """One value for each item of broadcastable batches."""
        return self.reading(self.ensemble(latent, goal, action))

    def disagreement(
        self,
        latent: Float[Tensor, "*#batch D"],
        goal: Float[Tensor, "*#batch D"] | None = None,
        action: Float[Tensor, "*#batch A"] | None = None,
    ) -> Float[Tensor, "*batch"]:
        """Standard deviation of the members, in units of the value."""
        return spread(self.ensemble(latent, goal, action))


def build_values(
    config: ValueHeadConfig, latent_width: int, members: int = 1, action_dim: int = 0
) -> ValueEnsemble:
    """`members` heads of one kind, each with its own first weights."""
    if members < 1:
        raise InputError(f"an ensemble needs a member or more; got members={members}")
    if config.geometry == "quasimetric":
        return ValueEnsemble(
            [NegativeDistance(QuasimetricHead(latent_width, config.quasimetric)) for _ in range(members)]
        )
    return ValueEnsemble([ValueHead(latent_width, config, action_dim) for _ in range(members)])
