"""The state of a stage's training: parameters, buffers, the optimiser's moments and the counters.

It is one checked safetensors file per checkpoint, `state/<stage>/<update>.safetensors`, and its JSON card is
the index:

    model/<name>                  every tensor of the objective, trained or not
    optimiser/<name>/<moment>     the optimiser's tensors of a trained parameter
    card                          counters and the `FitConfig` it was trained with

Two generations are kept. A file is renamed into place only once it is whole, so a kill at any moment leaves
at least one.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jepaplan.training.checkpoint import Weights, check_shapes, read_weights, save_weights
from jepaplan.training.runs import differences, to_json
from jepaplan.training.stage import PACE, FitConfig, Stage
from jepaplan.types import InputError

_GENERATIONS = 2


@dataclass(frozen=True)
class Counters:
    """How far training is, and what it last saw."""

    update: int = 0  # updates done
    seconds: float = 0.0  # spent on them
    finished: bool = False
    best: float | None = None
    best_update: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)  # last logged
    warnings: tuple[str, ...] = ()  # of the last look at the latent's health

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Counters":
        """Read back what `to_json` wrote; numbers that JSON lacks are left out of the metrics."""
        metrics = {name: value for name, value in values["metrics"].items() if value is not None}
        changed: dict[str, Any] = {"metrics": metrics, "warnings": tuple(values["warnings"])}
        return cls(**{**values, **changed})


class TrainingState:
    """What changes from update to update, and the files that remember it."""

    def __init__(self, stage: Stage, config: FitConfig, folder: Path) -> None:
        self.objective, self.config, self.folder = stage.objective, config, folder
        trained = {name: value for name, value in stage.objective.named_parameters() if value.requires_grad}
        if not trained:
            raise InputError(
                f"the objective of stage {stage.name!r} has no parameter with requires_grad, so there is "
                "nothing to train; "
                "make sure that the modules it uses are its attributes and not all are frozen"
            )
        self.names, self.parameters = list(trained), list(trained.values())
        kind = torch.optim.AdamW if config.optimiser == "adamw" else torch.optim.Adam
        self.optimiser = kind(
            self.parameters,
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            foreach=True,
        )

    def step(self, learning_rate: float) -> Tensor:
        """Let the optimiser use the gradients; returns their norm before clipping."""
        gradients = [value.grad for value in self.parameters if value.grad is not None]
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        if self.config.gradient_clip is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.config.gradient_clip, norm, foreach=True)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        self.optimiser.step()
        return norm

    def _moments(self) -> dict[str, Tensor]:
        state = self.optimiser.state_dict()["state"]
        return {
            f"optimiser/{self.names[index]}/{moment}": value
            for index, moments in state.items()
            for moment, value in moments.items()
        }

    def save(self, counters: Counters) -> None:
        """Write a checkpoint; then drop all but it and the one before. A finished stage needs no moments."""
        tensors = {f"model/{name}": value for name, value in self.objective.state_dict().items()}
        if not counters.finished:
            tensors |= self._moments()
        written = self.folder / f"{counters.update:09d}.safetensors"
        save_weights(written, tensors, {"counters": to_json(counters), "config": to_json(self.config)})
        before = [path for path in self._files() if path < written]
        keep = {written, *before[: _GENERATIONS - 1]}
        for path in self._files():
            if path not in keep:
                path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        """Checkpoints, newest first."""
        return sorted(self.folder.glob("[0-9]*.safetensors"), reverse=True)

    def restore(self) -> tuple[Counters, list[str]] | None:
        """Load the newest readable checkpoint, and say which newer ones were refused; None without any."""
        refused: list[str] = []
        for path in self._files():
            try:
                weights = read_weights(path)
            except InputError as error:
                refused.append(str(error))
                continue
            self._check_config(path, weights.card["config"])
            counters = Counters.from_json(weights.card["counters"])
            self._load(path, weights, counters)
            return counters, refused
        if refused:
            raise InputError(
                f"no checkpoint in {self.folder} can be read, so training cannot continue:\n  "
                + "\n  ".join(refused)
                + "\nTo begin again, train into another folder."
            )
        return None

    def _check_config(self, path: Path, stored: dict[str, Any]) -> None:
        now = to_json(self.config)
        changed = differences(
            {name: value for name, value in stored.items() if name not in PACE},
            {name: value for name, value in now.items() if name not in PACE},
        )
        if changed:
            raise InputError(
                f"{path} was trained with other settings (then -> now):\n  " + "\n  ".join(changed) + "\n"
                "Continuing would train neither. Use the settings from then, or another folder."
            )

    def _load(self, path: Path, weights: Weights, counters: Counters) -> None:
        """Everything is checked before anything is copied."""
        model = _under("model/", weights.tensors)
        moments = _under("optimiser/", weights.tensors)
        check_shapes(path, model, {name: value.shape for name, value in self.objective.state_dict().items()})
        by_name: dict[str, dict[str, Tensor]] = {}
        for name, value in moments.items():
            parameter, _, moment = name.rpartition("/")
            by_name.setdefault(parameter, {})[moment] = value
        strangers = sorted(set(by_name) - set(self.names))
        if strangers:
            raise InputError(
                f"{path} holds moments of parameters that this stage does not train: {strangers[:5]}. Freeze "
                "and train "
                "the same modules as when the stage began, or use another folder."
            )
        self.objective.load_state_dict(model)
        if not counters.finished:
            state = {self.names.index(name): values for name, values in by_name.items()}
            groups = self.optimiser.state_dict()["param_groups"]
            self.optimiser.load_state_dict({"state": state, "param_groups": groups})


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
