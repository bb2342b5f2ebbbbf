"""Released V-JEPA 2 weights: read without running code, checked to the last name, with their preprocessing.

Assran et al., "V-JEPA 2", arXiv:2506.09985. Two kinds of files:

    load_folder("vjepa2-vitl-fpc64-256")        transformers' format: config.json and safetensors
    load_meta("vitl.pt", image=256)             Meta's format: a zip of tensors, which may hold pickled code

Nothing here opens a connection except `download`, which fetches a folder when it is called for. Code pickled
into a file is refused by its name. Both kinds need `rope_layout="tiled"` (see `rotary.py`) and get it.

Which encoder: training keeps one that learns and its moving average. Meta's files hold both ("encoder",
"target_encoder"); its probes read the average, which is the default here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepaplan.models.masked_predictor import MaskedPredictor, MaskedPredictorConfig
from jepaplan.models.released_files import (
    encoder_shape,
    predictor_shape,
    read_card,
    read_torch_file,
    recorded_shapes,
    sha256_of,
    tensors_of,
    weight_files,
)
from jepaplan.models.released_names import encoder_from_meta, from_transformers, predictor_from_meta
from jepaplan.models.video_preprocessing import Preprocessing, read_preprocessing, released_preprocessing
from jepaplan.models.video_vit import VideoTransformer, VideoTransformerConfig
from jepaplan.types import InputError

__all__ = ["Preprocessing", "PretrainedVideo", "download", "load_folder", "load_meta"]

EncoderKey = Literal["target_encoder", "encoder", "ema_encoder"]

_SHOWN = 5  # names of each kind in a report, of however many there are
_HEAD = ("pooler.", "classifier.")  # of transformers' VJEPA2ForVideoClassification
# sine and cosine tables of positions that rotary positions replaced; saved, never read
_UNUSED = ("pos_embed", "predictor_pos_embed")


@dataclass(frozen=True, kw_only=True)
class PretrainedVideo:
    """Weights that somebody trained, and what a clip must go through before they see it."""

    encoder: VideoTransformer
    predictor: MaskedPredictor | None  # None where the file holds none
    preprocessing: Preprocessing
    sha256: str  # of the weights file; of the list of sha256 and names where there are several
    left_out: tuple[str, ...] = ()  # tensors of the file that belong to neither: a classifier's

    def encode(self, clips: Float[Tensor, "B T C height width"]) -> Float[Tensor, "B N D"]:
        """Latents of clips that went through `preprocessing.prepare`; other sizes are refused."""
        self.preprocessing.refuse_other_sizes(clips)
        return self.encoder(clips)


def load_folder(folder: Path | str) -> PretrainedVideo:
    """Weights saved by transformers (`VJEPA2Model`, `VJEPA2ForVideoClassification`) in a local folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"{folder} is no folder. Give a folder with config.json and model.safetensors; if this is a name "
            f"on the Hugging Face hub, fetch it first: load_folder(download({str(folder)!r}))"
        )
    card = read_card(folder / "config.json")
    files = weight_files(folder)
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= safetensors.torch.load_file(file)
        except (OSError, safetensors.SafetensorError) as error:
            raise InputError(f"cannot read {file}: {error}. Fetch the file again") from error
    encoder_tensors, predictor_tensors = from_transformers(tensors)
    left_out = tuple(sorted(name for name in encoder_tensors if name.startswith(_HEAD)))
    encoder_tensors = {name: tensor for name, tensor in encoder_tensors.items() if name not in left_out}
    encoder_config, predictor_config = recorded_shapes(folder / "config.json", card)
    return _assembled(
        (folder, sha256_of(files)),
        (encoder_config, encoder_tensors),
        (predictor_config, predictor_tensors) if predictor_tensors else None,
        read_preprocessing(folder, encoder_config.image),
        left_out,
    )


def load_meta(
    path: Path | str,
    *,
    image: int,
    frames: int = 64,
    encoder_key: EncoderKey = "target_encoder",
    heads: tuple[int, int] | None = None,
) -> PretrainedVideo:
    """Weights in one of Meta's files; `image` is the side in pixels that the weights were trained on.

    Shapes do not tell heads apart: `heads` (encoder, predictor) is known for released widths, else needed.
    """
    path = Path(path)
    content = read_torch_file(path)
    weights = tensors_of(path, content, encoder_key)
    if weights is None:
        raise InputError(
            f"{path} holds {sorted(map(str, content))[:8]} but no weights named {encoder_key!r}; "
            "write encoder_key='encoder' (the one that learned) or encoder_key='ema_encoder' (files of 2.1)"
        )
    left_out = tuple(sorted(name for name in weights if _is_unused(name)))
    encoder_tensors = encoder_from_meta(_without_unused(weights))
    predictor_tensors = predictor_from_meta(_without_unused(tensors_of(path, content, "predictor") or {}))
    encoder_heads, predictor_heads = heads or (None, None)
    encoder_config = encoder_shape(path, encoder_tensors, (frames, image), encoder_heads)
    predictor = None
    if predictor_tensors:
        predictor = (predictor_shape(path, predictor_tensors, predictor_heads), predictor_tensors)
    return _assembled(
        (path, sha256_of([path])),
        (encoder_config, encoder_tensors),
        predictor,
        released_preprocessing(image),
        left_out,
    )


def download(hub_id: str, revision: str | None = None) -> Path:
    """Fetch a folder of weights from the Hugging Face hub, or find it where it was fetched before."""
    try:
        import huggingface_hub
    except ImportError as reason:
        raise InputError(
            f"fetching weights needs huggingface_hub, which cannot be imported here ({reason}); install it: "
            "pip install 'jepaplan[hf]', or fetch the folder by other means and give its path to load_folder"
        ) from reason
    try:
        folder = huggingface_hub.snapshot_download(
            hub_id, revision=revision, allow_patterns=["*.json", "*.safetensors"]
        )
    except (OSError, ValueError) as error:  # what the hub raises derives from these
        raise InputError(
            f"could not fetch {hub_id!r}: {error}. Expected a name like 'facebook/vjepa2-vitl-fpc64-256'"
        ) from error
    return Path(folder)


def _assembled(
    source: tuple[Path, str],
    encoder: tuple[VideoTransformerConfig, dict[str, Tensor]],
    predictor: tuple[MaskedPredictorConfig, dict[str, Tensor]] | None,
    preprocessing: Preprocessing,
    left_out: tuple[str, ...],
) -> PretrainedVideo:
    where, sha256 = source
    # Without memory until the weights are there: drawing a billion random numbers first would be in vain.
    with torch.device("meta"):
        model = VideoTransformer(encoder[0])
        asked = predictor and MaskedPredictor(encoder[0].width, predictor[0])
    _fill(where, "encoder", model, encoder[1])
    if asked is not None and predictor is not None:
        _fill(where, "predictor", asked, predictor[1])
    return PretrainedVideo(
        encoder=model, predictor=asked, preprocessing=preprocessing, sha256=sha256, left_out=left_out
    )


def _fill(where: Path, what: str, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give `tensors` to a module without memory, once every name and shape agrees."""
    due = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    report = [
        *_named("missing in the file", [name for name in due if name not in tensors]),
        *_named("left over in the file", [name for name in tensors if name not in due]),
        *_named(
            "of another shape",
            [
                f"{name} (file {tuple(tensors[name].shape)}, model {shape})"
                for name, shape in due.items()
                if name in tensors and tuple(tensors[name].shape) != shape
            ],
        ),
    ]
    if report:
        raise InputError(
            f"the weights in {where} do not fit the {what} that was expected, so nothing was loaded:\n  "
            + "\n  ".join(report)
            + "\nOnly V-JEPA 2 (2.0) encoders with rotary positions and their masked predictors can be read."
        )
    # Copies, because a mapped file that changes later would change the weights.
    owned = {name: tensors.pop(name).to(torch.float32, copy=True).contiguous() for name in due}
    module.load_state_dict(owned, assign=True)


def _named(what: str, names: Sequence[str]) -> list[str]:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{what}, {len(names)}: {', '.join(names[:_SHOWN])}{more}"] if names else []


def _is_unused(name: str) -> bool:
    return name.removeprefix("module.").removeprefix("backbone.") in _UNUSED


def _without_unused(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not _is_unused(name)}
