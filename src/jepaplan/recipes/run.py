"""Train an experiment into a run folder, and read a run back as something to plan with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from jepaplan.data.collect import record_world
from jepaplan.data.episodes import Episodes, open_episodes
from jepaplan.data.mirrors import mirrored
from jepaplan.recipes.experiment import Experiment
from jepaplan.recipes.serialise import (
    any_experiment_from_json,
    decisive,
    experiment_from_json,
    experiment_to_json,
)
from jepaplan.recipes.stages import Report, Workshop, silent
from jepaplan.recipes.system import Interface, System, build_system, felt_by, fit_normalisation
from jepaplan.recipes.value_stages import refuse_missing_signals
from jepaplan.recipes.video import VideoExperiment
from jepaplan.training.checkpoint import load_weights, read_weights
from jepaplan.training.distributed import barrier, processes
from jepaplan.training.loop import fit
from jepaplan.training.runs import Origin, RunDirectory, open_run
from jepaplan.training.stage import FitResult, Progress
from jepaplan.types import InputError, SeedTree

DATA_FILE = "data.h5"  # inside the run, where no recording was given


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How a run is trained, apart from what is trained."""

    data: Path | None = None  # a recording; None: record the recipe's own into the run
    tensorboard: bool = False
    device: str = "cpu"
    on_progress: Callable[[Progress], None] | None = None
    report: Report = silent


@dataclass(frozen=True, kw_only=True)
class LoadedRun:
    """A finished run: what was asked, what was learned, and where from."""

    path: Path
    experiment: Experiment
    system: System
    card: Mapping[str, Any]

    @property
    def seconds(self) -> dict[str, float]:
        """Training time of each stage."""
        return {name: float(stage["seconds"]) for name, stage in self.card["stages"].items()}


def train(experiment: Experiment, path: Path, options: TrainOptions | None = None) -> list[FitResult]:
    """Train all stages of `experiment` into `path`, or go on where an earlier call stopped."""
    options = options or TrainOptions()
    episodes = mirrored(_recording(experiment, path, options), experiment.mirrors)
    origin = Origin(
        recipe=experiment.recipe,
        configuration=experiment_to_json(experiment),
        data=episodes.content_hash,
        seed=experiment.seed,
    )
    # Before the run begins: a recipe that does not fit the recording leaves no run that remembers it.
    system = build_system(experiment, interface_of(episodes))
    refuse_missing_signals(experiment.stages, episodes)
    with open_run(path, origin, options.tensorboard, complete=partial(completed, experiment)) as run:
        fit_normalisation(system, episodes, experiment.seed)
        workshop = Workshop(experiment, system.to(options.device), episodes, options.report)
        results: list[FitResult] = []
        for stage in experiment.stages:
            config = replace(stage.fit, seed=experiment.seed)
            results.append(fit(workshop.build(stage), run, config, options.on_progress))
    return results


def load_run(path: Path | str) -> LoadedRun:
    """Read a run's configuration and weights; refuses unfinished runs and weights of another architecture."""
    run = RunDirectory(path)
    card = run.read_card()
    experiment = experiment_from_json(card.get("configuration"), str(run.card))
    refuse_unfinished(run, experiment)
    tensors = read_weights(run.weights).tensors
    # Weights without statistics of actions are of another architecture: `load_weights` says so by name.
    actions, encoder = tensors.get("world_model.actions.mean"), experiment.encoder
    interface = Interface(
        image=(encoder.image_channels, encoder.image_size, encoder.image_size),
        action_dim=1 if actions is None else actions.numel(),
        proprioception=felt_by(encoder),
    )
    system = build_system(experiment, interface)
    load_weights(run.weights, system)
    # gradients of a plan go to its actions: weights that asked for theirs would be paid for, too
    return LoadedRun(
        path=run.path, experiment=experiment, system=system.eval().requires_grad_(False), card=card
    )


def is_finished(path: Path | str, experiment: Experiment | VideoExperiment) -> bool:
    """Whether the folder holds a run of exactly this experiment with all its stages trained."""
    run = RunDirectory(path)
    if not run.card.is_file():
        return False
    card = run.read_card()
    begun = any_experiment_from_json(card.get("configuration"), str(run.card))
    return decisive(begun) == decisive(experiment) and not _unfinished(card, experiment)


def refuse_unfinished(run: RunDirectory, experiment: Experiment | VideoExperiment) -> None:
    """Say what is still to be trained, and how."""
    unfinished = _unfinished(run.read_card(), experiment)
    if unfinished:
        raise InputError(
            f"{run.path} is not finished: stage {unfinished[0]!r} is still to be trained. Continue it with "
            f"`jepaplan train {experiment.recipe} --run {run.path}`"
        )


def completed(asked: Experiment | VideoExperiment, configuration: Any) -> Any:
    """What a run was begun with, in today's words, and with the fields that came since at their defaults."""
    begun = any_experiment_from_json(configuration)
    return experiment_to_json(replace(begun, description=asked.description))


def interface_of(episodes: Episodes) -> Interface:
    """Shapes of what was recorded."""
    channels, height, width = episodes.observations.shape[1:]
    return Interface(
        image=(channels, height, width),
        action_dim=episodes.actions.shape[1],
        proprioception=0 if episodes.proprioception is None else episodes.proprioception.shape[1],
    )


def find_recording(run: LoadedRun, data: Path | None = None) -> Path | None:
    """The recording that a run learned from, if it is the run's own or given."""
    own = run.path / DATA_FILE
    return data if data is not None else own if own.exists() else None


def _recording(experiment: Experiment, path: Path, options: TrainOptions) -> Episodes:
    if options.data is not None:
        return open_episodes(options.data)
    own, config = path / DATA_FILE, experiment.recording
    if not own.exists() and processes().writes:
        path.mkdir(parents=True, exist_ok=True)
        record_world(
            own,
            config.world,
            config,
            SeedTree(experiment.seed)["collect"] % 2**31,
            lambda done, total: options.report("recording trajectories", done, total),
        )
    barrier()
    return open_episodes(own)


def _unfinished(card: Mapping[str, Any], experiment: Experiment | VideoExperiment) -> list[str]:
    done = card.get("stages", {})
    return [
        stage.name
        for stage in experiment.stages
        if done.get(stage.name, {}).get("updates", 0) < stage.fit.updates
    ]
