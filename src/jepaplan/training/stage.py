"""What is trained and how: `Stage` says what, `FitConfig` how, `Progress` and `FitResult` what came of it.

A stage is one objective trained from start to end. A recipe that trains an encoder first and a predictor on
top of it is two stages of one run.

    batch    the items of one update over all processes; a process sees its share
    product  the module that a run is for: what `weights.safetensors` holds, normalisation included
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from jepaplan.training.health import Health
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
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_fraction: float = 0.1  # of all updates
    final_fraction: float = 0.001  # of the learning rate, reached at the last update
    gradient_clip: float | None = None  # largest norm of the whole gradient; none: only measured
    precision: Literal["fp32", "bf16"] = "fp32"  # of activations; parameters and optimiser stay fp32
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
        for name in ("updates", "batch", "log_every", "evaluate_every", "health_every", "save_every"):
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
        for name in ("warmup_fraction", "final_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is a fraction between 0 and 1; got {getattr(self, name)}")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise InputError(
                f"gradient_clip is a norm, so positive, or None to only measure; got {self.gradient_clip}"
            )
        if self.save_seconds is not None and not self.save_seconds > 0:
            raise InputError(f"save_seconds must be positive, or None for never; got {self.save_seconds}")
        if self.keep_best and self.best_metric is None:
            raise InputError("keep_best needs to know what is best: set best_metric to a held-out metric")


PACE = frozenset({"log_every", "save_every", "save_seconds", "health_every"})
"""Fields that change what is written and when, never what is trained; they may differ on resume."""


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
