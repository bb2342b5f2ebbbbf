"""Boxes and balls: how far a point lies outside of one, zero inside."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from jepaplan.types import InputError


@runtime_checkable
class Region(Protocol):
    """A set of points of W components."""

    def outside(self, points: Float[Tensor, "*batch W"]) -> Float[Tensor, "*batch"]:
        """Distance to the nearest point of the region; zero inside."""
        ...


@dataclass(frozen=True)
class Box:
    """All points between two corners; infinite corners leave a side open."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse boxes without inside."""
        if len(self.low) != len(self.high) or any(a > b for a, b in zip(self.low, self.high, strict=True)):
            raise InputError(f"a box needs low <= high in every component; got {self.low} and {self.high}")

    def outside(self, points: Float[Tensor, "*batch W"]) -> Float[Tensor, "*batch"]:
        """Distance to the nearest point of the box; zero inside."""
        _refuse_other_width(points, len(self.low))
        return outside_box(points, points.new_tensor(self.low), points.new_tensor(self.high))


@dataclass(frozen=True)
class Ball:
    """All points within a radius of a centre; a disc where points have two components."""

    centre: tuple[float, ...]
    radius: float

    def __post_init__(self) -> None:
        """Refuse balls without inside."""
        if self.radius < 0:
            raise InputError(f"a ball's radius is 0 or more; got {self.radius}")

    def outside(self, points: Float[Tensor, "*batch W"]) -> Float[Tensor, "*batch"]:
        """Distance to the nearest point of the ball; zero inside."""
        _refuse_other_width(points, len(self.centre))
        return outside_ball(points, points.new_tensor(self.centre), points.new_tensor(self.radius))


def outside_box(
    points: Float[Tensor, "*#batch W"], low: Float[Tensor, "*#batch W"], high: Float[Tensor, "*#batch W"]
) -> Float[Tensor, "*batch"]:
    """Distance to the nearest point of each box."""
    return torch.linalg.vector_norm((low - points).relu() + (points - high).relu(), dim=-1)


def outside_ball(
    points: Float[Tensor, "*#batch W"], centre: Float[Tensor, "*#batch W"], radius: Float[Tensor, "*#batch"]
) -> Float[Tensor, "*batch"]:
    """Distance to the nearest point of each ball."""
    return (torch.linalg.vector_norm(points - centre, dim=-1) - radius).relu()


def _refuse_other_width(points: Tensor, width: int) -> None:
    if points.shape[-1] != width:
        raise InputError(f"points have {points.shape[-1]} components, this region {width}")
