"""`jepaplan inspect FILE.h5 | RUN`: health card and pictures of a recording, or what a run is."""

import dataclasses
import json
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
import tyro

from jepaplan.commands.console import NOTES, RESULTS, table
from jepaplan.data.episodes import Episodes, open_episodes
from jepaplan.data.frames import frame_to_picture
from jepaplan.data.summary import Summary, summarise
from jepaplan.envs.worlds import recorded_world
from jepaplan.evaluation.pictures import contact_sheet
from jepaplan.training.runs import RunDirectory
from jepaplan.types import InputError

SHEETS = (".svg", ".html")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to look at, and which pictures to write."""

    path: tyro.conf.Positional[Path]
    """A recording (HDF5 file) or the folder of a run."""
    out: Path | None = None
    """Write a contact sheet of recorded trajectories here: a name that ends in .svg or .html."""
    trajectories: int = 24
    """How many trajectories the contact sheet shows, from the first."""
    frames: Path | None = None
    """Write first and last frames of some episodes as PNG into this folder."""
    count: int = 5
    """How many episodes --frames takes, spread evenly over the recording."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print what was found as JSON on standard output, and nothing else there."""

    def __post_init__(self) -> None:
        if self.out is not None and self.out.suffix not in SHEETS:
            raise InputError(f"a contact sheet is an .svg or an .html file; got --out {self.out}")
        if self.trajectories < 1 or self.count < 1:
            raise InputError(
                f"--trajectories and --count are at least 1; got {self.trajectories} and {self.count}"
            )


def main(arguments: list[str]) -> int:
    """Look, print, and write the pictures that were asked for."""
    options = tyro.cli(Options, prog="jepaplan inspect", description=__doc__, args=arguments)
    if options.path.is_dir():
        if options.out is not None or options.frames is not None:
            raise InputError(
                f"--out and --frames need a recording, and {options.path} is a folder; a run that recorded "
                f"its own data keeps it in {options.path / 'data.h5'}"
            )
        return show_run(options)
    return show_recording(options)


def show_recording(options: Options) -> int:
    """The health card and the pictures."""
    with NOTES.status(f"reading {options.path}"):
        episodes = open_episodes(options.path)
        summary = summarise(episodes)
    written: list[Path] = []
    if options.out is not None:
        written.append(write_sheet(episodes, options.out, options.trajectories))
    if options.frames is not None:
        written += write_frames(episodes, options.frames, options.count)
    if options.json:
        facts = {
            "path": str(options.path),
            "content_hash": episodes.content_hash,
            "manifest": episodes.manifest,
        }
        facts |= {"summary": dataclasses.asdict(summary), "written": [str(path) for path in written]}
        sys.stdout.write(json.dumps(facts) + "\n")
        return 0
    RESULTS.print(table(f"{options.path}", ["recording", "value"], health_rows(episodes, summary)))
    for words in summary.warnings:
        RESULTS.print(f"[yellow]warning:[/yellow] {words}", highlight=False)
    if not summary.warnings:
        RESULTS.print("nothing looks wrong", highlight=False)
    if written:
        RESULTS.print(f"wrote {written[0]}" + (f" and {len(written) - 1} more" if written[1:] else ""))
    return 0


def health_rows(episodes: Episodes, summary: Summary) -> list[list[str]]:
    """The card, a line each."""

    def numbers(values: tuple[float, ...]) -> str:
        return ", ".join(f"{value:.3g}" for value in values)

    world = episodes.manifest.get("world", "unknown")
    channels, height, width = summary.image_shape
    return [
        ["world", str(world.get("name", "unknown") if isinstance(world, dict) else world)],
        ["episodes", f"{summary.episodes:,}"],
        ["frames", f"{summary.frames:,}"],
        ["image", f"{channels} channels, {height} x {width}"],
        [
            "actions of an episode",
            f"{summary.length_min} to {summary.length_max}, mean {summary.length_mean:.1f}",
        ],
        ["action mean", numbers(summary.action_mean)],
        ["action standard deviation", numbers(summary.action_std)],
        [
            "action norm",
            f"{summary.norm_min:.3g} to {summary.norm_max:.3g}, mean {summary.norm_mean:.3g}",
        ],
        ["zero actions", f"{summary.static_actions:.1%}"],
        ["frames shown before", f"{summary.duplicate_frames:.1%}"],
        ["steps without visible change", f"{summary.still_frames:.1%}"],
        ["cells visited", "unknown" if summary.coverage is None else f"{summary.coverage:.1%}"],
        ["pixels that never change", f"{summary.constant_pixels:.1%}"],
        ["reward of an action", _rewards(summary)],
        [
            "successful episodes",
            "not recorded" if summary.successful is None else f"{summary.successful:.1%}",
        ],
        ["seed", str(episodes.manifest.get("seed", "unknown"))],
        ["content hash", episodes.content_hash[:16]],
    ]


def _rewards(summary: Summary) -> str:
    if summary.rewards is None:
        return "not recorded"
    least, mean, most = summary.rewards
    return f"{least:.3g} to {most:.3g}, mean {mean:.3g}"


def write_sheet(episodes: Episodes, path: Path, count: int) -> Path:
    """A contact sheet of the first `count` trajectories in their layouts."""
    world = recorded_world(episodes.manifest, str(episodes.path))
    states = episodes.states
    if world is None or states is None or states.shape[1] != world.state_width:
        raise InputError(
            f"a contact sheet draws paths through one of our worlds, and {episodes.path} does not hold the "
            "true states of one; look at its frames instead: --frames DIRECTORY"
        )
    starts, lengths = episodes.starts[:count, None], episodes.lengths[:count, None]
    # A shorter episode stays where it ended, so that all paths have one length.
    rows = starts + torch.minimum(torch.arange(int(lengths.max()) + 1), lengths)
    states = states[rows]
    svg = contact_sheet(world, states)
    title = escape(f"{episodes.path.name}: the first {len(states)} of {len(episodes):,} trajectories")
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
        f"<title>{title}</title><style>body{{font:16px system-ui;max-width:64rem;margin:2rem auto;"
        f"padding:0 1rem}}svg{{width:100%;height:auto}}</style><h1>{title}</h1>{svg}</html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(svg if path.suffix == ".svg" else page, encoding="utf-8")
    return path


def write_frames(episodes: Episodes, folder: Path, count: int) -> list[Path]:
    """First and last frame of `count` episodes as PNG: what `jepaplan plan --start --goal` takes."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    chosen = torch.linspace(0, len(episodes) - 1, min(count, len(episodes))).round().long().unique()
    for episode in chosen.tolist():
        first = int(episodes.starts[episode])
        for name, row in (("first", first), ("last", first + int(episodes.lengths[episode]))):
            written.append(folder / f"episode_{episode:05d}_{name}.png")
            frame_to_picture(episodes.observations[row]).save(written[-1])
    return written


def show_run(options: Options) -> int:
    """The card of a run, in words."""
    card = RunDirectory(options.path).read_card()
    if options.json:
        sys.stdout.write(json.dumps(card) + "\n")
        return 0
    configuration = card.get("configuration", {})
    machine = card.get("hardware", {})
    RESULTS.print(
        f"{options.path}: recipe {card.get('recipe', 'unknown')}, seed {card.get('seed', 'unknown')}\n"
        f"{configuration.get('description', '')}\n"
        f"commit {card.get('commit', 'unknown')}, version {card.get('version', 'unknown')}\n"
        f"data {card.get('data', 'unknown')}\n"
        f"hardware {', '.join(f'{name} {value}' for name, value in machine.items())}",
        highlight=False,
    )
    rows = [
        [name, f"{stage.get('updates', 0):,}", f"{stage.get('seconds', 0):.0f} s", _metrics(stage)]
        for name, stage in card.get("stages", {}).items()
    ]
    RESULTS.print(table("stages", ["stage", "updates", "time", "metrics of the last update"], rows))
    phases = configuration.get("phases", [])  # of a video encoder's pretraining
    asked = [stage.get("name") for stage in configuration.get("stages", phases)]
    missing = [name for name in asked if name not in card.get("stages", {})]
    if phases and not missing:
        RESULTS.print(
            f"a video encoder; `jepaplan probe {options.path} --data VIDEOS` says what its features know",
            markup=False,
            highlight=False,
        )
    if missing:
        RESULTS.print(
            f"not finished: {', '.join(missing)} still to be trained; the same `jepaplan train` goes on",
            highlight=False,
        )
    return 0


def _metrics(stage: dict[str, Any]) -> str:
    shown = {name: value for name, value in stage.get("metrics", {}).items() if isinstance(value, float)}
    return "\n".join(f"{name} {value:.4g}" for name, value in shown.items())
