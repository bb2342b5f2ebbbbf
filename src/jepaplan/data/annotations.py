"""Something-Something v2 and EPIC-KITCHENS-100: their annotation files as sets of videos with labels.

Goyal et al., ICCV 2017 (arXiv:1706.04261), release 2 of its data; Damen et al., IJCV 2022 (arXiv:2006.13256),
"Rescaling Egocentric Vision". The formats are those of the files as released:

    something-something-v2-{train,validation}.json   [{"id", "label", "template", "placeholders"}, ...]
    something-something-v2-test.json                 [{"id"}, ...]
    something-something-v2-labels.json               {"Holding something next to something": "17", ...}
    EPIC_100_{train,validation}.csv                  narration_id, participant_id, video_id, start_timestamp,
                                                     stop_timestamp (HH:MM:SS.ff), verb_class, noun_class ...
    EPIC_100_{verb,noun}_classes.csv                 id, key, ...

An action is a pair of verb and noun; its number is its place in a sorted list of pairs (`epic_actions`),
which training and validation must share. These readers are tested on generated files of these formats.
"""

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from jepaplan.data.video_sets import VideoSet
from jepaplan.types import InputError

_EPIC_COLUMNS = ("participant_id", "video_id", "start_timestamp", "stop_timestamp")
_CLOCK = re.compile(r"(\d+):([0-5]?\d):([0-5]?\d(?:\.\d+)?)")


def something_something(
    annotations: Path | str, labels: Path | str, videos: Path | str, suffix: str = ".webm"
) -> VideoSet:
    """The videos of an annotation file with their template as label `action`; the test file has no labels.

    Videos are `videos`/ID.webm. Those that are not there are replaced and named when clips are loaded.
    """
    file, names = Path(annotations), _templates(Path(labels))
    rows = _json(file)
    if not isinstance(rows, list) or not rows:
        raise InputError(
            f'{file}: expected a list of {{"id": ..., "template": ...}}; got {type(rows).__name__}'
        )
    numbers = {name: number for number, name in enumerate(names)}
    paths: list[Path] = []
    actions: list[int] = []
    for place, row in enumerate(cast(list[Any], rows)):
        if not isinstance(row, dict) or "id" not in row:
            raise InputError(f'{file}, entry {place}: expected an object with an "id"; got {str(row)[:80]}')
        paths.append(Path(videos) / f"{row['id']}{suffix}")
        if "template" in row:
            template = re.sub(r"[\[\]]", "", str(row["template"]))
            if template not in numbers:
                raise InputError(f"{file}, entry {place}: {template!r} is not among the labels of {labels}")
            actions.append(numbers[template])
    if actions and len(actions) != len(paths):
        raise InputError(
            f'{file}: {len(actions)} of {len(paths)} entries have a "template"; expected all, '
            "or none as in the test file"
        )
    return VideoSet(
        name=file.stem,
        paths=tuple(paths),
        labels={"action": torch.tensor(actions)} if actions else {},
        classes={"action": names},
    )


@dataclass(frozen=True, kw_only=True)
class Anticipation:
    """What is seen of an action to come: a stretch of video that ends before the action begins."""

    ahead: float = 1.0  # seconds between the last frame that may be seen and the action
    context: float = 4.0  # seconds that may be seen

    def __post_init__(self) -> None:
        if self.ahead < 0 or not self.context > 0:
            raise InputError(
                f"ahead is seconds, >= 0, and context seconds, > 0; got {self.ahead} and {self.context}"
            )


def epic_kitchens(
    annotations: Path | str,
    videos: Path | str,
    actions: Sequence[tuple[int, int]] | None = None,
    anticipation: Anticipation | None = None,
    suffix: str = ".MP4",
) -> VideoSet:
    """The narrated segments of an annotation file, with labels `verb`, `noun` and `action`.

    Videos are `videos`/PARTICIPANT/videos/ID.MP4 as released, or `videos`/ID.MP4. `actions` numbers the pairs
    of verb and noun; by default those of this file, and a pair that is not among them gets -1. With
    `anticipation` the segments are what is seen before the actions; those that begin too early are left out.
    """
    file = Path(annotations)
    rows = _epic_rows(file)
    labelled = "verb_class" in rows[0][1]
    segments = [_segment(file, line, row, anticipation) for line, row in rows]
    kept = [k for k, (start, end) in enumerate(segments) if start < end or anticipation is None]
    if not kept:
        raise InputError(f"{file}: no action begins late enough to be anticipated as {anticipation}")
    labels: dict[str, list[int]] = {}
    if labelled:
        pairs = [_pair(file, line, row) for line, row in rows]
        numbers = {
            pair: place for place, pair in enumerate(sorted(set(pairs)) if actions is None else actions)
        }
        labels = {
            "verb": [pairs[k][0] for k in kept],
            "noun": [pairs[k][1] for k in kept],
            "action": [numbers.get(pairs[k], -1) for k in kept],
        }
    return VideoSet(
        name=file.stem,
        paths=tuple(_epic_path(Path(videos), rows[k][1], suffix) for k in kept),
        labels={kind: torch.tensor(values) for kind, values in labels.items()},
        segments=torch.tensor([segments[k] for k in kept], dtype=torch.float64),
    )


def epic_actions(*annotations: Path | str) -> tuple[tuple[int, int], ...]:
    """The pairs of verb and noun that occur in these files, sorted: action `k` is the k-th of them."""
    files = [Path(file) for file in annotations]
    return tuple(sorted({_pair(file, line, row) for file in files for line, row in _epic_rows(file)}))


def epic_classes(file: Path | str) -> tuple[str, ...]:
    """The names of verbs or nouns, by their number."""
    file = Path(file)
    names: dict[int, str] = {}
    for line, row in _csv_rows(file, ("id", "key")):
        names[_integer(file, line, row, "id")] = row["key"]
    if sorted(names) != list(range(len(names))):
        raise InputError(
            f"{file}: ids should be 0 to {len(names) - 1}, each once; got {sorted(names)[:8]} ..."
        )
    return tuple(names[number] for number in range(len(names)))


def _templates(file: Path) -> tuple[str, ...]:
    """The names of the templates, by their number."""
    table = _json(file)
    try:
        numbers = {int(number): str(name) for name, number in cast(Mapping[str, str], table).items()}
    except (AttributeError, TypeError, ValueError) as reason:
        raise InputError(f'{file}: expected {{"template": "number", ...}} ({reason})') from reason
    if sorted(numbers) != list(range(len(numbers))) or not numbers:
        raise InputError(f"{file}: numbers should be 0 to {max(len(numbers) - 1, 0)}, each once")
    return tuple(numbers[number] for number in range(len(numbers)))


def _json(file: Path) -> Any:
    if not file.is_file():
        raise InputError(f"{file}: there is no such file; expected annotations in JSON")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as reason:
        raise InputError(f"{file} cannot be read as JSON ({reason})") from reason


_Rows = list[tuple[int, dict[str, str]]]  # number of the line, fields by column


def _csv_rows(file: Path, columns: Iterable[str]) -> _Rows:
    """The rows of a table that has these columns."""
    if not file.is_file():
        raise InputError(f"{file}: there is no such file; expected annotations in CSV")
    try:
        with file.open(newline="", encoding="utf-8") as text:
            reader = csv.DictReader(text)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as reason:
        raise InputError(f"{file} cannot be read as CSV ({reason})") from reason
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
        raise InputError(f"{file} lacks the columns {missing}; it has {list(reader.fieldnames or ())}")
    if not rows:
        raise InputError(f"{file} has a heading but no rows")
    for line, row in rows:
        if None in row or None in row.values():
            raise InputError(f"{file}, line {line}: {len(reader.fieldnames or ())} fields were expected")
    return rows


def _epic_rows(file: Path) -> _Rows:
    return _csv_rows(file, _EPIC_COLUMNS)


def _epic_path(videos: Path, row: Mapping[str, str], suffix: str) -> Path:
    """Where the video is: flat if it is there, else as released."""
    flat = videos / f"{row['video_id']}{suffix}"
    return flat if flat.is_file() else videos / row["participant_id"] / "videos" / flat.name


def _segment(
    file: Path, line: int, row: Mapping[str, str], anticipation: Anticipation | None
) -> tuple[float, float]:
    """First and last second of what may be seen; an empty stretch where nothing may."""
    start, stop = (_seconds(file, line, row[name]) for name in ("start_timestamp", "stop_timestamp"))
    if start > stop:
        raise InputError(f"{file}, line {line}: the action stops at {stop} s, before it starts at {start} s")
    if anticipation is None:
        return start, stop
    end = start - anticipation.ahead
    return max(0.0, end - anticipation.context), end


def _seconds(file: Path, line: int, text: str) -> float:
    match = _CLOCK.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{file}, line {line}: {text!r} is no time; expected HH:MM:SS.ff")
    hours, minutes, seconds = match.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _pair(file: Path, line: int, row: Mapping[str, str]) -> tuple[int, int]:
    return _integer(file, line, row, "verb_class"), _integer(file, line, row, "noun_class")


def _integer(file: Path, line: int, row: Mapping[str, str], column: str) -> int:
    try:
        return int(row[column])
    except (KeyError, ValueError) as reason:
        raise InputError(
            f"{file}, line {line}: {column} should be an integer; got {row.get(column)!r}"
        ) from reason
