"""Sets of video files: found in a folder or read from a list, with labels, cut into splits by name.

The lists are those of V-JEPA 2's code (facebookresearch/vjepa2): lines of a path and an integer between which
stands a space or "::", or an .npy of paths. What is drawn from sets, and how it is decoded, is
`data.video_clips`.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from jepaplan.types import InputError

SUFFIXES = frozenset({".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg"})


@dataclass(frozen=True, kw_only=True)
class VideoSet:
    """Video files with labels of any number of kinds, and perhaps the part of each file that counts."""

    name: str
    paths: tuple[Path, ...]
    labels: Mapping[str, Int[Tensor, " F"]] = field(default_factory=dict)
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # names, where they are known
    segments: Float[Tensor, "F 2"] | None = None  # first and last second of the part

    def __post_init__(self) -> None:
        if not self.paths:
            raise InputError(f"{self.name}: a set of videos needs at least one file")
        for kind, labels in self.labels.items():
            if len(labels) != len(self.paths):
                raise InputError(f"{self.name}: {len(labels)} labels of {kind} for {len(self.paths)} files")
        if self.segments is not None:
            if len(self.segments) != len(self.paths):
                raise InputError(f"{self.name}: {len(self.segments)} parts for {len(self.paths)} files")
            odd = (~(self.segments[:, 0] <= self.segments[:, 1])).nonzero()
            if len(odd):
                row = int(odd[0])
                raise InputError(
                    f"{self.name}: a part of {self.paths[row].name} ends before it begins: "
                    f"{self.segments[row].tolist()} seconds"
                )

    def __len__(self) -> int:
        """How many files, or parts of files."""
        return len(self.paths)

    @classmethod
    def folder(cls, folder: Path | str) -> "VideoSet":
        """Every video file below a folder, in order of name."""
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"{folder}: there is no such folder; expected one that holds video files")
        found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        paths = tuple(sorted(found))
        if not paths:
            raise InputError(
                f"{folder} holds no video files, nor do its folders; looked for {', '.join(sorted(SUFFIXES))}"
            )
        return cls(name=folder.name, paths=paths)

    @classmethod
    def listed(
        cls,
        file: Path | str,
        folder: Path | str | None = None,
        missing: Literal["refuse", "skip"] = "refuse",
    ) -> "VideoSet":
        """The files named in a text of lines "path label" or "path::label", or in an .npy of paths.

        Without an integer at the end of the first line there are no labels and lines are paths. Paths count
        from `folder`, by default the one the list lies in. `missing="skip"` looks for no file now; those
        that are not there are then replaced and told like the unreadable ones.
        """
        file = Path(file)
        if not file.is_file():
            raise InputError(f"{file}: there is no such file; expected lines of a path and a label")
        rows = _read_npy(file) if file.suffix == ".npy" else _read_lines(file)
        base = file.parent if folder is None else Path(folder)
        paths = tuple(base / name for _, name, _ in rows)
        if missing == "refuse":
            for (line, _, _), path in zip(rows, paths, strict=True):
                if not path.is_file():
                    raise InputError(
                        f'{file}, line {line}: there is no file {path}; mend the list, or say missing="skip" '
                        "to have such files replaced and named at the end"
                    )
        labels = [label for _, _, label in rows if label is not None]
        return cls(name=file.stem, paths=paths, labels={"label": torch.tensor(labels)} if labels else {})

    def select(self, rows: Int[Tensor, " K"]) -> "VideoSet":
        """The files with these numbers."""
        return replace(
            self,
            paths=tuple(self.paths[row] for row in rows.tolist()),
            labels={kind: labels[rows] for kind, labels in self.labels.items()},
            segments=None if self.segments is None else self.segments[rows],
        )

    def split(self, fractions: Sequence[float], seed: int) -> tuple["VideoSet", ...]:
        """Disjoint sets with these fractions of the files, by their names and the seed.

        The order of the files does not matter; parts of one file stay together. A file's name is that of
        its folder and its own, so a copy of the set elsewhere is split alike.
        """
        if any(not part > 0 for part in fractions) or not math.isclose(math.fsum(fractions), 1):
            raise InputError(f"fractions of a split are positive and add up to 1; got {list(fractions)}")
        own = [_name(path) for path in self.paths]
        names = sorted(set(own), key=lambda name: _mark(seed, name))
        ends = [round(len(names) * math.fsum(fractions[: k + 1])) for k in range(len(fractions))]
        starts = [0, *ends[:-1]]
        if any(start == end for start, end in zip(starts, ends, strict=True)):
            raise InputError(
                f"{self.name}: {len(names)} files cannot be split as {list(fractions)}: a part would be empty"
            )
        place = {name: rank for rank, name in enumerate(names)}
        rank = torch.tensor([place[name] for name in own])
        return tuple(
            self.select(((rank >= start) & (rank < end)).nonzero()[:, 0])
            for start, end in zip(starts, ends, strict=True)
        )


def _name(path: Path) -> str:
    return "/".join(path.parts[-2:])


def _mark(seed: int, name: str) -> bytes:
    """Where a name stands in the order of this seed."""
    return hashlib.sha256(f"{seed} {name}".encode()).digest()


_Row = tuple[int, str, int | None]  # number of the line, path, label


def _read_lines(file: Path) -> list[_Row]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as reason:
        raise InputError(f"{file} cannot be read as text ({reason})") from reason
    numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise InputError(f'{file} is empty; expected lines of "path label"')
    labelled = _fields(numbered[0][1])[1] is not None
    rows: list[_Row] = []
    for number, line in numbered:
        name, label = _fields(line) if labelled else (line, None)
        if labelled and label is None:
            raise InputError(
                f"{file}, line {number}: {line[:80]!r} does not end in an integer label as the first line "
                'does; expected "path label" or "path::label"'
            )
        rows.append((number, name, label))
    return rows


def _fields(line: str) -> tuple[str, int | None]:
    """Path and label of a line; without a label, the line."""
    name, _, label = line.rpartition("::") if "::" in line else line.rpartition(" ")
    try:
        return (name.strip(), int(label)) if name.strip() else (line, None)
    except ValueError:
        return line, None


def _read_npy(file: Path) -> list[_Row]:
    try:
        names = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as reason:
        raise InputError(
            f"{file} cannot be read as an array of text ({reason}); save paths with "
            "`numpy.save(file, numpy.array(paths, dtype=str))`, since an array of objects could run code"
        ) from reason
    if names.ndim != 1 or names.dtype.kind != "U" or not len(names):
        raise InputError(
            f"{file} holds {names.dtype} of shape {list(names.shape)}; expected a list of paths, as text"
        )
    return [(number, str(name), None) for number, name in enumerate(names, start=1)]
