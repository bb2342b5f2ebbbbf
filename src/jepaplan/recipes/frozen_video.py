"""A frozen video encoder in front of labelled videos: what `jepaplan probe` measures.

V-JEPA 2 (arXiv:2506.09985) judges an encoder by probes on its frozen features; so do we, for an encoder of a
run and for released weights alike. Each brings what its clips must go through: a run the pixel statistics it
was trained with, released weights the preprocessing of their publication (`models/video_preprocessing.py`).

    paper                    here
    segments of a video      views, windows spread evenly over the file; spatial crops are not taken
    train and validation set shares of the labelled files, drawn by seed; parts of one file stay together

Features of all clips are kept in memory, so their size is known, and refused, before they are computed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from jepaplan.data.annotations import epic_kitchens, something_something
from jepaplan.data.video_clips import VideoClips
from jepaplan.data.video_sets import VideoSet
from jepaplan.data.video_windows import ClipConfig
from jepaplan.evaluation.video_probe_features import FeatureConfig, encode_clips
from jepaplan.evaluation.video_probes import Splits, draw_splits
from jepaplan.models.pretrained import PretrainedVideo, load_folder, load_meta
from jepaplan.models.released_files import sha256_of
from jepaplan.models.video_preprocessing import Preprocessing
from jepaplan.models.video_vit import VideoTransformer
from jepaplan.recipes.video_run import load_video_run
from jepaplan.recipes.video_sources import open_sources
from jepaplan.training.runs import RunDirectory
from jepaplan.types import InputError

FEWEST = 12  # files: with fewer a split would be empty, and an interval would say nothing
PUBLISHED_FRAMES = 16  # of the clips that released encoders are probed with
TORCH_FILES = (".pt", ".pth", ".tar")
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """An encoder that is only read, and how clips come to it."""

    name: str
    sha256: str  # of the weights
    encoder: VideoTransformer
    prepare: nn.Module  # from uint8 clips to what the encoder reads; its buffers tell the device
    clips: ClipConfig
    files_at_once: int  # 1 where clips come in the sizes of their files, which are not alike

    def to(self, device: str) -> "Frozen":
        """The same on another device."""
        return replace(self, encoder=self.encoder.to(device), prepare=self.prepare.to(device))


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Where labelled videos are."""

    data: Path  # what `recipes.video_run.open_sources` opens; with annotations the folder of the videos
    annotations: Path | None = None  # of Something-Something v2 (.json) or EPIC-KITCHENS-100 (.csv)
    classes: Path | None = None  # the labels of Something-Something v2 (.json)
    suffix: str | None = None  # of the files that annotations name, where it is not the released one


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files are read and what is kept of them."""

    views: int = 1  # windows of each file
    pooled: bool = False  # keep the mean of the tokens of a view instead of all of them
    gigabytes: float = 4.0  # that features may take
    precision: Literal["fp32", "bf16"] = "fp32"  # of the encoder

    def __post_init__(self) -> None:
        if self.views < 1 or not self.gigabytes > 0:
            raise InputError(f"views are at least 1 and gigabytes positive; got {self}")


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Features of the files that could be read."""

    features: Float[Tensor, "items views N D"]
    file: Int[Tensor, " items"]  # which file of the clips each item is
    unreadable: Mapping[Path, str]  # the others, with the reason


def open_frozen(path: Path, image: int | None = None) -> Frozen:
    """The target encoder of a finished video run, or released weights in a folder or a file of Meta's."""
    if path.suffix in TORCH_FILES:
        if image is None:
            raise InputError(
                f"{path} does not tell for which size of clips it was trained; write --image 256 or "
                "--image 384"
            )
        return _released(path, load_meta(path, image=image))
    if image is not None:
        raise InputError(f"--image belongs to a file of Meta's (.pt); {path} tells its size itself")
    if (path / "card.json").is_file():
        return _trained(path)
    if (path / "config.json").is_file():
        return _released(path, load_folder(path))
    raise InputError(
        f"{path} is neither a run (card.json) nor released weights (config.json with safetensors, or a .pt "
        "of Meta's). Train one: `jepaplan train video_nano --run RUN`"
    )


def open_labelled(where: Labelled) -> tuple[VideoSet, ...]:
    """The sets of videos, with whatever labels they have."""
    given = where.annotations
    if given is None:
        if where.classes is not None or where.suffix is not None:
            raise InputError("--classes and --suffix belong to --annotations; leave them out, or give that")
        return open_sources(where.data).sets
    if given.suffix == ".csv":
        if where.classes is not None:
            raise InputError("the annotations of EPIC-KITCHENS-100 hold their classes; leave --classes out")
        return (epic_kitchens(given, where.data, suffix=where.suffix or ".MP4"),)
    if given.suffix != ".json" or where.classes is None:
        raise InputError(
            f"{given}: expected the annotations of EPIC-KITCHENS-100 (.csv), or those of Something-Something "
            "v2 (.json) with --classes something-something-v2-labels.json"
        )
    return (something_something(given, where.classes, where.data, where.suffix or ".webm"),)


def choose_kinds(clips: VideoClips, asked: Sequence[str]) -> tuple[str, ...]:
    """The kinds of labels that were asked for, all there are where none was; others are refused."""
    known = tuple(clips.labels)
    if not known:
        raise InputError(
            'the videos have no labels, so there is nothing to probe; write a list of lines "path label", '
            "give a folder of generated videos, or --annotations"
        )
    unknown = [kind for kind in asked if kind not in known]
    if unknown:
        raise InputError(
            f"the videos have no labels of {', '.join(unknown)}; the kinds there are: {', '.join(known)}"
        )
    return tuple(asked) or known


def encode_files(
    frozen: Frozen,
    clips: VideoClips,
    files: Int[Tensor, " files"],
    reading: Reading,
    progress: Progress | None = None,
) -> Encoded:
    """Features of these files, block by block; what cannot be read is left out, never replaced."""
    kept: Tensor | None = None
    found, done = list[int](), 0
    for block in files.split(frozen.files_at_once):
        batch = clips.load(clips.views(block, reading.views))
        sound = (batch.file.view(-1, reading.views) == block[:, None]).all(dim=1)
        done += len(block)
        if bool(sound.any()):
            whole = batch.clips.unflatten(0, (len(block), reading.views))[sound]
            features = _features(frozen, whole, reading)
            if kept is None:
                kept = _memory(features, len(files), reading)
            kept[len(found) : len(found) + len(features)] = features
            found += block[sound].tolist()
        if progress is not None:
            progress(done, len(files))
    if kept is None:
        raise InputError(f"none of {len(files)} videos could be read: {dict(clips.unreadable())}")
    return Encoded(features=kept[: len(found)], file=torch.tensor(found), unreadable=clips.unreadable())


def refuse_too_little(files: int, labels: Int[Tensor, " items"]) -> None:
    """Too few files or classes for a probe; worth asking before anything is encoded, too."""
    if files < FEWEST:
        raise InputError(
            f"a probe learns from one part of the files and is measured on another, so it needs {FEWEST} or "
            f"more that can be read and have a label; got {files}"
        )
    if len(labels.unique()) < 2:
        raise InputError(
            f"all {len(labels)} videos have the label {int(labels[0])}; a probe tells two classes or more "
            "apart"
        )


def split_by_file(paths: Sequence[Path], labels: Int[Tensor, " items"], generator: torch.Generator) -> Splits:
    """Random splits of the files with every class in each; parts of one file are all on the same side."""
    numbers: dict[Path, int] = {}
    label_of: dict[Path, int] = {}
    for path, label in zip(paths, labels.tolist(), strict=True):
        numbers.setdefault(path, len(numbers))
        label_of.setdefault(path, label)  # a file of several parts counts as its first one
    own = torch.tensor([numbers[path] for path in paths])
    refuse_too_little(len(numbers), labels)
    by_file = draw_splits(torch.tensor(list(label_of.values())), generator)
    parts = (by_file.train, by_file.validation, by_file.test)
    train, validation, test = (torch.isin(own, part).nonzero()[:, 0] for part in parts)
    return Splits(train=train, validation=validation, test=test)


class _Prepared(nn.Module):
    """The preprocessing of released weights, with a buffer that tells the device."""

    def __init__(self, how: Preprocessing) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("place", torch.zeros(()))

    def forward(self, clips: UInt8[Tensor, "B T C height width"]) -> Float[Tensor, "B T C crop crop"]:
        return self.how.prepare(clips)


def _trained(path: Path) -> Frozen:
    run = load_video_run(path)
    shape = run.experiment.shape(run.experiment.phases[-1])
    return Frozen(
        name=f"{run.experiment.recipe}, seed {run.experiment.seed}",
        sha256=sha256_of([RunDirectory(path).weights]),
        encoder=run.encoder.eval(),
        prepare=run.objective.pixels,
        clips=replace(run.experiment.clips, frames=shape.frames, size=shape.image),
        files_at_once=16,
    )


def _released(path: Path, weights: PretrainedVideo) -> Frozen:
    return Frozen(
        name=path.name,
        sha256=weights.sha256,
        encoder=weights.encoder.eval(),
        prepare=_Prepared(weights.preprocessing),
        clips=ClipConfig(frames=min(PUBLISHED_FRAMES, weights.encoder.config.frames)),
        files_at_once=1,
    )


def _features(
    frozen: Frozen, clips: UInt8[Tensor, "items views T C height width"], reading: Reading
) -> Float[Tensor, "items views N D"]:
    precision = "bfloat16" if reading.precision == "bf16" else "float32"
    tokens = encode_clips(frozen.encoder, clips, FeatureConfig(precision=precision), frozen.prepare)
    return tokens.mean(dim=2, keepdim=True, dtype=torch.float32) if reading.pooled else tokens


def _memory(features: Float[Tensor, "items views N D"], files: int, reading: Reading) -> Tensor:
    """Room for the features of all files, if there may be so much."""
    _, views, tokens, width = features.shape
    needed = files * views * tokens * width * features.element_size() / 1e9
    if needed > reading.gigabytes:
        fit = int(files * reading.gigabytes / needed)
        raise InputError(
            f"features of {files} files x {views} views x {tokens} tokens x {width} numbers take "
            f"{needed:.3g} GB, and --memory allows {reading.gigabytes:g}. Write --memory {needed * 1.05:.3g} "
            f"if the machine has them, --files {fit} for a part of the files, fewer --views or --frames, or "
            "--head linear, which keeps one mean per view"
        )
    return torch.empty(files, *features.shape[1:], dtype=features.dtype)
