"""The health card of a recording: what it covers, how it moves and what looks wrong."""

import zlib
from dataclasses import dataclass, replace

import torch

from jepaplan.data.episodes import Episodes

CELL = 4.0  # side of the cells in which coverage is counted, in the units of the true state
STATIC = 1e-6  # an action shorter than this moves nothing


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What `inspect` shows. Fractions are of 1; `None` where it cannot be known from the recording."""

    episodes: int
    frames: int
    image_shape: tuple[int, int, int]
    length_min: int  # actions of an episode
    length_mean: float
    length_max: int
    action_mean: tuple[float, ...]  # per axis, environment units
    action_std: tuple[float, ...]
    norm_min: float  # of an action's length
    norm_mean: float
    norm_max: float
    static_actions: float  # fraction of actions that are zero
    duplicate_frames: float  # fraction of frames that show the same picture as an earlier one
    still_frames: float  # fraction of steps after which the picture is the same as before
    coverage: float | None  # fraction of the cells of x and y, within their extremes, that were visited
    constant_pixels: float  # fraction of pixels that never change in the frames looked at
    rewards: tuple[float, float, float] | None  # smallest, mean and largest of an action
    successful: float | None  # fraction of episodes with success in some frame
    warnings: tuple[str, ...]


def summarise(episodes: Episodes) -> Summary:
    """Look through the whole recording once."""
    norms = episodes.actions.norm(dim=-1)
    std, mean = torch.std_mean(episodes.actions.double(), dim=0, correction=0)
    duplicate, still = _repeats(episodes)
    _, channels, height, width = episodes.observations.shape
    some = episodes.observations[:: max(1, len(episodes.observations) // 2048)]
    rewards = episodes.earned.rewards
    summary = Summary(
        episodes=len(episodes),
        frames=len(episodes.observations),
        image_shape=(channels, height, width),
        length_min=int(episodes.lengths.min()),
        length_mean=float(episodes.lengths.double().mean()),
        length_max=int(episodes.lengths.max()),
        action_mean=tuple(mean.tolist()),
        action_std=tuple(std.tolist()),
        norm_min=float(norms.min()),
        norm_mean=float(norms.mean()),
        norm_max=float(norms.max()),
        static_actions=float((norms < STATIC).float().mean()),
        duplicate_frames=duplicate,
        still_frames=still,
        coverage=_coverage(episodes),
        constant_pixels=float((some == some[:1]).all(0).float().mean()),
        rewards=None
        if rewards is None
        else (float(rewards.min()), float(rewards.double().mean()), float(rewards.max())),
        successful=_successful(episodes),
        warnings=(),
    )
    return replace(summary, warnings=_warnings(summary))


def _repeats(episodes: Episodes) -> tuple[float, float]:
    """Fractions of frames seen before, and of steps that change nothing to be seen."""
    # Checksums of 32 bits: among 64 000 different frames about one half of a pair agrees by chance.
    frames = episodes.observations.contiguous().numpy()
    marks = torch.tensor([zlib.crc32(frame) for frame in frames])
    duplicate = 1 - len(marks.unique()) / len(marks)
    steps = torch.ones(len(marks), dtype=torch.bool)
    steps[episodes.starts] = False  # the first frame of an episode follows no step
    same = marks == marks.roll(1)
    return duplicate, float((same & steps).sum() / steps.sum())


def _coverage(episodes: Episodes) -> float | None:
    """Visited fraction of the cells of the true state's first two components, between their extremes."""
    if episodes.states is None or episodes.states.shape[-1] < 2:
        return None
    cells = (episodes.states[:, :2] / CELL).floor().long()
    extent = cells.amax(0) - cells.amin(0) + 1
    return len(cells.unique(dim=0)) / int(extent.prod())


def _successful(episodes: Episodes) -> float | None:
    """Fraction of episodes with success in some frame."""
    if episodes.earned.success is None:
        return None
    parts = episodes.earned.success.split((episodes.lengths + 1).tolist())
    return sum(bool(part.any()) for part in parts) / len(parts)


def _warnings(summary: Summary) -> tuple[str, ...]:
    """What a careful colleague would point at."""
    least, most = min(summary.action_std), max(summary.action_std)
    still = [axis for axis, std in enumerate(summary.action_std) if std == 0]
    coverage = 1.0 if summary.coverage is None else summary.coverage
    remarks = (
        (summary.episodes < 20, f"only {summary.episodes} episodes: a held-out split will say little"),
        (least == 0, f"action axes {still} never change: a model cannot learn what they do"),
        (
            0 < 20 * least < most,
            "action axes differ in scale by more than 20 times: normalise before training",
        ),
        (summary.static_actions > 0.2, f"{summary.static_actions:.0%} of the actions are zero"),
        (
            summary.still_frames > 0.5,
            f"after {summary.still_frames:.0%} of the actions nothing looks different",
        ),
        (summary.duplicate_frames > 0.5, f"{summary.duplicate_frames:.0%} of the frames were shown before"),
        (summary.constant_pixels == 1, "no pixel ever changes: is the camera on?"),
        (coverage < 0.5, f"only {coverage:.0%} of the cells of the true state's extent were visited"),
        (summary.successful == 0, "no episode succeeded: a value cannot be learned from success"),
        (summary.length_min * 10 < summary.length_max, "some episodes are ten times shorter than others"),
    )
    return tuple(text for applies, text in remarks if applies)
