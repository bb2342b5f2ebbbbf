"""Several processes train exactly what one would.

Every process draws the same global batch of B items, keeps its own B / world of them (`shard`), and shares
latents with the others through `gather`, which is differentiable. The rule for a loss is one sentence: **the
mean over processes of what they return must be the loss that one process would compute on the global batch.**
All of these obey it:

    mean over own items                       shards are equal, so the mean of their means is the global mean
    statistics of gathered latents            every process returns the same global value
    own items against gathered goals          the mean over processes completes the mean over rows

Why the gradient is then right, whichever of them are mixed. Let L_r be the loss of process r and L = 1/W
sum_r L_r. `gather` copies latents z_r to all, so its exact adjoint sums what all processes send back: d(sum_q
L_q)/dz_r. Hence process r holds g_r = d(sum_q L_q)/dz_r dz_r/dtheta + direct terms of L_r in theta, and sum_r
g_r = d(sum_q L_q)/dtheta. `average_gradients` divides by W, which leaves dL/dtheta. No other factor appears
anywhere.

Gradients are averaged in one flat all-reduce after backward, which is the arithmetic of
DistributedDataParallel without its wrapper: an objective may call any of its parts, leave some unused in an
update, and keeps its parameter names.
"""

import dataclasses
import os
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor, nn

from jepaplan.types import InputError


@dataclass(frozen=True)
class Processes:
    """Who we are among how many; the first process (rank 0) alone writes files."""

    rank: int
    world: int

    @property
    def writes(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0


_alone = False


@contextmanager
def alone() -> Generator[None, None, None]:
    """Inside, nothing is shared: each process examines the whole held-out batch as the only one."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


_parts = 1


@contextmanager
def in_parts(count: int) -> Generator[None, None, None]:
    """Inside, an objective sees one of `count` parts of its items, so nothing can be gathered."""
    global _parts
    before, _parts = _parts, count
    try:
        yield
    finally:
        _parts = before


def processes() -> Processes:
    """This process among those that train together; alone outside `distributed()` and inside `alone()`."""
    if not _alone and dist.is_available() and dist.is_initialized():
        return Processes(dist.get_rank(), dist.get_world_size())
    return Processes(0, 1)


@contextmanager
def distributed(
    device: torch.device | str = "cpu", store: Path | None = None, minutes: float = 30
) -> Generator[Processes, None, None]:
    """Join the processes that torchrun started: gloo on CPU, nccl on GPU. Without torchrun, stay alone.

    `store` is a file to meet at instead of torchrun's address; RANK and WORLD_SIZE are read either way.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or dist.is_initialized():
        yield processes()
        return
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # Its functions have the group that exists at its import as a default argument, and optimisers import it.
    # Imported while we are joined, it keeps the group's threads alive for ever, and one that lets go of a
    # tensor while Python ends aborts the process.
    import_module("torch.distributed.nn.functional")
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method="env://" if store is None else f"file://{store.resolve()}",
        rank=int(os.environ["RANK"]),
        world_size=world,
        timeout=timedelta(minutes=minutes),
    )
    try:
        yield processes()
    finally:
        dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    """Concatenate over processes; the adjoint sums what every process sends back, then keeps our own rows."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own.contiguous())
        ctx.rows = own.shape[0]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        first = dist.get_rank() * ctx.rows
        return total[first : first + ctx.rows]


def gather(own: Shaped[Tensor, "B_own ..."]) -> Shaped[Tensor, "B ..."]:
    """The rows of all processes in order of rank, with gradients; with one process, `own` itself."""
    if _parts > 1:
        raise InputError(
            "this loss looks at all items of a batch together, but with "
            f"accumulate={_parts} it sees a part of them at a time: the mean of the parts' losses is another "
            "loss. Use accumulate=1 with more processes or a smaller batch, or a loss that is a mean over "
            "items."
        )
    if processes().world == 1:
        return own
    if own.dtype == torch.bool:  # gloo has no boolean collective
        return gather(own.to(torch.uint8)).bool()
    return cast(Tensor, _Gather.apply(own))


def map_tensors(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """Apply `function` to every tensor of nested records, sequences and mappings; the rest stays as it is."""
    if isinstance(batch, Tensor):
        return function(batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = (field.name for field in dataclasses.fields(batch) if field.init)
        changes = {name: map_tensors(function, getattr(batch, name)) for name in fields}
        return dataclasses.replace(batch, **changes)
    if isinstance(batch, Mapping):
        items = cast(Mapping[Any, Any], batch).items()
        return {key: map_tensors(function, value) for key, value in items}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(function, value) for value in cast(tuple[Any, ...], batch)))
    if isinstance(batch, tuple | list):
        values = [map_tensors(function, value) for value in cast(Iterable[Any], batch)]
        return tuple(values) if isinstance(batch, tuple) else values
    return batch


def shard(batch: Any, size: int, who: Processes) -> Any:
    """The items of the global batch that belong to one process: an equal, contiguous part of every tensor.

    Tensors without axes are shared by all; any other must have `size` rows.
    """
    if who.world == 1:
        return batch
    if size % who.world:
        raise InputError(
            f"a batch of {size} items cannot be shared evenly by {who.world} processes; unequal parts would "
            "weigh items "
            f"unequally. Use a batch of {size - size % who.world or who.world} or of "
            f"{size + who.world - size % who.world}."
        )
    part = size // who.world

    def own(tensor: Tensor) -> Tensor:
        if tensor.ndim == 0:
            return tensor
        if tensor.shape[0] != size:
            raise InputError(
                f"a batch of {size} items holds a tensor of shape {list(tensor.shape)}; to share it among "
                f"{who.world} "
                "processes its first axis must count the items. Put what all items share into the objective."
            )
        return tensor[who.rank * part : (who.rank + 1) * part]

    return map_tensors(own, batch)


def cut(share: Any, size: int, parts: int) -> list[Any]:
    """A process's `size` items in `parts` equal, contiguous parts."""
    if size % parts:
        raise InputError(
            f"each process has {size} items of the batch, which cannot be cut into accumulate={parts} equal "
            "parts; unequal ones would weigh items unequally. Use a batch that the number of processes times "
            "accumulate divides."
        )
    return [shard(share, size, Processes(part, parts)) for part in range(parts)]


@torch.no_grad()
def start_equal(module: nn.Module) -> None:
    """Give every process the parameters and buffers of the first."""
    if processes().world > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)


@torch.no_grad()
def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace each gradient by its mean over processes, in one all-reduce.

    A parameter that no process used keeps no gradient, so the optimiser skips it as it would alone; one that
    some used counts as zero elsewhere. The flags that tell these apart travel at the end of the same buffer.
    """
    world = processes().world
    if world == 1 or not parameters:
        return
    used = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
    pieces = [
        torch.zeros_like(parameter).flatten() if parameter.grad is None else parameter.grad.flatten()
        for parameter in parameters
    ]
    flat = torch.cat([*pieces, used.to(pieces[0])])
    dist.all_reduce(flat)
    *sums, flags = flat.split([parameter.numel() for parameter in parameters] + [len(parameters)])
    for parameter, total, flag in zip(parameters, sums, flags.tolist(), strict=True):
        if flag > 0:
            parameter.grad = (total / world).view_as(parameter).to(parameter.dtype)


@torch.no_grad()
def average_metrics(metrics: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean over processes of scalar metrics; every process must report the same names."""
    world = processes().world
    if not metrics:
        return {}
    values = torch.stack([value.detach().float().reshape(()) for value in metrics.values()])
    if world > 1:
        dist.all_reduce(values)
    return dict(zip(metrics, (values / world).unbind(), strict=True))


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether `flag` holds in at least one process; all of them get the same answer."""
    if processes().world == 1:
        return flag
    total = torch.tensor([float(flag)], device=device)
    dist.all_reduce(total)
    return bool(total.item() > 0)


def barrier() -> None:
    """Wait until all processes are here."""
    if processes().world > 1:
        dist.barrier()
