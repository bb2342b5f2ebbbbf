"""A stage of encoder and predictor, and a value head that learns beside them (`objectives/co_trained.py`).

`with_co_trained_head` wraps the stage: what it draws, loads and minimises stays, and the head's is added.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from jepaplan.data.windows import Windows, rows
from jepaplan.evaluation.statistics import spearman
from jepaplan.models.value_heads import ValueEnsemble
from jepaplan.objectives.co_trained import CoTrainedObjective, EncodesOnce, ValueWindows
from jepaplan.objectives.scene import CompanionSegments
from jepaplan.objectives.segments import Segments
from jepaplan.objectives.td import ReturnObjective, two_of
from jepaplan.recipes.experiment import JointStage, PredictionStage
from jepaplan.recipes.frame_stages import examined, held_out_windows
from jepaplan.recipes.materials import Materials
from jepaplan.recipes.value_batches import Drawn, PairBatches, Signals, draw_goals
from jepaplan.recipes.value_learning import CoTrainedHead
from jepaplan.recipes.value_stages import HELD_OUT, ensemble_of, head_objective, recording_of
from jepaplan.training.distributed import map_tensors
from jepaplan.training.stage import Stage


def with_co_trained_head(materials: Materials, config: PredictionStage | JointStage, stage: Stage) -> Stage:
    """`stage` with the head that `config` asks for, or as it is."""
    head = config.co_trained
    if head is None:
        return stage
    ensemble = ensemble_of(head, materials.system).requires_grad_(True)
    learner = head_objective(head, ensemble, materials)
    assert not isinstance(learner, ReturnObjective)  # a `CoTrainedHead` has refused what needs one
    objective = CoTrainedObjective(
        cast(EncodesOnce, stage.objective), learner, weight=head.weight, shapes_encoder=head.shapes_encoder
    )
    signals = Signals.recorded(materials.episodes).only(head.reward, materials.episodes)
    batches = _ValueWindowBatches(materials, Windows(materials.episodes, config.steps), stage, head, signals)
    numbers = materials.held_out(batches.windows, held_out_windows(config))
    generator = materials.seeds.torch(head.name, "held out")
    held_out = examined(numbers) | batches.asked_of(numbers, generator)
    rank = _rank_correlation(materials, head, ensemble)

    def evaluate() -> dict[str, float]:
        loss, metrics = objective(map_tensors(materials.place, batches.load(held_out)))
        found = {f"held_out/{name}": float(part) for name, part in {"loss": loss, **metrics}.items()}
        return found | rank()

    def follow(update: int) -> None:
        if stage.after_update is not None:
            stage.after_update(update)
        objective.follow()

    return replace(
        stage,
        objective=objective,
        sample=batches.sample,
        load=batches.load,
        evaluate=evaluate,
        after_update=follow,
        frames_per_item=stage.frames_per_item + head.takes_goals,
    )


@dataclass(frozen=True)
class _ValueWindowBatches:
    """The stage's batches, and what value learning asks of each window."""

    materials: Materials
    windows: Windows
    stage: Stage
    head: CoTrainedHead
    signals: Signals

    def sample(self, generator: torch.Generator, count: int) -> Drawn:
        drawn = self.stage.sample(generator, count)
        return drawn | self.asked_of(drawn["window"], generator)

    def asked_of(self, numbers: Tensor, generator: torch.Generator) -> Drawn:
        """A goal for each window, and the two members that it believes."""
        head, asked = self.head, Drawn()
        if head.takes_goals:
            index = self.windows.index(numbers)
            asked["goal"] = draw_goals(
                (head.goals, head.self_goals), index, self.materials.episodes, generator
            )
        if head.members > 1:
            asked["subset"] = two_of(head.members, len(numbers), generator)
        return asked

    def load(self, drawn: Drawn) -> ValueWindows:
        assert self.stage.load is not None
        windows: Segments | CompanionSegments = self.stage.load(drawn)
        segments = windows.segments if isinstance(windows, CompanionSegments) else windows
        goal, episodes = drawn.get("goal"), self.materials.episodes
        rewards, terminal = self.signals.until(goal, self.windows.index(drawn["window"]))
        felt = None if goal is None else episodes.proprioception
        return ValueWindows(
            windows=windows,
            actions=segments.actions,
            rewards=rewards,
            terminal=terminal,
            goals=None if goal is None else rows(episodes.observations, goal),
            felt_at_goals=None if felt is None or goal is None else rows(felt, goal),
            subset=drawn.get("subset"),
        )


def _rank_correlation(
    materials: Materials, head: CoTrainedHead, ensemble: ValueEnsemble
) -> Callable[[], dict[str, float]]:
    """Of values with the steps between frames that are not trained on, as `value_head_stage` has it."""
    if not head.takes_goals or head.takes_actions:
        return dict
    pairs = PairBatches(recording_of(materials, held_out=True), head.discount, None, actions=False)
    drawn = pairs.sample(materials.seeds.torch(head.name, "held-out pairs"), HELD_OUT)
    episodes, model = materials.episodes, materials.system.world_model

    def encode(frames: Tensor) -> Tensor:
        felt = episodes.proprioception
        body = None if felt is None else materials.place(rows(felt, frames))
        return model.encode(materials.place(rows(episodes.observations, frames)), body).float()

    def rank() -> dict[str, float]:
        values = head.reading(ensemble(encode(drawn["earlier"]), encode(drawn["later"]))).cpu()
        return {"held_out/rank_correlation": spearman(values, (drawn["earlier"] - drawn["later"]).float())}

    return rank
