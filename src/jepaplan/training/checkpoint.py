"""Files that hold tensors: written whole or not at all, and refused when a single byte has changed.

One safetensors file holds the tensors and, in its metadata, a JSON card and the sha256 of the file itself,
taken with the 64 digits of that very field set to zero. So tensors and card can never come from two different
writes, every byte is covered (header too), any safetensors reader still opens the file, and nothing in it can
run code.

A write goes to a temporary file beside the target, is flushed to the disk, renamed, and the folder flushed:
at every moment the name holds either the old file or the new one.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from jepaplan.types import InputError

PARTIAL = (
    ".partial"  # suffix of temporary files; what a kill leaves behind is swept when the run is next opened
)
_BLANK = b"0" * 64
_SHA256_FIELD = re.compile(rb'"sha256":"([0-9a-f]{64})"')
_SHOWN = 5  # mismatches named in an error, of however many there are


@dataclass(frozen=True)
class Weights:
    """The contents of a weights file: tensors by name, and the card that says where they come from."""

    tensors: dict[str, Tensor]
    card: dict[str, Any]


def atomic_write(path: Path, payload: bytes) -> None:
    """Replace `path` by `payload`; a reader, a kill or a full disk never sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        flush_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(
            f"could not write {path} ({len(payload) / 1e6:.1f} MB): {error.strerror or error}. What was "
            "there before "
            "is untouched. Free space on the disk (or choose another folder), then run the same command "
            "again."
        ) from error


def flush_folder(folder: Path) -> None:
    """Bring a folder's names to the disk: a rename survives a power cut only when they are there."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file or a folder with all that is in it; what is not there is no error."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _pack(tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> bytes:
    # Clones, because tied parameters share memory and safetensors refuses to say which name owns it.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    metadata = {"sha256": _BLANK.decode(), "card": json.dumps(dict(card), sort_keys=True)}
    blank = safetensors.torch.save(plain, metadata)
    digest = hashlib.sha256(blank).hexdigest().encode()
    return blank.replace(b'"sha256":"' + _BLANK + b'"', b'"sha256":"' + digest + b'"', 1)


def _refuse(path: Path, why: str) -> InputError:
    return InputError(
        f"{path} is refused: {why}. Nothing was loaded. Use another copy of the file (a run keeps "
        "`weights.safetensors`, `best.safetensors` and two generations under `state/`), or train again."
    )


def _verified(path: Path) -> tuple[bytes, bytes]:
    """The whole file and its JSON header, once the checksum agrees."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror or error}. Expected a weights file."
        ) from error
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    field = _SHA256_FIELD.search(header)
    if field is None:
        raise _refuse(path, f"its {len(content)} bytes hold no checksum, so it is damaged or not ours")
    first, last = 8 + field.start(1), 8 + field.end(1)
    digest = hashlib.sha256(content[:first])
    digest.update(_BLANK)
    digest.update(memoryview(content)[last:])
    if digest.hexdigest().encode() != field.group(1):
        raise _refuse(path, "its checksum does not match its contents, so it was cut short or changed")
    return content, header


def read_weights(path: Path) -> Weights:
    """Everything in a file, checked to the byte but not against any architecture."""
    content, header = _verified(path)
    try:
        card = json.loads(json.loads(header)["__metadata__"]["card"])
        return Weights(safetensors.torch.load(content), card)
    except (KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise _refuse(path, f"it is whole but not a weights file ({error})") from error


def save_weights(path: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write named tensors and a JSON card to `path` as one checked safetensors file."""
    atomic_write(path, _pack(tensors, card))


def load_weights(
    path: Path, expected: nn.Module | Mapping[str, Sequence[int]], strict: bool = True
) -> Weights:
    """Read a file that must fit `expected`: a module, which receives the tensors, or shapes by name.

    Nothing is copied before every name and shape agrees. With `strict=False` names may be missing on either
    side; a shape that differs is refused all the same.
    """
    weights = read_weights(path)
    if isinstance(expected, nn.Module):
        shapes: dict[str, tuple[int, ...]] = {
            name: tuple(tensor.shape) for name, tensor in expected.state_dict().items()
        }
    else:
        shapes = {name: tuple(shape) for name, shape in expected.items()}
    check_shapes(path, weights.tensors, shapes, strict=strict)
    if isinstance(expected, nn.Module):
        expected.load_state_dict(weights.tensors, strict=strict)
    return weights


def check_shapes(
    path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], strict: bool = True
) -> None:
    """Refuse tensors of another architecture, naming the first differences."""
    problems: list[str] = []
    for name, shape in expected.items():
        if name not in tensors:
            if strict:
                problems.append(f"{name} {list(shape)}: missing in the file")
        elif tuple(tensors[name].shape) != tuple(shape):
            problems.append(f"{name}: the file has {list(tensors[name].shape)}, the model {list(shape)}")
    if strict:
        extra = (name for name in tensors if name not in expected)
        problems += [f"{name} {list(tensors[name].shape)}: unknown to the model" for name in extra]
    if problems:
        shown = "\n  ".join(problems[:_SHOWN])
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise InputError(
            f"{path} was written by another architecture:\n  {shown}{more}\nBuild the model from the "
            "configuration in "
            "`config.json` beside the file, or choose weights trained with the configuration you have."
        )
