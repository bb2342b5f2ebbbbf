"""A folder of generated videos: mp4 files, a list per kind of label, and what they were made from.

    clips/000123.mp4   the videos
    KIND.csv           path and label, a line per video, as `VideoSet.listed` reads it
    TABLE.csv          path and further numbers
    videos.json        name, count, configuration and seed of what was made, and the names of the classes

It is written aside and renamed, so it is there whole or not at all; the same call again finds it and is done.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int, UInt8
from torch import Tensor

from jepaplan.data.sealed_file import aside
from jepaplan.data.video import write_video
from jepaplan.data.video_sets import VideoSet
from jepaplan.types import InputError

Progress = Callable[[int, int], None]  # called with the videos written and the videos in all


def open_folder(folder: Path) -> VideoSet:
    """The videos of a folder with all their labels and the names of the classes."""
    facts = _read_facts(folder)
    if facts is None:
        raise InputError(
            f"{folder}: there is no videos.json, so no generated videos; `write_sprite_videos` makes some"
        )
    return _open_as(folder, facts)


def write_folder(
    folder: Path,
    facts: Mapping[str, Any],
    labels: Mapping[str, Int[Tensor, " B"]],
    blocks: Iterator[UInt8[Tensor, "U T 3 size size"]],
    tables: Mapping[str, Float[Tensor, "B W"]],
    progress: Progress | None,
) -> VideoSet:
    """All files into a folder aside, which then gets its name; or the folder that is there already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if _read_facts(folder) == facts:
            return _open_as(folder, facts)
        raise InputError(
            f"{folder} holds something else than these videos; choose another folder or empty it"
        )
    partial, count = aside(folder), int(facts["count"])
    names = [f"clips/{number:06d}.mp4" for number in range(count)]
    try:
        (partial / "clips").mkdir(parents=True)
        written = 0
        for block in blocks:
            for clip in block:
                write_video(partial / names[written], clip, facts["config"]["fps"], facts["config"]["codec"])
                written += 1
            if progress is not None:
                progress(written, count)
        for kind, rows in {**labels, **tables}.items():
            lines = (" ".join([name, *_cells(row)]) for name, row in zip(names, rows, strict=True))
            (partial / f"{kind}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (partial / "videos.json").write_text(json.dumps(facts, indent=1, sort_keys=True), encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return _open_as(folder, facts)


def _cells(row: Tensor) -> list[str]:
    """The fields of a line: a label as an integer, a state with three decimals."""
    return [f"{value:.3f}" if row.is_floating_point() else str(value) for value in row.flatten().tolist()]


def folder_facts(
    name: str, count: int, seed: int, config: dict[str, Any], classes: Mapping[str, tuple[str, ...]]
) -> Mapping[str, Any]:
    """What `videos.json` says, as JSON gives it back."""
    facts = {"name": name, "count": count, "seed": seed, "config": config, "classes": classes}
    return json.loads(json.dumps(facts))


def _read_facts(folder: Path) -> Mapping[str, Any] | None:
    path = folder / "videos.json"
    if not path.is_file():
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return {key: facts[key] for key in ("name", "count", "seed", "config", "classes")}
    except (ValueError, KeyError, TypeError) as reason:
        raise InputError(f"{path} is damaged ({reason!r}); remove the folder and write it again") from reason


def _open_as(folder: Path, facts: Mapping[str, Any]) -> VideoSet:
    kinds = tuple(facts["classes"])
    sets = [VideoSet.listed(folder / f"{kind}.csv") for kind in kinds]
    return VideoSet(
        name=facts["name"],
        paths=sets[0].paths,
        labels={kind: one.labels["label"] for kind, one in zip(kinds, sets, strict=True)},
        classes={kind: tuple(facts["classes"][kind]) for kind in kinds},
    )
