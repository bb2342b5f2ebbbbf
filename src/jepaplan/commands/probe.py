"""`jepaplan probe RUN|WEIGHTS --data VIDEOS`: what a frozen video encoder knows, with an interval.

The encoder is a finished video run's or released V-JEPA 2 weights; nothing of it is trained here. Settings of
the probe are chosen on validation files, and accuracy is measured on files that neither training nor choice
has seen.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from jepaplan.commands.console import NOTES, RESULTS, ProgressBoard, progress_board, table
from jepaplan.commands.train import choose_device
from jepaplan.data.video_clips import VideoClips
from jepaplan.evaluation.video_probe_sweep import Sweep
from jepaplan.evaluation.video_probes import (
    LAPTOP_PROBE,
    AttentiveProbe,
    LinearProbe,
    Probe,
    ProbeResult,
    Splits,
    probe_features,
)
from jepaplan.recipes.frozen_video import (
    Encoded,
    Frozen,
    Labelled,
    Reading,
    choose_kinds,
    encode_files,
    open_frozen,
    open_labelled,
    refuse_too_little,
    split_by_file,
)
from jepaplan.types import InputError, SeedTree

NAMED = 5  # unreadable files, before the others are only counted


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which encoder, on which labelled videos, with which probe."""

    encoder: tyro.conf.Positional[Path]
    """Folder of a finished video run; a folder of released weights in transformers' format; or a .pt of
    Meta's."""
    data: Path
    """Labelled videos: a folder of generated ones, a list of "path label" lines, or a mixture (.json). With
    --annotations the folder that holds the videos."""
    annotations: Path | None = None
    """Annotations of EPIC-KITCHENS-100 (.csv) or of Something-Something v2 (.json, with --classes)."""
    classes: Path | None = None
    """something-something-v2-labels.json."""
    suffix: str | None = None
    """Of the files that --annotations names, where it is not as released, such as .mp4."""
    labels: tuple[str, ...] = ()
    """Kinds of labels, such as motion; without it, every kind there is."""
    head: Literal["attentive", "linear"] = "attentive"
    """attentive: a learned query looks at all tokens; linear: one layer on their mean."""
    depth: int | None = None
    """Blocks of the attentive head, the query's included; without it 1, or 4 with --sweep published."""
    sweep: Literal["laptop", "published"] = "laptop"
    """Settings of the attentive head that are tried: 6 in 40 epochs, or the 20 in 20 epochs of V-JEPA 2."""
    epochs: int | None = None
    """Passes over the training files; without it the sweep's."""
    views: int = 1
    """Windows spread evenly over each file; probabilities are averaged over them."""
    frames: int | None = None
    """Of a clip; without it those that a run learned from, 16 of released weights."""
    fps: float | None = None
    """Frames per second; without it the run's, 4 for released weights."""
    image: int | None = None
    """Pixels per side that a .pt of Meta's was trained on: 256 or 384."""
    files: int | None = None
    """Use so many files, drawn by the seed; without it, all."""
    memory: float = 4.0
    """GB that the features may take."""
    seed: int = 0
    """Of the splits, the heads and the order of training."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the encoder."""
    device: str = "auto"
    """Where clips are encoded: cpu, cuda, cuda:1, or auto: an accelerator if there is one."""
    threads: int | None = None
    """Processor threads; without it, as many as the machine allows."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print a row per kind of labels as JSON on standard output, and nothing else there."""

    def __post_init__(self) -> None:
        for name in ("views", "depth", "epochs", "files", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name} is at least 1; got {value}")
        if not self.memory > 0:
            raise InputError(f"--memory is GB, more than 0; got {self.memory:g}")
        if self.head == "linear" and (self.depth is not None or self.sweep == "published"):
            raise InputError("--depth and --sweep belong to --head attentive; a linear head has one layer")

    @property
    def where(self) -> Labelled:
        """The labelled videos."""
        return Labelled(
            data=self.data, annotations=self.annotations, classes=self.classes, suffix=self.suffix
        )

    @property
    def reading(self) -> Reading:
        """How files become features."""
        return Reading(
            views=self.views,
            pooled=self.head == "linear",
            gigabytes=self.memory,
            precision=self.precision,
        )


def main(arguments: list[str]) -> int:
    """Encode, probe every kind of labels, and print what was found."""
    options = tyro.cli(Options, prog="jepaplan probe", description=__doc__, args=arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    with progress_board() as board:
        board.report("reading weights", 0, 1)
        frozen = open_frozen(options.encoder, options.image).to(device)
        board.report("reading weights", 1, 1)
        clips = open_clips(frozen, options)
        files = chosen_files(len(clips), options)
        kinds = chosen_kinds(clips, files, options)
        probe = chosen_probe(options, frozen.encoder.config.heads)
        encoded = encode_files(
            frozen,
            clips,
            files,
            options.reading,
            lambda done, total: board.report("encoding videos", done, total),
        )
        rows = [probe_kind(encoded, clips, kind, probe, (options, board)) for kind in kinds]
    facts = {
        "encoder": frozen.name,
        "sha256": frozen.sha256,
        "probe": dataclasses.asdict(probe) | {"head": options.head},
        "views": options.views,
        "clips": dataclasses.asdict(clips.config),
        "seed": options.seed,
        "unreadable": {str(path): why for path, why in encoded.unreadable.items()},
    }
    if options.json:
        sys.stdout.write(json.dumps([{**row, **facts} for row in rows]) + "\n")
    else:
        show(rows, frozen, clips, options)
    tell_unreadable(encoded.unreadable, len(files))
    return 0


def open_clips(frozen: Frozen, options: Options) -> VideoClips:
    """The labelled videos, cut as the encoder wants them."""
    config = frozen.clips
    if options.frames is not None:
        config = replace(config, frames=options.frames)
    if options.fps is not None:
        config = replace(config, fps=options.fps)
    tubelet = frozen.encoder.config.tubelet
    if config.frames % tubelet:
        raise InputError(f"--frames {config.frames} does not divide into tubelets of {tubelet} frames")
    return VideoClips(open_labelled(options.where), config)


def chosen_files(count: int, options: Options) -> torch.Tensor:
    """All files, or as many as were asked for."""
    if options.files is None or options.files >= count:
        return torch.arange(count)
    order = torch.randperm(count, generator=SeedTree(options.seed).torch("files"))
    return order[: options.files].sort().values


def chosen_kinds(clips: VideoClips, files: torch.Tensor, options: Options) -> tuple[str, ...]:
    """The kinds of labels to probe, each of which these files have enough of."""
    kinds = choose_kinds(clips, options.labels)
    for kind in kinds:
        labels = clips.labels[kind][files]
        known = labels >= 0  # annotations number what is in no list with -1
        refuse_too_little(len({clips.path(int(file)) for file in files[known]}), labels[known])
    return kinds


def chosen_probe(options: Options, heads: int) -> Probe:
    """The head and its sweep; attention is cut into as many heads as the encoder's, which fit its width."""
    if options.head == "linear":
        own = LinearProbe()
        return replace(own, sweep=with_epochs(own.sweep, options.epochs))
    own = AttentiveProbe() if options.sweep == "published" else LAPTOP_PROBE
    return replace(
        own,
        depth=options.depth or own.depth,
        heads_per_block=heads,
        sweep=with_epochs(own.sweep, options.epochs),
    )


def with_epochs(sweep: Sweep, epochs: int | None) -> Sweep:
    """The sweep, perhaps longer or shorter."""
    return sweep if epochs is None else replace(sweep, epochs=epochs)


def probe_kind(
    encoded: Encoded, clips: VideoClips, kind: str, probe: Probe, asked: tuple[Options, ProgressBoard]
) -> dict[str, Any]:
    """Train and measure the probe of one kind of labels."""
    options, board = asked
    seeds, labels = SeedTree(options.seed), clips.labels[kind][encoded.file]
    known = (labels >= 0).nonzero()[:, 0]
    paths = [clips.path(int(file)) for file in encoded.file[known]]
    splits = split_by_file(paths, labels[known], seeds.torch("splits", kind))
    classes, numbers = labels[known].unique(return_inverse=True)
    what = f"probing {kind}"
    features = encoded.features[known] if len(known) < len(labels) else encoded.features
    note = f"{len(probe.sweep.settings)} settings"
    result = probe_features(
        features,
        numbers,
        splits,
        probe,
        seeds.torch("probe", kind),
        lambda done, total: board.report(what, done, total, note),
    )
    return {"labels": kind, "classes": len(classes), **_measured(result, splits)}


def _measured(result: ProbeResult, splits: Splits) -> dict[str, Any]:
    rate = result.accuracy
    return {
        "accuracy": rate.rate,
        "interval": [rate.low, rate.high],
        "correct": rate.successes,
        "chance": round(result.commonest, 6),
        "train": len(splits.train),
        "validation": len(splits.validation),
        "test": rate.trials,
        "chosen": dataclasses.asdict(result.chosen),
        "settings": [dataclasses.asdict(score) for score in result.validation],
    }


def show(rows: list[dict[str, Any]], frozen: Frozen, clips: VideoClips, options: Options) -> None:
    """The table."""
    lines = [
        [
            row["labels"],
            f"{row['accuracy']:.2f} [{row['interval'][0]:.2f}, {row['interval'][1]:.2f}] "
            f"({row['correct']}/{row['test']})",
            f"{row['chance']:.2f}",
            f"{row['classes']}",
        ]
        for row in rows
    ]
    views = f"{options.views} view{'s' * (options.views > 1)} of {clips.config.frames} frames"
    columns = ["labels", "test accuracy, 95 % interval", "chance", "classes"]
    RESULTS.print(table(f"{options.head} probe of {frozen.name}, {views}", columns, lines))
    for row in rows:
        chosen = row["chosen"]
        RESULTS.print(
            f"{row['labels']}: learned from {row['train']} videos; learning rate "
            f"{chosen['learning_rate']:g} and weight decay {chosen['weight_decay']:g} chosen on "
            f"{row['validation']}, where accuracy was {chosen['accuracy']:.2f}; measured on {row['test']}",
            markup=False,
            highlight=False,
        )
    RESULTS.print("chance: accuracy of always naming the commonest class", highlight=False)


def tell_unreadable(unreadable: Mapping[Path, str], count: int) -> None:
    """How many files were left out, and the first of them by name."""
    if not unreadable:
        return
    named = "\n".join(f"  {path}: {why}" for path, why in list(unreadable.items())[:NAMED])
    more = f"\n  and {len(unreadable) - NAMED} more" if len(unreadable) > NAMED else ""
    NOTES.print(
        f"{len(unreadable)} of {count} videos could not be read and were left out:\n{named}{more}",
        markup=False,
        highlight=False,
    )
