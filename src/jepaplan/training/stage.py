"""What is trained and how: `Stage` says what, `FitConfig` how, `Progress` and `FitResult` what came of it.

A stage is one objective trained from start to end. A recipe that trains an encoder first and a predictor on
top of it is two stages of one run.

    batch    the items of one update over all processes; a process sees its share
    product  the module that a run is for: what `weights.safetensors` holds, normalisation included
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from jepaplan.training.health import Health
from jepaplan.training.schedules import Plateau, warmup_constant_cooldown, warmup_cosine
from jepaplan.types import InputError


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One objective and where its batches come from.

    `objective.forward(batch)` returns a scalar loss and a dictionary of scalar metrics; its parameters with
    `requires_grad` are trained. With several processes it obeys the rule in `distributed.py`.
    """

    name: str
    objective: nn.Module
    sample: Callable[[torch.Generator, int], Any]
    """Draws the global batch; the generator (on the CPU) and the number of items alone decide what it is."""
    load: Callable[[Any], Any] | None = None
    """Turns a process's share of the sample into what the objective takes; it reads only its own pixels."""
    product: nn.Module | None = None
    """Default: the objective."""
    evaluate: Callable[[], Mapping[str, float]] | None = None
    """Held-out metrics; called without gradients, in evaluation mode, by every process on the whole set."""
    health: Callable[[], Health] | None = None
    """Examines the latent; called like `evaluate`."""
    after_update: Callable[[int], None] | None = None
    """Called with the number of updates done; for moving averages and the like."""
    before_update: Callable[[int], None] | None = None
    """Called with the number of updates done before a batch is drawn, after a resume too: a stage whose clips
    grow or whose data goes in epochs learns from it where it is, and has nothing to save."""
    shard_units: Callable[[], Sequence[nn.Module]] | None = None
    """With `parallel="sharded"`: modules that are gathered one at a time, inner ones before those that hold
    them (blocks, then the encoder). What is called on its own, outside `objective.forward`, must be one."""
    frames_per_item: int = 1
    """Frames that one item of the batch holds; only counted."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise InputError(
                "a stage's name becomes a folder, so it is made of letters, digits, '-', '_' and '.'; got "
                f"{self.name!r}"
            )

    @property
    def exported(self) -> nn.Module:
        """The module whose tensors leave the run as weights."""
        return self.objective if self.product is None else self.product


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How a stage is trained. Numbers are per update, over all processes together."""

    updates: int
    batch: int = 64  # items per update, shared evenly by the processes
    learning_rate: float = 7e-4  # at the end of the warm-up
    optimiser: Literal["adam", "adamw"] = "adam"  # adamw decouples the weight decay from the gradient
    weight_decay: float = 0.0
    weight_decay_on: Literal["all", "matrices"] = "all"  # matrices: biases, gains, scalars do not decay
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["cosine", "constant_cooldown"] = "cosine"  # after the warm-up
    initial_fraction: float = 0.0  # of the learning rate, where the warm-up starts; constant_cooldown only
    warmup_fraction: float = 0.1  # of all updates
    cooldown_fraction: float = 0.0  # of all updates, at the end; constant_cooldown only
    final_fraction: float = 0.001  # of the learning rate, reached at the last update
    accumulate: int = 1  # parts of a process's share that go through the objective one after the other
    parallel: Literal["replicated", "sharded"] = "replicated"  # sharded: processes share parameters (FSDP2)
    gradient_clip: float | None = None  # largest norm of the whole gradient; none: only measured
    precision: Literal["fp32", "bf16"] = "fp32"  # of activations; parameters and optimiser stay fp32
    compiled: bool = False  # the objective by torch.compile: needs a C++ compiler, or a GPU with Triton
    seed: int = 0
    log_every: int = 10  # updates between lines of metrics.jsonl
    evaluate_every: int = 1000  # updates; the last update is always evaluated
    health_every: int = 1000  # updates
    save_every: int = 1000  # updates between checkpoints
    save_seconds: float | None = 300.0  # seconds between checkpoints, whichever comes first
    best_metric: str | None = (
        None  # a name that `evaluate` returns; its best moment is kept as best.safetensors
    )
    best_mode: Literal["min", "max"] = "min"
    keep_best: bool = False  # end the stage with the best weights instead of the last

    def __post_init__(self) -> None:
        for name in (
            "updates",
            "batch",
            "accumulate",
            "log_every",
            "evaluate_every",
            "health_every",
            "save_every",
        ):
            if getattr(self, name) < 1:
                raise InputError(
                    f"{name} counts updates or items, so it is at least 1; got {getattr(self, name)}"
                )
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate must be positive; got {self.learning_rate}")
        if self.weight_decay < 0:
            raise InputError(f"weight_decay must not be negative; got {self.weight_decay}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas are decays in [0, 1); got {self.betas}")
        self._check_choices()
        plateau = self.plateau  # refuses fractions that are none
        if self.schedule == "cosine" and (plateau.cooldown_fraction or plateau.initial_fraction):
            raise InputError(
                "cooldown_fraction and initial_fraction belong to schedule='constant_cooldown'; the cosine "
                f"begins at zero and falls all the time. Got {self.cooldown_fraction:g} and "
                f"{self.initial_fraction:g}"
            )
        if self.batch % self.accumulate:
            raise InputError(
                f"a batch of {self.batch} items cannot be cut into accumulate={self.accumulate} equal parts; "
                f"use a batch of {max(self.batch - self.batch % self.accumulate, self.accumulate)} items"
            )
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise InputError(
                f"gradient_clip is a norm, so positive, or None to only measure; got {self.gradient_clip}"
            )
        if self.save_seconds is not None and not self.save_seconds > 0:
            raise InputError(f"save_seconds must be positive, or None for never; got {self.save_seconds}")
        if self.compiled and self.parallel == "sharded":
            raise InputError(
                "compiled=True is for replicated parameters; got parallel='sharded'. Leave one of them out"
            )
        if self.keep_best and self.best_metric is None:
            raise InputError("keep_best needs to know what is best: set best_metric to a held-out metric")

    def _check_choices(self) -> None:
        choices = {
            "optimiser": ("adam", "adamw"),
            "schedule": ("cosine", "constant_cooldown"),
            "weight_decay_on": ("all", "matrices"),
            "precision": ("fp32", "bf16"),
            "parallel": ("replicated", "sharded"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name} is one of {', '.join(known)}; got {getattr(self, name)!r}")

    @property
    def plateau(self) -> Plateau:
        """The fractions of the schedule."""
        return Plateau(
            warmup_fraction=self.warmup_fraction,
            cooldown_fraction=self.cooldown_fraction,
            initial_fraction=self.initial_fraction,
            final_fraction=self.final_fraction,
        )

    def learning_rate_at(self, update: int) -> float:
        """The learning rate of update number `update`, counted from 0."""
        if self.schedule == "constant_cooldown":
            return warmup_constant_cooldown(update, self.updates, self.learning_rate, self.plateau)
        return warmup_cosine(
            update, self.updates, self.learning_rate, self.warmup_fraction, self.final_fraction
        )


PACE = frozenset({"log_every", "save_every", "save_seconds", "health_every", "accumulate"})
"""Fields that may differ on resume: what is written and when, and how an update's items are divided, which
the number of processes changes as well. None of them changes what is trained beyond rounding."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a stage is; what a progress bar shows."""

    stage: str
    update: int  # updates done
    updates: int  # of so many
    loss: float
    seconds: float  # spent on this stage, earlier sessions included
    remaining_seconds: float
    warnings: tuple[str, ...] = ()  # what the last look at the latent's health found


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What a finished stage leaves behind."""

    stage: str
    updates: int
    resumed_from: int  # updates that were done before this call
    seconds: float
    weights: Path
    metrics: dict[str, float] = field(default_factory=dict)  # of the last update and the last evaluation
    best: float | None = None
    best_update: int | None = None
    warnings: tuple[str, ...] = ()


class Interrupted(RuntimeError):
    """Training was asked to stop and did, after a checkpoint; the message says how to go on."""


class Diverged(RuntimeError):
    """The loss or its gradient is no longer a number; the message says what to try."""
