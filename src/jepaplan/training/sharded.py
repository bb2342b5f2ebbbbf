"""Every process holds a part of every tensor (FSDP2), and a checkpoint is a folder that all of them write.

`torch.distributed.fsdp.fully_shard`; the idea is ZeRO stage 3, Rajbhandari et al., arXiv 1910.02054.

    paper                    here
    N_d                      processes().world
    partitioned parameter    a DTensor; its local part is rows of the first axis, about 1 / N_d of them

The objective is one unit, and so is every module that the stage names (blocks of encoder, predictor and
moving average alike): a unit's parameters are gathered when it is called and let go when it returns. The
reduce-scatter of the backward pass averages gradients, in fp32 whatever the precision, so only parameters
that cannot be cut, those without axes, are left to `distributed.average_gradients`. Optimiser and moving
averages work on local parts: what they do to one element does not depend on another.

Every process must use the same parameters in an update; here no flags tell who used what.

With bf16, parameters are gathered in bf16 and autocast chooses the precision of each operation as it does
without sharding; the parts, the moments and the averages stay fp32.

Files are safetensors, written and read by torch.distributed.checkpoint, whose own default format is pickle
and could run code. A folder knows the sha256 of each of its files, and any number of processes can continue
from it. All processes must see the same file system.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from jepaplan.training import distributed
from jepaplan.training.checkpoint import PARTIAL, atomic_write, flush_folder, load_weights, remove
from jepaplan.training.distributed import any_process, barrier, processes
from jepaplan.training.layout import Stored
from jepaplan.types import InputError

_CARD = "card.json"


def shard_modules(
    objective: nn.Module, units: Sequence[nn.Module], precision: Literal["fp32", "bf16"]
) -> None:
    """Cut the parameters of `objective` among the processes, `units` gathered one at a time."""
    depths = {module: name.count(".") + 1 for name, module in objective.named_modules()}
    strangers = [type(unit).__name__ for unit in units if unit not in depths]
    if strangers:
        raise InputError(
            f"shard_units names modules that the objective does not hold: {', '.join(strangers[:5])}. Name "
            "blocks of its own encoder, predictor and moving average."
        )
    device = next(objective.parameters()).device
    mesh = init_device_mesh(device.type, (processes().world,))
    half = torch.bfloat16 if precision == "bf16" else None
    policy = MixedPrecisionPolicy(
        param_dtype=half,
        reduce_dtype=None if half is None else torch.float32,
        cast_forward_inputs=False,  # autocast decides; a batch of numbers is not rounded at the door
    )
    without_axes = {value for value in objective.parameters() if value.ndim == 0}
    inner_first = sorted(dict.fromkeys(units), key=lambda unit: -depths[unit])
    for unit in [*(unit for unit in inner_first if unit is not objective), objective]:
        fully_shard(
            unit, mesh=mesh, reshard_after_forward=True, mp_policy=policy, ignored_params=without_axes
        )
        if device.type != "cuda":
            # gloo took "average" for "sum" without a word in some releases (pytorch issue 162338), so FSDP is
            # told to sum and divide, which is right in all of them.
            cast(FSDPModule, unit).set_force_sum_reduction_for_comms(True)


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Sharded:
    """Every process holds a part of everything; the layout that training speaks to."""

    suffix = ".sharded"

    def __init__(
        self, objective: nn.Module, units: Sequence[nn.Module], precision: Literal["fp32", "bf16"]
    ) -> None:
        self.device = next(objective.parameters()).device
        if isinstance(objective, FSDPModule):  # trained by an earlier stage
            return
        if any(isinstance(module, FSDPModule) for module in objective.modules()):
            raise InputError(
                "this objective holds modules that an earlier stage has sharded as parts of another one. "
                "Train one objective in both stages, or copy the weights of the earlier run into new modules."
            )
        distributed.start_equal(objective)
        if processes().world > 1:  # alone, a part is the whole
            shard_modules(objective, units, precision)

    def start_equal(self, objective: nn.Module) -> None:
        """Nothing: processes were made equal before their parameters were cut."""

    def average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """The backward pass has averaged all that is cut; what is not, here."""
        distributed.average_gradients([value for value in parameters if not isinstance(value, DTensor)])

    @torch.no_grad()
    def clip(self, parameters: list[nn.Parameter], limit: float | None) -> Tensor:
        """The norm of the whole gradient: squares of all parts, and of what every process has whole once."""
        gradients = [value.grad for value in parameters if value.grad is not None]
        cut = [local_part(value) for value in gradients if isinstance(value, DTensor)]
        uncut = [value for value in gradients if not isinstance(value, DTensor)]
        squares = _sum_of_squares(cut, self.device)
        if processes().world > 1:
            dist.all_reduce(squares)
        norm = (squares + _sum_of_squares(uncut, self.device)).sqrt()
        if limit is not None:
            coefficient = (limit / (norm + 1e-6)).clamp(max=1.0)
            for part in (*cut, *uncut):
                part.mul_(coefficient)
        return norm

    def whole(self, module: nn.Module) -> Mapping[str, Tensor]:
        """Each tensor gathered in turn; the process that writes keeps it, in the memory of its host."""
        tensors: dict[str, Tensor] = {}
        for name, value in module.state_dict().items():
            full = value.full_tensor() if isinstance(value, DTensor) else value
            if processes().writes:
                tensors[name] = full.cpu()
        return tensors

    def fill(self, module: nn.Module, path: Path) -> None:
        """Every process reads the file and keeps its parts."""
        targets = module.state_dict()
        weights = load_weights(path, {name: value.shape for name, value in targets.items()})
        filled: dict[str, Tensor] = {}
        for name, target in targets.items():
            value = weights.tensors[name].to(target.device)
            if isinstance(target, DTensor):
                value = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
            filled[name] = value
        module.load_state_dict(filled)

    def write(self, path: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
        """All processes write into a hidden folder; when all is on the disk it gets its name."""
        partial = path.with_name(f".{path.name}{PARTIAL}")
        if processes().writes:
            remove(partial)
            partial.mkdir(parents=True)
        barrier()
        writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
        try:
            with _no_word_about_one_process():
                save(dict(tensors), storage_writer=writer, no_dist=processes().world == 1)
        except (CheckpointException, OSError) as error:
            raise InputError(
                f"could not write {path}: {error}. The checkpoint before it is untouched. Free space on the "
                "disk that all processes share, then run the same command again."
            ) from error
        digests = self._digests(sorted(file.name for file in partial.glob("*.safetensors")), partial)
        if processes().writes:
            content = json.dumps({"card": dict(card), "files": digests}, sort_keys=True)
            seal = hashlib.sha256(content.encode()).hexdigest()
            atomic_write(partial / _CARD, json.dumps({"sha256": seal, "content": content}).encode())
            _rename_folder(partial, path)
        barrier()

    def read(self, path: Path) -> Stored:
        """Verify every file, the work shared by the processes; all of them accept or refuse together."""
        card, files, problem = _read_card(path)
        if not any_process(bool(problem), self.device):
            found = self._digests(sorted(files), path)
            wrong = [name for name in files if found[name] != files[name]]
            problem = f"{', '.join(wrong[:5])} cut short or changed" if wrong else ""
        if any_process(bool(problem), self.device):
            raise InputError(
                f"{path} is refused: {problem or 'another process could not read it'}. Nothing was loaded."
            )
        found = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
        stored = cast(dict[str, TensorStorageMetadata], found)
        outline = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
            for name, entry in stored.items()
        }

        def tensors(like: Mapping[str, Tensor]) -> dict[str, Tensor]:
            targets = {name: torch.empty_like(value) for name, value in like.items()}
            reader = HuggingFaceStorageReader(str(path))
            with _no_word_about_one_process():
                load(targets, storage_reader=reader, no_dist=processes().world == 1)
            return targets

        return Stored(card, outline, tensors)

    def _digests(self, names: list[str], folder: Path) -> dict[str, str]:
        """The sha256 of each file, or words where it cannot be read; every process reads some of them."""
        who = processes()
        own = {name: _digest(folder / name) for name in names[who.rank :: who.world]}
        if who.world == 1:
            return own
        shares: list[dict[str, str]] = [{} for _ in range(who.world)]
        dist.all_gather_object(shares, own)
        return {name: digest for share in shares for name, digest in share.items()}


@contextmanager
def _no_word_about_one_process() -> Generator[None, None, None]:
    """One process is what was asked for; torch warns of it all the same."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _sum_of_squares(tensors: list[Tensor], device: torch.device) -> Tensor:
    if not tensors:
        return torch.zeros((), device=device)
    return torch.stack([value.float().square().sum() for value in tensors]).sum()


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _read_card(path: Path) -> tuple[dict[str, Any], dict[str, str], str]:
    """The card, the checksums of the files, and what is wrong (nothing: the empty string)."""
    try:
        sealed = json.loads((path / _CARD).read_text())
        if hashlib.sha256(sealed["content"].encode()).hexdigest() != sealed["sha256"]:
            return {}, {}, f"{_CARD} was changed"
        content = json.loads(sealed["content"])
        return content["card"], content["files"], ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {}, {}, f"{_CARD} cannot be read ({error})"


def _rename_folder(partial: Path, path: Path) -> None:
    """Give a finished folder its name. One that has the name already steps aside, and is deleted last."""
    flush_folder(partial)
    former = path.with_name(f".{path.name}.former{PARTIAL}")
    remove(former)
    if path.exists():
        os.rename(path, former)
    os.rename(partial, path)
    flush_folder(path.parent)
    remove(former)
