"""How the trained tensors lie on the processes: all of them on each, or a part of them on each.

The loop and the training state speak to a `Layout` and do not know which it is. `Replicated` is here: every
process holds everything, gradients are averaged in one all-reduce, the first process writes one file.
`sharded.Sharded` is the other: parameters, gradients, moments and moving averages are cut, one part for each
process, and a checkpoint is a folder to which all of them write.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from jepaplan.training import distributed
from jepaplan.training.checkpoint import load_weights, read_weights, save_weights
from jepaplan.training.distributed import processes
from jepaplan.training.stage import FitConfig, Stage


@dataclass(frozen=True)
class Stored:
    """A checkpoint that was found whole; its tensors come when they are asked for."""

    card: dict[str, Any]
    outline: Mapping[str, Tensor]  # names and shapes; the values need not be there
    tensors: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]  # cut and placed like the tensors given


@runtime_checkable
class Layout(Protocol):
    """Where parameters are, and all that follows from it. Every process calls every method."""

    suffix: str  # of a checkpoint's name

    def start_equal(self, objective: nn.Module) -> None:
        """Give every process the parameters and buffers of the first."""
        ...

    def average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """After backward: the mean over processes, as far as backward has not taken it already."""
        ...

    def clip(self, parameters: list[nn.Parameter], limit: float | None) -> Tensor:
        """The norm of the whole gradient, which is then scaled down to `limit` where there is one."""
        ...

    def whole(self, module: nn.Module) -> Mapping[str, Tensor]:
        """A module's tensors, uncut; only the process that writes may count on them."""
        ...

    def fill(self, module: nn.Module, path: Path) -> None:
        """Load a weights file into a module."""
        ...

    def write(self, path: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
        """Write a checkpoint, whole or not at all."""
        ...

    def read(self, path: Path) -> Stored:
        """Open a checkpoint; an InputError says what is wrong with it."""
        ...


class Replicated:
    """Every process holds everything."""

    suffix = ".safetensors"

    def start_equal(self, objective: nn.Module) -> None:
        """Give every process the parameters and buffers of the first."""
        distributed.start_equal(objective)

    def average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """One all-reduce for all of them."""
        distributed.average_gradients(parameters)

    def clip(self, parameters: list[nn.Parameter], limit: float | None) -> Tensor:
        """The norm before clipping."""
        gradients = [value.grad for value in parameters if value.grad is not None]
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        if limit is not None:
            nn.utils.clip_grads_with_norm_(parameters, limit, norm, foreach=True)
        return norm

    def whole(self, module: nn.Module) -> Mapping[str, Tensor]:
        """The module's tensors as they are."""
        return module.state_dict()

    def fill(self, module: nn.Module, path: Path) -> None:
        """Every process reads the file."""
        load_weights(path, module)

    def write(self, path: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
        """One file, written by the first process."""
        if processes().writes:
            save_weights(path, tensors, card)

    def read(self, path: Path) -> Stored:
        """Every process reads the file."""
        weights = read_weights(path)
        return Stored(weights.card, weights.tensors, lambda _like: weights.tensors)


def open_layout(stage: Stage, config: FitConfig) -> Layout:
    """The layout that `config.parallel` asks for; with "sharded" the objective's parameters are cut here."""
    if config.parallel == "replicated":
        return Replicated()
    from jepaplan.training.sharded import Sharded  # seconds of imports that nobody else needs

    units = () if stage.shard_units is None else stage.shard_units()
    return Sharded(stage.objective, units, config.precision)
