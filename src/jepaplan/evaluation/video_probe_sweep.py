"""Train the heads of a sweep side by side on features held in memory, and score each setting.

AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101, Algorithm 2) with a
learning rate and a weight decay per slice, a cosine schedule to zero without warm-up, decay on matrices only:
the protocol of V-JEPA 2's probes (arXiv:2506.09985, appendix), whose defaults are `Sweep`'s.

    paper       here
    alpha       learning_rates    at the start; times half a cosine
    lambda      weight_decays
    t           update
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from jepaplan.evaluation.video_probe_heads import AttentiveHeads, LinearHeads, matrices
from jepaplan.types import InputError

Heads = AttentiveHeads | LinearHeads

BETAS = (0.9, 0.999)
EPSILON = 1e-8
# Numbers of one activation of all settings computed at once: larger batches are split and their gradients
# added, which bounds the memory of deep heads. On a processor parts that fit its cache are also faster.
VALUES_AT_ONCE = 2**21
VALUES_AT_ONCE_ON_A_DEVICE = 2**25


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Which learning rates and weight decays are tried, each with each, and for how long."""

    learning_rates: tuple[float, ...] = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4)
    weight_decays: tuple[float, ...] = (0.01, 0.1, 0.4, 0.8)
    epochs: int = 20
    batch: int = 256  # items per update

    def __post_init__(self) -> None:
        """Refuse sweeps without a setting that can learn."""
        rates, decays = self.learning_rates, self.weight_decays
        if not rates or not decays or min(rates) <= 0 or min(decays) < 0:
            raise InputError(
                "a sweep needs positive learning_rates and weight_decays of at least zero; got "
                f"{rates} and {decays}"
            )
        if self.epochs < 1 or self.batch < 1:
            raise InputError(f"a sweep needs at least one epoch and item per batch; got {self}")

    @property
    def settings(self) -> tuple[tuple[float, float], ...]:
        """Learning rate and weight decay of every setting."""
        return tuple(product(self.learning_rates, self.weight_decays))


@dataclass(frozen=True)
class Items:
    """Features of clips, view by view, with their labels; any of the two may lie in half precision."""

    features: Float[Tensor, "items views N D"]
    labels: Int[Tensor, " items"]


class StackedAdamW:
    """AdamW of parameters whose leading axis is the setting."""

    def __init__(self, heads: Heads, settings: tuple[tuple[float, float], ...], updates: int) -> None:
        self.parameters = list(matrices(heads))
        self.first = [torch.zeros_like(parameter) for parameter, _ in self.parameters]
        self.second = [torch.zeros_like(parameter) for parameter, _ in self.parameters]
        self.settings, self.updates, self.update = torch.tensor(settings), updates, 0

    @torch.no_grad()
    def step(self) -> None:
        """One update from the gradients, which are then cleared."""
        rates = self.settings[:, 0] * 0.5 * (1 + math.cos(math.pi * self.update / self.updates))
        self.update += 1
        unbiased = [1 - beta**self.update for beta in BETAS]
        for (parameter, decays), first, second in zip(self.parameters, self.first, self.second, strict=True):
            gradient = parameter.grad
            if gradient is None:
                continue
            rate = rates.to(parameter).view(-1, *(1 for _ in parameter.shape[1:]))
            if decays:
                parameter.mul_(1 - rate * self.settings[:, 1].to(parameter).view_as(rate))
            first.lerp_(gradient, 1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            scale = (second / unbiased[1]).sqrt_().add_(EPSILON)
            parameter.sub_(rate / unbiased[0] * first / scale)
            parameter.grad = None


def train_heads(
    heads: Heads,
    items: Items,
    chosen: Int[Tensor, " chosen"],
    sweep: Sweep,
    generator: torch.Generator,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Train every setting on the chosen items; of several views one is drawn per item and epoch."""
    updates = sweep.epochs * math.ceil(len(chosen) / sweep.batch)
    optimizer = StackedAdamW(heads, sweep.settings, updates)
    views = items.features.shape[1]
    with torch.enable_grad():
        for epoch in range(sweep.epochs):
            order = chosen[torch.randperm(len(chosen), generator=generator)]
            seen = torch.randint(views, order.shape, generator=generator)
            for batch, view in zip(order.split(sweep.batch), seen.split(sweep.batch), strict=True):
                for part in _parts(heads, items, len(batch)):
                    logits = heads(items.features[batch[part], view[part]].float())
                    total = _losses(logits, items.labels[batch[part]]).sum()
                    (total / len(batch)).backward()
                optimizer.step()
            if progress is not None:
                progress(epoch + 1, sweep.epochs)


@torch.no_grad()
def view_averages(
    heads: Heads, items: Items, chosen: Int[Tensor, " chosen"]
) -> Float[Tensor, "S chosen classes"]:
    """Probabilities of the classes, averaged over views."""
    found = list[Tensor]()
    views = items.features.shape[1]
    for part in _parts(heads, items, len(chosen)):
        some = [heads(items.features[chosen[part], view].float()).softmax(dim=-1) for view in range(views)]
        found.append(torch.stack(some).mean(dim=0))
    return torch.cat(found, dim=1).cpu()


def _parts(heads: Heads, items: Items, count: int) -> Iterator[slice]:
    """Slices of a batch that fit `VALUES_AT_ONCE`, at least one item each."""
    tokens, width = items.features.shape[2:]
    values = VALUES_AT_ONCE if items.features.device.type == "cpu" else VALUES_AT_ONCE_ON_A_DEVICE
    size = max(1, values // heads.values_per_item(tokens, width))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _losses(logits: Float[Tensor, "S B classes"], labels: Int[Tensor, " B"]) -> Float[Tensor, "S B"]:
    """Cross-entropies, setting by setting."""
    settings = len(logits)
    wanted = labels.repeat(settings)
    return functional.cross_entropy(logits.flatten(0, 1), wanted, reduction="none").view(settings, -1)
