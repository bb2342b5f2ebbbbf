"""Where things are, read off the latents of a run: a probe fitted to the states of its recording.

Training never looks at states. The probe learns from recordings that the run learned from, and is judged by
others; it is fitted when it is first asked for, the same every time, and kept beside the run's weights.
"""

import hashlib
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from jepaplan.data.episodes import Episodes
from jepaplan.envs.worlds import WORLDS, find_world
from jepaplan.evaluation.position_probe import (
    ProbeConfig,
    ProbeError,
    fit_position_probe,
    position_probe_from,
    probe_error,
)
from jepaplan.recipes.run import LoadedRun, interface_of
from jepaplan.recipes.system import felt_by
from jepaplan.training.checkpoint import read_weights, save_weights
from jepaplan.training.runs import RunDirectory
from jepaplan.types import InputError, SeedTree

PROBE = ProbeConfig(kind="network")
FITTED = 5000  # frames that the probe learns from, at most
JUDGED = 1000  # frames that judge it, at most
_ENCODE_AT_ONCE = 1000
_FILE = "state_probe.safetensors"  # in the run


@dataclass(frozen=True, kw_only=True)
class StateProbe:
    """From latents to states of W numbers, and how well it reads them."""

    read: nn.Module
    error: ProbeError  # of recordings that it was not fitted to, in `unit`
    unit: str
    low: Float[Tensor, " W"]  # the smallest and the largest that were recorded
    high: Float[Tensor, " W"]

    @property
    def width(self) -> int:
        """W."""
        return len(self.low)


def kept_state_probe(run: LoadedRun, episodes: Episodes) -> StateProbe:
    """What `fit_state_probe` gives, from the run's folder where it was fitted before to the same things."""
    _refuse_other_recordings(run, episodes)
    path, origin = run.path / _FILE, _origin(run, episodes)
    if path.exists():
        try:
            kept = read_weights(path)
        except InputError:  # damaged: it can be fitted again
            kept = None
        if kept is not None and kept.card.get("origin") == origin:
            bounds = {name: kept.tensors.pop(name) for name in ("low", "high")}
            probe = position_probe_from(kept.tensors, PROBE, run.system.world_model.moves_from)
            error = ProbeError(**kept.card["error"])
            return StateProbe(read=probe.requires_grad_(False), error=error, unit=kept.card["unit"], **bounds)
    fitted = fit_state_probe(run, episodes)
    tensors = {**fitted.read.state_dict(), "low": fitted.low, "high": fitted.high}
    with suppress(InputError):  # where nothing may be written, it is fitted every time
        save_weights(path, tensors, {"origin": origin, "error": asdict(fitted.error), "unit": fitted.unit})
    return fitted


def _origin(run: LoadedRun, episodes: Episodes) -> dict[str, Any]:
    """All that decides what a probe learns, as JSON reads it back."""
    return {
        "weights": hashlib.sha256(RunDirectory(run.path).weights.read_bytes()).hexdigest(),
        "recording": episodes.content_hash,
        "probe": asdict(PROBE),
        "frames": [FITTED, JUDGED],
        "seed": run.experiment.seed,
        "held_out": run.experiment.held_out,
        "registered": str(episodes.manifest.get("world")) in WORLDS,
    }


@torch.no_grad()
def fit_state_probe(run: LoadedRun, episodes: Episodes) -> StateProbe:
    """Fit to recorded places, in pixels of the picture; of worlds that nobody registered to their states."""
    states = _refuse_other_recordings(run, episodes)
    name = str(episodes.manifest.get("world"))
    known = name in WORLDS
    wanted = find_world(name).positions(states) if known else states
    generator = SeedTree(run.experiment.seed).torch("state probe")
    border = _first_held_out(run, episodes)
    fitted = _some(torch.arange(border), FITTED, generator)
    judged = _some(torch.arange(border, len(wanted)), JUDGED, generator)
    model = run.system.world_model

    def encoded(frames: Int[Tensor, " n"]) -> Float[Tensor, "n D"]:
        felt = episodes.proprioception
        return torch.cat(
            [
                model.encode(episodes.observations[some], None if felt is None else felt[some])
                for some in frames.split(_ENCODE_AT_ONCE)
            ]
        )

    probe = fit_position_probe(encoded(fitted), wanted[fitted], PROBE, generator, model.moves_from)
    return StateProbe(
        read=probe.requires_grad_(False),
        error=probe_error(probe, encoded(judged), wanted[judged], PROBE.kind),
        unit="pixels" if known else "units of the recorded states",
        low=wanted.amin(0),
        high=wanted.amax(0),
    )


def _some(frames: Int[Tensor, " n"], count: int, generator: torch.Generator) -> Int[Tensor, " m"]:
    return frames[torch.randperm(len(frames), generator=generator)[:count]]


def _first_held_out(run: LoadedRun, episodes: Episodes) -> int:
    """The first frame that judges: those of training where it held some out, else of the last tenth."""
    recordings = len(episodes)
    if recordings < 2:
        raise InputError(
            f"{episodes.path} holds one trajectory; a probe needs one to learn from and one to be judged by"
        )
    kept = round(recordings * (1 - (run.experiment.held_out or 0.1)))
    return int(episodes.starts[max(1, min(kept, recordings - 1))])


def _refuse_other_recordings(run: LoadedRun, episodes: Episodes) -> Float[Tensor, "F W"]:
    if episodes.states is None:
        raise InputError(
            f"{episodes.path} holds no states, so nothing says where things are in its pictures; give the "
            "goal as a picture with --goal, or pass --data a recording of the same world that has states, "
            "such as `jepaplan collect` makes of our worlds"
        )
    config, shows = run.experiment.encoder, interface_of(episodes)
    image = (config.image_channels, config.image_size, config.image_size)
    if (shows.image, shows.proprioception) != (image, felt_by(config)):
        raise InputError(
            f"{episodes.path} has images {shows.image} and {shows.proprioception} numbers of proprioception; "
            f"the encoder of {run.path} takes {image} and {felt_by(config)}. Pass the recording that the run "
            "was trained on"
        )
    return episodes.states
