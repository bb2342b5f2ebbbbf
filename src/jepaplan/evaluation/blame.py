"""Why did it fail? Swap one part at a time for the truth and see whether the failure goes away.

The same planner pursues a failed instance again with

    swap                                       if that ...   then to blame is
    true dynamics, geodesic cost               fails too     the search: knowing all did not help
    true dynamics, learned cost on true images succeeds      the model: the learned cost was enough
    learned dynamics, geodesic cost on         succeeds      the value: the learned dynamics were
      decoded positions                                      enough
    either of the last two                     both succeed  either: one truth is enough
    either of the last two                     both fail     model and value

Every swap draws fresh noise, so a verdict on one episode is evidence, not proof; counts over many say more.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from jepaplan.evaluation.episodes import EpisodeOptions, Outcomes, run_episodes, true_states
from jepaplan.evaluation.references import (
    HOPELESS,
    ControllerMaker,
    GeodesicDistance,
    RenderedDistance,
    TrueDynamics,
    encode_states,
)
from jepaplan.evaluation.surveys import placed
from jepaplan.evaluation.tasks import Instances
from jepaplan.interfaces import ActionUnits, Controller, Distance, World, WorldModel
from jepaplan.types import InputError

Verdict = Literal["search", "model", "value", "model and value", "either"]

WORDS: dict[str, str] = {
    "search": "the search: it fails even with true dynamics and the exact distance",
    "model": "the model: with true dynamics the learned cost leads to the goal",
    "value": "the value: with the exact distance the learned dynamics lead to the goal",
    "either": "either: the truth about the dynamics or about the distance is enough",
    "model and value": "model and value: neither alone, replaced by the truth, leads to the goal",
}


@dataclass(frozen=True, kw_only=True)
class LearnedParts:
    """What was learned, taken apart; `probe` decodes positions from the model's latents."""

    world_model: WorldModel
    distance: Distance
    probe: nn.Module
    make_controller: ControllerMaker  # the same planner and cost terms around any model and distance


@dataclass(frozen=True, kw_only=True)
class Blame:
    """The verdict on one failed instance, and what each swap achieved."""

    instance: int
    verdict: Verdict
    all_true: bool  # success with true dynamics and geodesic cost
    true_dynamics: bool  # success with true dynamics and the learned cost
    true_distance: bool  # success with learned dynamics and the geodesic cost

    def words(self) -> str:
        """The verdict as a sentence."""
        return f"Instance {self.instance}: {WORDS[self.verdict]}."


class StateCarrying:
    """A learned world model that carries the true state of its start, so that its latents have geodesics.

    Observes true states, draws and encodes them. The state is no help to the dynamics, which never see it.
    """

    def __init__(self, world: World, world_model: WorldModel) -> None:
        self._world = world
        self._model = world_model
        self._width = world.state_width
        self.action_dim = world_model.action_dim
        self.stride = world_model.stride

    @property
    def action_units(self) -> ActionUnits:
        """Those of the learned model."""
        return self._model.action_units

    @torch.no_grad()
    def encode(
        self,
        observation: Shaped[Tensor, "B *observation"],
        proprioception: Float[Tensor, "B P"] | None = None,
    ) -> Float[Tensor, "B E"]:
        """The learned latent of what is seen in the state, then the state."""
        latent = encode_states(self._world, self._model.encode, observation)
        return torch.cat([latent, observation.to(latent)], dim=-1)

    @torch.no_grad()
    def step(self, latent: Float[Tensor, "B E"], action: Float[Tensor, "B A"]) -> Float[Tensor, "B E"]:
        """The learned step; the state stays."""
        moved = self._model.step(latent[:, : -self._width], action)
        return torch.cat([moved, latent[:, -self._width :]], dim=-1)

    def rollout(
        self, latent: Float[Tensor, "B E"], actions: Float[Tensor, "B S H A"]
    ) -> Float[Tensor, "B S H+1 E"]:
        """The learned rollout; the state stays."""
        paths = self._model.rollout(latent[:, : -self._width], actions)
        carried = latent[:, None, None, -self._width :].expand(*paths.shape[:3], self._width)
        return torch.cat([paths, carried], dim=-1)


class DecodedGeodesic:
    """The geodesic between the positions decoded from latents of `StateCarrying`."""

    def __init__(self, world: World, probe: nn.Module) -> None:
        self._world = world
        self._probe = probe
        self._geodesic = GeodesicDistance(world, HOPELESS)

    @torch.no_grad()
    def __call__(
        self, source: Float[Tensor, "*#batch E"], goal: Float[Tensor, "*#batch E"]
    ) -> Float[Tensor, "*batch"]:
        """Decode, place in the layout that was carried along, measure."""
        return self._geodesic(self._states(source), self._states(goal))

    def _states(self, latents: Float[Tensor, "*batch E"]) -> Float[Tensor, "*batch W"]:
        carried = latents[..., -self._world.state_width :]
        positions = self._probe(latents[..., : -self._world.state_width]).to(carried)
        flat = placed(self._world, carried.reshape(-1, carried.shape[-1]), positions.reshape(-1, 2))
        return flat.view(carried.shape)


def blame_failures(
    world: World,
    outcomes: Outcomes,
    parts: LearnedParts,
    generator: torch.Generator,
    options: EpisodeOptions,
    limit: int = 10,
) -> tuple[Blame, ...]:
    """Verdicts on the first `limit` failed instances of `outcomes`."""
    if limit < 1:
        raise InputError(f"limit is how many failed episodes to examine, at least 1; got {limit}")
    failed = (~outcomes.success).nonzero()[:limit, 0]
    if len(failed) == 0:
        return ()
    instances = outcomes.instances.select(failed)
    truth = TrueDynamics(world, parts.world_model.action_units)
    learned_cost = RenderedDistance(world, parts.world_model.encode, parts.distance)
    carrying, decoded = StateCarrying(world, parts.world_model), DecodedGeodesic(world, parts.probe)
    controllers = (
        parts.make_controller(truth, GeodesicDistance(world, HOPELESS)),
        parts.make_controller(truth, learned_cost),
        parts.make_controller(carrying, decoded),
    )
    silent = replace(options, observe=true_states, keep=(), on_progress=None)
    results = [_successes(world, instances, each, generator, silent) for each in controllers]
    return tuple(
        Blame(
            instance=number,
            verdict=verdict(bool(all_true), bool(dynamics), bool(distance)),
            all_true=bool(all_true),
            true_dynamics=bool(dynamics),
            true_distance=bool(distance),
        )
        for number, all_true, dynamics, distance in zip(failed.tolist(), *results, strict=True)
    )


def verdict(all_true: bool, true_dynamics: bool, true_distance: bool) -> Verdict:
    """Who is to blame, from what the three swaps achieved."""
    if not all_true:
        return "search"
    if true_dynamics and true_distance:
        return "either"
    if true_dynamics:
        return "model"
    return "value" if true_distance else "model and value"


def summary(blames: Sequence[Blame]) -> str:
    """How often each verdict fell, as a sentence."""
    if not blames:
        return "No episode failed, so there is nobody to blame."
    counts = Counter(blame.verdict for blame in blames)
    parts = [f"{name} in {count}" for name, count in counts.most_common()]
    return f"To blame, in {len(blames)} failed episodes examined: {', '.join(parts)}."


def _successes(
    world: World,
    instances: Instances,
    controller: Controller,
    generator: torch.Generator,
    options: EpisodeOptions,
) -> Bool[Tensor, " B"]:
    return run_episodes(world, instances, controller, generator, options).success
