"""How long an update of video pretraining takes and what it needs, beside a formula; and how fast clips come.

    python benchmarks/video.py [--rounds 6] [--sizes nano small ...] [--out FILE.md]

Three questions: how fast this machine multiplies matrices of the models' sizes; how much of that an update
uses, and whether `video_step`'s formula foretells its time and its memory; how many trainers one decoding
thread feeds. Rounds are paired: a round times an update and every part of it once, ratios are formed within
rounds, and an update of many seconds gets a third of the rounds. Random pixels cost what videos cost.

Decoded are generated sprites: files as `video-nano` makes them, and 256 x 256 at 30 frames per second with
a key frame every 250, as videos from elsewhere have them. Their bit rates are below those of real videos.
"""

import argparse
import math
import multiprocessing
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from jepaplan.data.sprite_videos import SpriteConfig, draw_motion_scenes, write_sprite_videos
from jepaplan.data.video import open_video, require_av
from jepaplan.data.video_cache import cache_videos
from jepaplan.data.video_clips import VideoClips
from jepaplan.data.video_sets import VideoSet
from jepaplan.data.video_windows import ClipConfig
from jepaplan.envs.sprites import draw_scenes
from jepaplan.models.video_vit import VIDEO_SIZES
from measuring import Work, origin, ratios, save, spread
from video_step import (
    ATTENTION,
    CALLS,
    DEFAULT,
    ONEDNN,
    UPDATE,
    WRITTEN,
    Case,
    Measured,
    measure,
    operations,
    parts_of,
    predicted_bytes,
    processor_seconds,
    ratios_of,
    update_of,
)

PUBLISHED = 24  # clips of a published micro-batch
NANO = Case(size="nano", clips=16, equalised=16)
CASES = {
    "nano": NANO,
    "nano16": Case(size="nano16", clips=16, equalised=16),
    "tiny": Case(size="tiny", clips=16, equalised=16),
    "small": Case(size="small", clips=1, equalised=PUBLISHED, patient=True),
    "base": Case(size="base", clips=1, equalised=PUBLISHED, patient=True),
    "large": Case(size="large", clips=1, equalised=PUBLISHED, patient=True),
}
USUAL = ("nano", "nano16", "tiny", "small", "base")  # large takes minutes per round and 9 GB
SMALL_FILES, LARGE_FILES = 64, 4
LARGE = SpriteConfig(size=256, frames=300, fps=30, radius=(28.0, 36.0), speed=(56.0, 88.0))
SMALL_CLIP, LARGE_CLIP = ClipConfig(frames=8, fps=4.0), ClipConfig(frames=16, fps=4.0)
SMALL_WINDOWS, LARGE_WINDOWS = "64 x 64: windows of 8 frames", "256 x 256: windows of 16 frames"
CACHED = "64 x 64: windows of 8 frames, cached"


@dataclass(frozen=True)
class Reading:
    """A way to get frames, and how many of them one call delivers."""

    work: Work
    frames: int


def in_own_process(case: Case, rounds: int) -> Measured:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measure, case, max(1, rounds // 3) if case.patient else rounds).result()


def write_large_videos(folder: Path) -> VideoSet:
    """Clips compressed as usual: differences between frames, and seldom a frame that stands alone."""
    av = require_av()
    folder.mkdir()
    for number in range(LARGE_FILES):
        labels = torch.tensor([number])
        scenes = draw_motion_scenes(labels, labels, LARGE, torch.Generator().manual_seed(number))
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=LARGE.fps, options={"crf": "23", "g": "250"})
            stream.height = stream.width = LARGE.size
            stream.pix_fmt, stream.thread_count = "yuv420p", 1
            for picture in draw_scenes(scenes)[0].permute(0, 2, 3, 1).contiguous().numpy():
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    return VideoSet.folder(folder)


def readings(folder: Path) -> dict[str, Reading]:
    small = write_sprite_videos(folder / "small", SMALL_FILES)
    large = write_large_videos(folder / "large")
    cache = cache_videos(folder / "cache", [small], SMALL_CLIP)

    def whole(videos: VideoSet, frames: int) -> Reading:
        def work() -> None:
            for path in videos.paths:
                with open_video(path) as video:
                    video.read(torch.arange(len(video.timestamps)))

        return Reading(work, frames * len(videos))

    def windows(clips: VideoClips, items: int, repeats: int = 1) -> Reading:
        generator = torch.Generator().manual_seed(0)

        def work() -> None:
            for _ in range(repeats):
                clips.load(clips.sample(generator, items))

        return Reading(work, repeats * items * clips.config.frames)

    return {
        "64 x 64: whole files of 20 frames": whole(small, SpriteConfig().frames),
        SMALL_WINDOWS: windows(VideoClips([small], SMALL_CLIP), 64),
        CACHED: windows(VideoClips([small], SMALL_CLIP, cache=cache), 64, repeats=10),
        "256 x 256: whole files of 300 frames": whole(large, LARGE.frames),
        LARGE_WINDOWS: windows(VideoClips([large], LARGE_CLIP), 8),
    }


def measure_reading(rounds: int) -> tuple[dict[str, list[float]], list[float], list[float], float]:
    """Frames per second of each way and of training `nano`; oneDNN's rate; clock over processor."""
    update, (products, flops) = update_of(NANO), parts_of(NANO)[ONEDNN]
    with tempfile.TemporaryDirectory() as folder:
        ways = readings(Path(folder))
        works = {UPDATE: update, ONEDNN: products} | {name: way.work for name, way in ways.items()}
        for work in works.values():
            work()
        taken, waited = processor_seconds(works, rounds)
    speeds = {name: [way.frames / each for each in taken[name]] for name, way in ways.items()}
    trained = [NANO.clips * NANO.encoder.frames / each for each in taken[UPDATE]]
    return speeds, trained, [flops / each for each in taken[ONEDNN]], waited


def product_rows(measured: Mapping[str, Measured]) -> list[str]:
    lines = [
        "## What the machine could do",
        "",
        "The four linear maps of an encoder's block on all tokens of an update, forward; attention, forward",
        "for the target, forward and backward for the predictor; norm, sum and activation, both ways; and",
        "a small block on one token, both ways, which is the time of calling.",
        "",
        "| size | rows x width | torch's default, GF/s | oneDNN, GF/s | oneDNN is faster by "
        "| attention, GF/s | written beside products, 10^9 numbers/s | blocks called per s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, one in measured.items():
        case, rates = CASES[name], one.rates
        cells = [
            f"{case.clips * case.encoder.tokens} x {case.encoder.width}",
            spread(_giga(rates[DEFAULT]), 0),
            spread(_giga(rates[ONEDNN]), 0),
            spread(ratios(rates[ONEDNN], rates[DEFAULT])),
            spread(_giga(rates[ATTENTION]), 0),
            spread(_giga(rates[WRITTEN])),
            spread(rates[CALLS], 0),
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def update_rows(measured: Mapping[str, Measured]) -> list[str]:
    lines = [
        "## An update beside the formula",
        "",
        "Target, two contexts and predictions, backward, clipping, AdamW, moving average. The formula is",
        "that of benchmarks/video_step.py with the rates of the same round. Utilisation: operations over",
        "time, over the rate of oneDNN's products in the same round. Memory: the most that the process held,",
        "less what it held before the model was there, beside `state_bytes` + clips x `activation_bytes`.",
        "",
        "| size | clips | GF | of it attention | s | formula takes s | measured / formula | utilisation | GB "
        "| formula, GB | measured / formula |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in measured.items():
        work, rounds = one.operations, range(len(one.seconds))
        foretold = [work.seconds({part: rate[k] for part, rate in one.rates.items()}) for k in rounds]
        used = [work.products / s / rate for s, rate in zip(one.seconds, one.rates[ONEDNN], strict=True)]
        cells = [
            f"{CASES[name].clips} | {work.products / 1e9:,.1f} | {work.attention / work.products:.2f}",
            spread(one.seconds),
            spread(foretold),
            spread(ratios(one.seconds, foretold)),
            spread(used),
            f"{one.peak / 1e9:.2f} | {one.predicted_peak / 1e9:.2f} | {one.peak / one.predicted_peak:.2f}",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def all_sizes(measured: Mapping[str, Measured]) -> list[str]:
    """What the formula says of every size, with the median rates of the largest size measured."""
    largest = list(measured)[-1]
    rates = {name: median(each) for name, each in measured[largest].rates.items()}
    lines = [
        "## Tiny to giant by formula",
        "",
        f"On one core with the rates measured at {largest}; masks equalised over {PUBLISHED} clips (tiny:",
        "16). Nothing is computed again; fp32.",
        "",
        "| size | GF per clip | of it attention | s per clip | utilisation | state, GB "
        "| activations per clip, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for size in list(VIDEO_SIZES)[list(VIDEO_SIZES).index("tiny") :]:
        # tiny is an update of 16 clips: with one, the optimiser would count 16 times
        case = CASES["tiny"] if size == "tiny" else Case(size=size, clips=1, equalised=PUBLISHED)
        shares = ratios_of(case)
        work, state = operations(case, shares), predicted_bytes(case, ())
        kept, seconds = predicted_bytes(case, shares) - state, work.seconds(rates)
        lines.append(
            f"| {size} | {work.products / case.clips / 1e9:,.1f} | {work.attention / work.products:.2f} | "
            f"{seconds / case.clips:.3g} | {work.products / seconds / rates[ONEDNN]:.2f} | "
            f"{state / 1e9:.2f} | {kept / case.clips / 1e9:.3f} |"
        )
    return lines


def reading_rows(speeds: Mapping[str, list[float]], trained: list[float], rate: list[float]) -> list[str]:
    """Decoding and training in the same rounds."""
    lines = [
        "## Decoding beside training",
        "",
        "One thread, PyAV, frames delivered as uint8 RGB; a window decodes more than it delivers. In",
        f"the same rounds an update of nano trains {spread(trained, 0)} frames/s, and oneDNN's products",
        f"of its layers run at {spread(_giga(rate), 0)} GF/s.",
        "",
        "| | frames/s | products in the time of one frame, GF | times nano's training |",
        "|---|---|---|---|",
    ]
    for name, each in speeds.items():
        per_frame = _giga(ratios(rate, each))
        lines.append(
            f"| {name} | {spread(each, 0)} | {spread(per_frame, 3)} | {spread(ratios(each, trained), 1)} |"
        )
    return lines


def feeding_rows(measured: Mapping[str, Measured], speeds: Mapping[str, list[float]]) -> list[str]:
    """Medians of different processes, so no ranges."""
    lines = [
        "## How many trainers one decoding thread feeds",
        "",
        "Medians of both; the attainable rate trains frames at oneDNN's products, with nothing beside them.",
        "",
        "| size | GF per frame | trained, frames/s | attainable, frames/s | decoded windows, frames/s "
        "| trainers per thread | cached |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in measured.items():
        case = CASES[name]
        frames = case.clips * case.encoder.frames
        trained = frames / median(one.seconds)
        attainable = median(one.rates[ONEDNN]) * frames / one.operations.products
        small = case.encoder.image == SpriteConfig().size
        decoded = median(speeds[SMALL_WINDOWS if small else LARGE_WINDOWS])
        cached = f"{median(speeds[CACHED]) / trained:,.0f}" if small else "-"
        digits = max(0, 1 - math.floor(math.log10(trained)))
        lines.append(
            f"| {name} | {one.operations.products / frames / 1e9:,.2f} | {trained:,.{digits}f} | "
            f"{attainable:,.{digits}f} | {decoded:,.0f} | {decoded / trained:,.0f} | {cached} |"
        )
    return lines


def _giga(rates: list[float]) -> list[float]:
    return [rate / 1e9 for rate in rates]


def head(rounds: int, waited: float) -> list[str]:
    return [
        "# An update of video pretraining, and the decoding that feeds it",
        "",
        *origin(),
        f"- {rounds} paired rounds, {max(1, rounds // 3)} where an update takes many seconds; median "
        "[least-greatest]; fp32; a finding needs six rounds",
        "- Seconds are processor time of the one thread. Other work ran on the machine: the clock showed "
        f"{waited:.1f} times as much, and caches and memory were shared",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=6, help="paired rounds; a finding needs six or more")
    parser.add_argument("--sizes", nargs="+", choices=list(CASES), default=list(USUAL))
    parser.add_argument("--out", type=Path, help="also write the page to this Markdown file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measured: dict[str, Measured] = {}
    for size in options.sizes:
        measured[size] = in_own_process(CASES[size], options.rounds)
        print(update_rows(measured)[-1], flush=True)
    speeds, trained, rate, waited = measure_reading(options.rounds)
    waits = [waited, *(one.waited for one in measured.values())]
    parts = [
        product_rows(measured),
        update_rows(measured),
        all_sizes(measured),
        reading_rows(speeds, trained, rate),
        feeding_rows(measured, speeds),
    ]
    page = "\n".join([*head(options.rounds, median(waits)), *("\n".join(part) + "\n" for part in parts)])
    print(page)
    save(options.out, page)


if __name__ == "__main__":
    main()
