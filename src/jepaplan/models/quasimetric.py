"""Distances between latents: the interval quasimetric embedding (IQE), metric residuals (MRN), and Euclid's.

IQE: Wang and Isola, "Improved Representation of Asymmetrical Distances with Interval Quasimetric Embeddings",
arXiv:2211.15120, equations 1-3. A latent is cut into components; component i of d(u, v) is the length of the
union over j of [u_ij, max(u_ij, v_ij)].

    paper    here
    k        components    parts of the latent, each an axis-aligned set of intervals
    l        width / components
    alpha    sigmoid(IQE.raw_alpha)    weight of the largest component; the rest goes to their mean

How the unions are measured: `interval_unions.py`.

MRN: Liu et al., "Metric Residual Networks for Sample Efficient Goal-Conditioned Reinforcement Learning",
arXiv:2208.08133. A metric plus what is asymmetric; here half of the latent is for each, and components are
averaged as the mean of IQE's is.

    paper    here
    d_sym    Euclid's distance of the second half of a component
    d_asym   the largest max(0, u_j - v_j) of its first half
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepaplan.models.interval_unions import pairwise_union_lengths, union_lengths
from jepaplan.types import InputError

_PAIR_COMPONENTS = 4_194_304  # union lengths that `pairwise` holds at once, where no gradient is needed


def iqe_components(
    source: Float[Tensor, "*#batch K L"], goal: Float[Tensor, "*#batch K L"]
) -> Float[Tensor, "*batch K"]:
    """Exact length of the union over l of [source_l, max(source_l, goal_l)], with gradients."""
    source, goal = torch.broadcast_tensors(source, goal)
    shape = source.shape
    return union_lengths(source.reshape(-1, shape[-1]), goal.reshape(-1, shape[-1])).view(shape[:-1])


class IQE(nn.Module):
    """Interval quasimetric embedding: d(x, x) = 0, d >= 0 and the triangle inequality by construction.

    `maxmean` weighs the largest component against the mean of all with a learned alpha; `sum` adds the
    components and has no parameter. The authors advise eight intervals per component or more.
    """

    def __init__(
        self, *, width: int, components: int, reduction: Literal["maxmean", "sum"] = "maxmean"
    ) -> None:
        super().__init__()
        if components < 1 or width % components != 0:
            raise InputError(
                f"width {width} does not divide into {components} components; choose components from the "
                f"divisors of {width}, for example components={max(1, width // 16)}"
            )
        if reduction not in ("maxmean", "sum"):
            raise InputError(f"reduction is {reduction!r}; write reduction='maxmean' or reduction='sum'")
        self.width = width
        self.components = components
        self.raw_alpha = nn.Parameter(torch.tensor(-1.0)) if reduction == "maxmean" else None

    def forward(
        self, source: Float[Tensor, "*#batch D"], goal: Float[Tensor, "*#batch D"]
    ) -> Float[Tensor, "*batch"]:
        """Distances of broadcastable batches of latents."""
        return self._reduce(iqe_components(split_components(source, self), split_components(goal, self)))

    def pairwise(
        self, sources: Float[Tensor, "B M D"], goals: Float[Tensor, "B N D"]
    ) -> Float[Tensor, "B M N"]:
        """Distances from every source to every goal of the same problem, some sources at a time."""
        split_goals = split_components(goals, self)
        block = max(1, _PAIR_COMPONENTS // max(1, goals.shape[1] * self.components))
        problems = [
            torch.cat([self._reduce(pairwise_union_lengths(some, to)) for some in of.split(block)])
            for of, to in zip(split_components(sources, self), split_goals, strict=True)
        ]
        return torch.stack(problems)

    def extra_repr(self) -> str:
        """Shown by print."""
        reduction = "sum" if self.raw_alpha is None else "maxmean"
        return f"components={self.components} x {self.width // self.components}, reduction={reduction}"

    def _reduce(self, lengths: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch"]:
        if self.raw_alpha is None:
            return lengths.sum(-1)
        return torch.lerp(lengths.mean(-1), lengths.amax(-1), torch.sigmoid(self.raw_alpha).to(lengths.dtype))


class MRN(nn.Module):
    """Metric residual: the mean over components of a Euclidean distance and a largest excess."""

    def __init__(self, *, width: int, components: int, epsilon: float = 1e-12) -> None:
        super().__init__()
        if components < 1 or width % (2 * components) != 0:
            raise InputError(
                f"width {width} does not divide into {components} components of two halves; choose "
                f"components from the divisors of {width // 2}, for example {max(1, width // 16)}"
            )
        self.width = width
        self.components = components
        self.epsilon = epsilon  # inside the root: the gradient is finite where points coincide

    def forward(
        self, source: Float[Tensor, "*#batch D"], goal: Float[Tensor, "*#batch D"]
    ) -> Float[Tensor, "*batch"]:
        """Distances of broadcastable batches of latents."""
        excess, gap = (split_components(source, self) - split_components(goal, self)).chunk(2, dim=-1)
        straight = (gap.square().sum(-1) + self.epsilon).sqrt()
        return (excess.amax(-1).clamp(min=0) + straight).mean(-1)

    def pairwise(
        self, sources: Float[Tensor, "B M D"], goals: Float[Tensor, "B N D"]
    ) -> Float[Tensor, "B M N"]:
        """Distances from every source to every goal of the same problem, some sources at a time."""
        block = max(1, _PAIR_COMPONENTS // max(1, goals[0].numel()))
        problems = [
            torch.cat([self(some[:, None], to[None]) for some in of.split(block)])
            for of, to in zip(sources, goals, strict=True)
        ]
        return torch.stack(problems)

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"components={self.components} x {self.width // self.components}"


def split_components(latent: Tensor, distance: IQE | MRN) -> Tensor:
    """A latent cut into components; one of another width is refused."""
    if latent.shape[-1] != distance.width:
        raise InputError(
            f"latents have width {latent.shape[-1]}; this quasimetric was built with width={distance.width}"
        )
    return latent.unflatten(-1, (distance.components, -1))


class Euclidean(nn.Module):
    """Euclidean distance, or its square.

    `epsilon` sits inside the root, so the gradient is finite where points coincide.
    """

    def __init__(self, *, squared: bool = False, epsilon: float = 1e-12) -> None:
        super().__init__()
        if epsilon <= 0:
            raise InputError(
                f"epsilon keeps the root differentiable at 0, so it must be positive; got {epsilon}"
            )
        self.squared = squared
        self.epsilon = epsilon

    def forward(
        self, source: Float[Tensor, "*#batch D"], goal: Float[Tensor, "*#batch D"]
    ) -> Float[Tensor, "*batch"]:
        """Distances of broadcastable batches of latents."""
        square = (source - goal).square().sum(-1)
        return square if self.squared else (square + self.epsilon).sqrt()

    def pairwise(
        self, sources: Float[Tensor, "B M D"], goals: Float[Tensor, "B N D"]
    ) -> Float[Tensor, "B M N"]:
        """Distances from every source to every goal of the same problem."""
        # Differences, not |u|^2 + |v|^2 - 2uv: that form loses all digits, and its root all gradient, where
        # points coincide.
        distances = torch.cdist(sources, goals, compute_mode="donot_use_mm_for_euclid_dist")
        return distances.square() if self.squared else distances
