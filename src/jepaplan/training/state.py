"""The state of a stage's training: parameters, buffers, the optimiser's moments and the counters.

It is one checked safetensors file per checkpoint, `state/<stage>/<update>.safetensors` (a folder of them,
`<update>.sharded`, where the processes share the parameters), and its JSON card is the index:

    model/<name>                  every tensor of the objective, trained or not
    optimiser/<name>/<moment>     the optimiser's tensors of a trained parameter
    card                          counters and the `FitConfig` it was trained with

Two generations are kept. A checkpoint is renamed into place only once it is whole, so a kill at any moment
leaves at least one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jepaplan.training.checkpoint import check_shapes, remove
from jepaplan.training.distributed import processes
from jepaplan.training.layout import Replicated, Stored, open_layout
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
        if not any(value.requires_grad for value in stage.objective.parameters()):
            raise InputError(
                f"the objective of stage {stage.name!r} has no parameter with requires_grad, so there is "
                "nothing to train; "
                "make sure that the modules it uses are its attributes and not all are frozen"
            )
        self.layout = open_layout(stage, config)  # before the optimiser: sharding replaces the parameters
        groups = _groups(stage.objective, config)
        self.names = [name for group in groups for name in group.names]
        self.parameters = [value for group in groups for value in group.parameters]
        kind = torch.optim.AdamW if config.optimiser == "adamw" else torch.optim.Adam
        self.optimiser = kind(
            [{"params": group.parameters, "weight_decay": group.weight_decay} for group in groups],
            lr=config.learning_rate,
            betas=config.betas,
            foreach=True,
        )

    def step(self, learning_rate: float) -> Tensor:
        """Let the optimiser use the gradients; returns their norm before clipping."""
        norm = self.layout.clip(self.parameters, self.config.gradient_clip)
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
        written = self.folder / f"{counters.update:09d}{self.layout.suffix}"
        card = {"counters": to_json(counters), "config": to_json(self.config)}
        self.layout.write(written, tensors, card)
        if not processes().writes:
            return
        before = [path for path in self._checkpoints() if path.stem < written.stem]
        keep = {written, *before[: _GENERATIONS - 1]}
        for path in self._checkpoints():
            if path not in keep:
                remove(path)

    def _checkpoints(self) -> list[Path]:
        """Files or folders, newest first."""
        return sorted(self.folder.glob("[0-9]*.s*"), reverse=True)

    def restore(self) -> tuple[Counters, list[str]] | None:
        """Load the newest readable checkpoint, and say which newer ones were refused; None without any."""
        refused: list[str] = []
        for path in self._checkpoints():
            self._check_kind(path)
            try:
                stored = self.layout.read(path)
            except InputError as error:
                refused.append(str(error))
                continue
            self._check_config(path, stored.card["config"])
            counters = Counters.from_json(stored.card["counters"])
            self._load(path, stored, counters)
            return counters, refused
        if refused:
            raise InputError(
                f"no checkpoint in {self.folder} can be read, so training cannot continue:\n  "
                + "\n  ".join(refused)
                + "\nTo begin again, train into another folder."
            )
        return None

    def _check_kind(self, path: Path) -> None:
        if path.suffix != self.layout.suffix:
            was = "replicated" if path.suffix == Replicated.suffix else "sharded"
            raise InputError(
                f"{path} was written with parallel={was!r}; now it is {self.config.parallel!r}. Continue as "
                "it was begun, or train into another folder."
            )

    def _check_config(self, path: Path, stored: dict[str, Any]) -> None:
        now = to_json(self.config)
        # A checkpoint of an earlier version lacks later fields; it was trained with what are their defaults.
        stored = {**to_json(FitConfig(updates=1)), **stored}
        changed = differences(
            {name: value for name, value in stored.items() if name not in PACE},
            {name: value for name, value in now.items() if name not in PACE},
        )
        if changed:
            raise InputError(
                f"{path} was trained with other settings (then -> now):\n  " + "\n  ".join(changed) + "\n"
                "Continuing would train neither. Use the settings from then, or another folder."
            )

    def _load(self, path: Path, stored: Stored, counters: Counters) -> None:
        """Everything is checked before anything is copied."""
        model = {f"model/{name}": value for name, value in self.objective.state_dict().items()}
        moments: dict[str, Tensor] = {}
        trained = dict(zip(self.names, self.parameters, strict=True))
        strangers: set[str] = set()
        for name, value in _under("optimiser/", stored.outline).items():
            parameter = name.rpartition("/")[0]
            if parameter not in trained:
                strangers.add(parameter)
            else:  # a moment lies like its parameter; a number, such as Adam's count of steps, is whole
                like = trained[parameter].detach() if value.ndim else value.new_zeros((), device="cpu")
                moments[f"optimiser/{name}"] = like
        shapes = {name: value.shape for name, value in _under("model/", model).items()}
        check_shapes(path, _under("model/", stored.outline), shapes)
        if strangers:
            raise InputError(
                f"{path} holds moments of parameters that this stage does not train: {sorted(strangers)[:5]}"
                ". Freeze and train the same modules as when the stage began, or use another folder."
            )
        tensors = stored.tensors({**model, **({} if counters.finished else moments)})
        self.objective.load_state_dict(_under("model/", tensors))
        if not counters.finished:
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in _under("optimiser/", tensors).items():
                parameter, _, moment = name.rpartition("/")
                state.setdefault(self.names.index(parameter), {})[moment] = value
            groups = self.optimiser.state_dict()["param_groups"]
            self.optimiser.load_state_dict({"state": state, "param_groups": groups})


@dataclass(frozen=True)
class _Group:
    """Parameters that the optimiser treats alike."""

    names: list[str]
    parameters: list[nn.Parameter]
    weight_decay: float


def _groups(objective: nn.Module, config: FitConfig) -> list[_Group]:
    """One group, or one for matrices and one for the rest.

    A sharded objective keeps its scalars uncut, and the optimiser does not take both kinds in one group.
    """
    members: dict[tuple[bool, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, value in objective.named_parameters():
        if value.requires_grad:
            decays = config.weight_decay_on == "all" or value.ndim >= 2
            apart = config.parallel == "sharded" and value.ndim == 0
            members.setdefault((decays, apart), []).append((name, value))
    return [
        _Group([name for name, _ in pairs], [value for _, value in pairs], config.weight_decay * decays)
        for (decays, _), pairs in members.items()
    ]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
