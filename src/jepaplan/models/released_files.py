"""Files of released V-JEPA 2 weights, opened with care: what they hold, and which shapes that makes.

Two formats (see `pretrained.py`): a folder of transformers with a record of its shapes, and Meta's torch
files with none, whose shapes are read from the tensors. A torch file may carry pickled code; it is opened so
that none can run, and what it wanted to run is named.
"""

import hashlib
import json
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepaplan.models.masked_predictor import MaskedPredictorConfig
from jepaplan.models.video_vit import VIDEO_SIZES, VideoTransformerConfig
from jepaplan.types import InputError


def read_card(path: Path) -> dict[str, Any]:
    """The record of shapes in a folder of transformers."""
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read {path}: {error}. Expected the config.json of a V-JEPA 2 model"
        ) from error
    if not isinstance(card, dict) or card.get("model_type") != "vjepa2":
        kind = card.get("model_type") if isinstance(card, dict) else type(card).__name__
        raise InputError(f"{path} describes {kind!r}; expected model_type 'vjepa2'")
    return card


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: the only one, or those that its index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise InputError(
            f"{folder} holds neither model.safetensors nor model.safetensors.index.json. Files named "
            "pytorch_model.bin may run code and are not read: save again with "
            "`model.save_pretrained(folder, safe_serialization=True)`"
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"cannot read {index}: {error!r}. Expected a weight_map of file names") from error
    strangers = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if strangers:
        raise InputError(
            f"{index} names {strangers[0]!r}, which is no file of {folder}. Fetch the folder again"
        )
    return [folder / name for name in names]


def recorded_shapes(
    path: Path, card: Mapping[str, Any]
) -> tuple[VideoTransformerConfig, MaskedPredictorConfig]:
    """Shapes from transformers' record; defaults are those of its `VJEPA2Config`."""
    for key, due in {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True}.items():
        if card.get(key, due) != due:
            raise InputError(f"{path} says {key}: {card[key]!r}; only {due!r} is known here")

    def number(key: str, default: int) -> int:
        found = card.get(key, default)
        if isinstance(found, list) and len(set(found)) == 1:  # both sides of a square
            found = found[0]
        if not isinstance(found, int):
            raise InputError(f"{path} says {key}: {found!r}; expected one whole number")
        return found

    encoder = VideoTransformerConfig(
        frames=number("frames_per_clip", 64),
        image=number("crop_size", 256),
        channels=number("in_chans", 3),
        patch=number("patch_size", 16),
        tubelet=number("tubelet_size", 2),
        width=number("hidden_size", 1024),
        depth=number("num_hidden_layers", 24),
        heads=number("num_attention_heads", 16),
        mlp_ratio=float(card.get("mlp_ratio", 4.0)),
        rope_layout="tiled",
    )
    predictor = MaskedPredictorConfig(
        width=number("pred_hidden_size", 384),
        depth=number("pred_num_hidden_layers", 12),
        heads=number("pred_num_attention_heads", 12),
        mlp_ratio=float(card.get("pred_mlp_ratio", 4.0)),
        mask_tokens=number("pred_num_mask_tokens", 10),
        rope_layout="tiled",
    )
    return encoder, predictor


def read_torch_file(path: Path) -> dict[str, Any]:
    """Tensors, numbers and names of a torch file; anything else pickled into it is refused by its name."""
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # written before torch 1.6: not a zip, so it cannot be mapped
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = f"wants to run {code[1]}" if code else f"holds more than tensors, numbers and names ({error})"
        raise InputError(
            f"{path} is refused: it {why} when opened, and weights need no code. Nothing of it was run. "
            "Fetch the file again from where its authors published it"
        ) from error
    except (OSError, RuntimeError, EOFError) as error:
        raise InputError(f"cannot read {path}: {error}. Expected a torch file such as vitl.pt") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}; expected weights by the names of models")
    return content


def encoder_shape(
    path: Path, tensors: Mapping[str, Tensor], clip: tuple[int, int], heads: int | None
) -> VideoTransformerConfig:
    """A configuration from the shapes of the tensors; only the heads must be known otherwise."""
    patches = tensors.get("patches.weight")
    if patches is None or patches.ndim != 5:
        raise InputError(
            f"{path} has no video patch embedding ('patch_embed.proj.weight' of 5 axes); expected V-JEPA 2"
        )
    width, channels, tubelet, patch, _ = patches.shape
    known = {size.width: size.heads for size in VIDEO_SIZES.values() if size.patch == 16}
    return VideoTransformerConfig(
        frames=clip[0],
        image=clip[1],
        channels=channels,
        patch=patch,
        tubelet=tubelet,
        width=width,
        heads=_heads(path, width, heads or known.get(width)),
        depth=_depth(tensors),
        mlp_ratio=_mlp_ratio(path, tensors, width),
        rope_layout="tiled",
    )


def predictor_shape(path: Path, tensors: Mapping[str, Tensor], heads: int | None) -> MaskedPredictorConfig:
    """A configuration from the shapes of the tensors; only the heads must be known otherwise."""
    tokens = tensors.get("mask_tokens")
    if tokens is None:
        raise InputError(f"{path} has a predictor without mask tokens; expected V-JEPA 2's masked predictor")
    width = tokens.shape[-1]
    return MaskedPredictorConfig(
        width=width,
        heads=_heads(path, width, heads or {384: 12}.get(width)),
        depth=_depth(tensors),
        mlp_ratio=_mlp_ratio(path, tensors, width),
        mask_tokens=len(tokens),
        rope_layout="tiled",
    )


def _heads(path: Path, width: int, heads: int | None) -> int:
    if heads is None:
        raise InputError(
            f"{path} holds a transformer of width {width}, which none of the released ones has, and its "
            "tensors do not say how many heads it was trained with: write heads=(encoder's, predictor's)"
        )
    return heads


def _depth(tensors: Mapping[str, Tensor]) -> int:
    numbers = [int(found[1]) for name in tensors if (found := re.match(r"blocks\.(\d+)\.", name))]
    return max(numbers, default=-1) + 1


def _mlp_ratio(path: Path, tensors: Mapping[str, Tensor], width: int) -> float:
    first = tensors.get("blocks.0.expand.weight")
    if first is None:
        raise InputError(f"{path} holds no transformer blocks that are known here; expected V-JEPA 2")
    return first.shape[0] / width


def tensors_of(path: Path, content: Mapping[str, Any], key: str) -> dict[str, Tensor] | None:
    """The weights that a torch file keeps under `key`, if it does."""
    found = content.get(key)
    if found is None:
        return None
    if not isinstance(found, Mapping) or not all(isinstance(each, Tensor) for each in found.values()):
        raise InputError(f"{path} keeps something else than tensors by their names under {key!r}")
    return dict(found)


def sha256_of(files: Sequence[Path]) -> str:
    """Of the only file; of several, the sha256 of lines `sha256  name` in the order of names."""
    digests: list[str] = []
    for file in files:
        with file.open("rb") as content:
            digests.append(hashlib.file_digest(content, "sha256").hexdigest())
    if len(files) == 1:
        return digests[0]
    lines = "".join(f"{digest}  {file.name}\n" for digest, file in zip(digests, files, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()
