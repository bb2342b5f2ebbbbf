"""The page of the video study: what each source of features knows, and what pretraining adds.

Accuracies are means over training seeds with an interval over seeds and test clips together; differences are
paired on the same clips and seeds. A number that was not measured says so.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from jepaplan.evaluation.anticipation import mean_class_recall
from jepaplan.evaluation.results import ResultRow, write_rows
from jepaplan.evaluation.statistics import compare_over_seeds, over_seeds
from jepaplan.recipes.reproduction_cells import each_of, of_all
from jepaplan.recipes.reproduction_page import NOT_YET, markdown_table, verdict_in_points
from jepaplan.recipes.video_pieces import Found, found_in, labels_of, video_pieces
from jepaplan.recipes.video_study import (
    AHEAD,
    ANTICIPATION,
    COLUMNS,
    RECALL_AT,
    SOURCES,
    VideoStudy,
)
from jepaplan.training.checkpoint import atomic_write
from jepaplan.types import SeedTree

_RIGHT = "clips right"
_BEATEN = SOURCES[1:-1]  # what pretraining has to beat; the last is the upper bound


def write_video_page(study: VideoStudy, folder: Path, seeds: int, path: Path) -> list[ResultRow]:
    """The page `path` (.md) and its twin for machines (.json), whose rows are returned."""
    found = found_in(study, folder, seeds)
    rows = [_row(source, task, some) for (source, task), some in found.items()]
    sections = [
        f"# {study.title}",
        _introduction(study),
        _provenance(rows),
        "## What the frozen features know",
        "Accuracy of probes on test clips, mean over training seeds [95 % interval over seeds and clips]: an "
        "attentive one, which learns which tokens to read, and a linear one on the mean of all tokens. A "
        "probe's setting is chosen on validation clips. The supervised row, the pretrained encoder trained "
        "further with the labels, is to be the upper bound.",
        markdown_table("features", list(SOURCES), list(COLUMNS), partial(_accuracy, found)),
        "## What pretraining adds",
        "Pretrained features minus others, in points, on the same clips and seeds [95 % interval]; p < 0.05 "
        "over clips and over seeds for a verdict.",
        markdown_table(
            "pretrained minus", list(_BEATEN), list(COLUMNS), lambda one, task: _gain(found, one, task)
        ),
        "## Anticipation",
        f"In which of {study.bouncing.bins**2} cells a bouncing sprite will be {study.bouncing.ahead:g} s "
        f"after {study.seen_frames} frames of it: the share of clips answered rightly, and the mean over "
        f"cells of recall, as the field reports it [95 % interval]. {study.bouncing_clips:,} clips, a "
        "quarter of them tested; probes are told where each token lies. The last three rows know the true "
        "place and velocity; the last one also the walls.",
        markdown_table(
            "knows",
            list(AHEAD),
            [_RIGHT, *(f"recall at {k}" for k in RECALL_AT)],
            partial(_recall, found),
        ),
        "## The trainings",
        _trainings(study, folder, seeds),
    ]
    atomic_write(path, ("\n\n".join(sections).rstrip() + "\n").encode())
    write_rows(path.with_suffix(".json"), rows)
    return rows


def _introduction(study: VideoStudy) -> str:
    experiment, sprites = study.experiment, study.sprites
    shape = experiment.encoder
    return (
        f"An encoder of {shape.depth} blocks of width {shape.width} ({shape.tokens} tokens of "
        f"{shape.tubelet} x {shape.patch} x {shape.patch} pixels) is pretrained without labels on "
        f"{experiment.generated.count:,} generated videos by predicting masked latents "
        f"(`recipes/video.py`, `{experiment.recipe}`), then frozen and probed on {study.clips:,} others. "
        f"`synthetic-motion-v1` has {len(sprites.motions)} motions and independent appearances; no single "
        "frame tells the motion. It is generated: nothing here is a result on Something-Something or "
        "Epic-Kitchens."
    )


def _provenance(rows: Sequence[ResultRow]) -> str:
    if not rows:
        return "Nothing was measured yet."
    commands, commits, hardware = (
        ", ".join(each_of(rows, name)) for name in ("command", "commit", "hardware")
    )
    seeds = ", ".join(map(str, sorted({seed for row in rows for seed in row.training_seeds})))
    return f"Made by `{commands}` at commit {commits}. Hardware: {hardware}. Training seeds: {seeds}."


def _row(source: str, task: str, some: list[dict[str, Any]]) -> ResultRow:
    ahead = task == ANTICIPATION
    outcomes = _outcomes(some, "recall at 1" if ahead else "correct")
    return ResultRow(
        task=f"{task}, {_RIGHT}" if ahead else task,
        method=f"{source} (anticipation)" if ahead else source,
        instance_file="bouncing-sprite-v1" if ahead else "synthetic-motion-v1",
        split="test",
        success=over_seeds(outcomes, SeedTree(0).torch("seeds")),
        training_seeds=tuple(one["seed"] for one in some),
        evaluations_per_step=None,
        seconds_per_step=None,
        commit=of_all(some, "commit"),
        hardware=of_all(some, "hardware"),
        command=of_all(some, "command"),
    )


def _outcomes(some: list[dict[str, Any]], name: str) -> Bool[Tensor, "seeds items"]:
    return torch.tensor([one[name] for one in some], dtype=torch.bool)


def _accuracy(found: Found, source: str, task: str) -> str:
    some = found.get((source, task))
    if not some:
        return NOT_YET if not any(one == source for one, _ in found) else ""
    return _share(some, "correct")


def _share(some: list[dict[str, Any]], outcomes: str) -> str:
    rate = over_seeds(_outcomes(some, outcomes), SeedTree(0).torch("seeds"))
    return f"{rate.rate:.2f} [{rate.low:.2f}, {rate.high:.2f}]"


def _gain(found: Found, source: str, task: str) -> str:
    ours, others = found.get(("pretrained", task)), found.get((source, task))
    if not ours or not others:
        return "" if ours and any(one == source for one, _ in found) else NOT_YET
    common = sorted({one["seed"] for one in ours} & {one["seed"] for one in others})
    if not common:  # each was done by another worker, and the other half is still under way
        return NOT_YET
    first, second = (
        _outcomes([one for one in some if one["seed"] in common], "correct") for some in (ours, others)
    )
    return verdict_in_points(compare_over_seeds(first, second, SeedTree(0).torch("gains")))


def _recall(found: Found, source: str, recall: str) -> str:
    some = found.get((source, ANTICIPATION))
    if not some:
        return NOT_YET
    if recall == _RIGHT:
        return _share(some, "recall at 1")
    estimate = mean_class_recall(_outcomes(some, recall), labels_of(some), SeedTree(0).torch("recall"))
    return f"{estimate.mean:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _trainings(study: VideoStudy, folder: Path, seeds: int) -> str:
    lines = [
        "| seed | updates | seconds | held-out loss | loss over that of a constant | effective rank | "
        "context shown, short and long masks | masked, short and long | warnings |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for piece in video_pieces(study, seeds):
        if piece.source is not None:
            continue
        found = piece.read(folder)
        if found is None:
            lines.append(f"| {piece.seed} |" + f" {NOT_YET} |" * 8)
            continue
        last, means, words = found["last"], found["means"], found["warnings"]
        lines.append(
            f"| {piece.seed} | {found['updates']} | {found['seconds']:.0f} | "
            f"{last['held_out/loss']:.3f} | {last['held_out/masked_over_constant']:.2f} | "
            f"{last['health/effective_rank']:.0f} | {means['context_ratio_0']:.2f}, "
            f"{means['context_ratio_1']:.2f} | {means['target_ratio_0']:.2f}, "
            f"{means['target_ratio_1']:.2f} | {'; '.join(words) or 'none'} |"
        )
    return "\n".join(lines)
