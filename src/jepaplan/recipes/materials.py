"""What stages share: the system in training, the recording, its latents, and what is held out."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from jepaplan.data.episodes import Episodes
from jepaplan.data.windows import Windows
from jepaplan.recipes.experiment import Experiment
from jepaplan.recipes.system import System
from jepaplan.training.health import Health, assess
from jepaplan.types import SeedTree

HELD_OUT_WINDOWS = 64
_ENCODE_AT_ONCE = 512  # frames; bounds the memory of an encoder's activations


@runtime_checkable
class Report(Protocol):
    """Told how far a preparation is: what, done, of how many."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Note it."""
        ...


def silent(what: str, done: int, total: int) -> None:
    """Report to nobody."""


@dataclass
class Materials:
    """A system in training and what it learns from; latents are encoded once, when first asked for."""

    experiment: Experiment
    system: System
    episodes: Episodes
    report: Report = silent
    _latents: Tensor | None = field(default=None, init=False, repr=False)

    @property
    def seeds(self) -> SeedTree:
        """The experiment's seed, split by name."""
        return SeedTree(self.experiment.seed)

    @property
    def trained_episodes(self) -> int:
        """How many recordings, from the first, are trained on; the rest is held out."""
        images = 2 ** len(set(self.experiment.mirrors))  # of each recording, which are held out together
        recordings = len(self.episodes) // images
        kept = round(recordings * (1 - self.experiment.held_out))
        return images * max(1, min(kept, recordings))

    def latents(self) -> Float[Tensor, "F D"]:
        """Latents of all recorded frames, by the encoder as it is when first called."""
        if self._latents is None:
            frames, felt = self.episodes.observations, self.episodes.proprioception
            whole: Tensor | None = None
            with torch.no_grad():
                for start in range(0, len(frames), _ENCODE_AT_ONCE):
                    self.report("encoding the recording", start, len(frames))
                    some = slice(start, start + _ENCODE_AT_ONCE)
                    body = None if felt is None else self.place(felt[some])
                    # Beside the recording: the loop moves batches, not columns, to the accelerator.
                    chunk = self.system.world_model.encode(self.place(frames[some]), body).cpu()
                    whole = chunk.new_empty(len(frames), *chunk.shape[1:]) if whole is None else whole
                    whole[some] = chunk
            self.report("encoding the recording", len(frames), len(frames))
            self._latents = whole
        assert self._latents is not None
        return self._latents

    def forget_latents(self) -> None:
        """A stage is about to change the encoder."""
        self._latents = None

    def place(self, tensor: Tensor) -> Tensor:
        """`tensor` where the system is."""
        return tensor.to(next(self.system.parameters()).device)

    def train_windows(self, windows: Windows) -> int:
        """Windows are numbered by episode: those below this number are trained on."""
        counts = (self.episodes.lengths - windows.steps + 1).clamp(min=0)
        return max(1, int(counts[: self.trained_episodes].sum()))

    def held_out(self, windows: Windows, count: int = HELD_OUT_WINDOWS) -> Int[Tensor, " count"]:
        """Some windows that are never trained on; where none is held out, some of the trained ones."""
        first = self.train_windows(windows)
        low = first if first < len(windows) else 0
        generator = self.seeds.torch("held out", windows.steps)
        return torch.randint(low, len(windows), (count,), generator=generator)

    def health(self, latents: Float[Tensor, "B frames D"], actions: Float[Tensor, "B T A"]) -> Health:
        """How the latents and the predictor are, of latents with a map what moves; in environment units."""
        model = self.system.world_model
        observed = self.place(latents).float()
        taken = model.action_units.normalise(self.place(actions))
        predicted = model.unroll(observed[:, 0], taken).float()[..., model.moves_from :]
        observed = observed[..., model.moves_from :]
        return assess(observed.flatten(0, 1), predicted, observed)


def only(objective: nn.Module, trained: Iterable[nn.Module]) -> nn.Module:
    """`objective`, of which only the parameters of `trained` learn."""
    for parameter in objective.parameters():
        parameter.requires_grad_(False)
    for module in trained:
        for parameter in module.parameters():
            parameter.requires_grad_(True)
    return objective
