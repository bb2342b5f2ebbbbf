"""Imagine the scenes of many recordings, several at a time."""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from jepaplan.interfaces import WorldModel
from jepaplan.objectives.imagined_graph import (
    ImaginedScenes,
    forget_ways_to_traps,
    shortest_paths,
    step_costs,
    with_recorded_ways,
)
from jepaplan.objectives.imagined_states import ImaginationConfig, InverseModel, imagine_states


@dataclass(frozen=True)
class RecordedScene:
    """One recording, and what its scene is imagined with."""

    latents: Float[Tensor, "frames D"]
    steps: Float[Tensor, " frames-1"]  # recorded actions as shares of a largest step
    generator: torch.Generator


def imagine_scenes(
    models: tuple[WorldModel, InverseModel],
    recordings: Sequence[RecordedScene],
    config: ImaginationConfig,
    on_done: Callable[[int], None],
) -> ImaginedScenes:
    """States and steps to go in the scene of each recording.

    All scenes keep as many states as the smallest has, so that they make one tensor.
    """

    def imagine(scene: RecordedScene) -> tuple[Tensor, Tensor]:
        states = imagine_states(*models, scene.latents, config, scene.generator)
        costs = step_costs(*models, states, config, scene.generator)
        if config.recorded_ways:
            costs = with_recorded_ways(costs, scene.steps)
        steps = shortest_paths(costs)
        forgets = config.traps and not config.reversible
        return states, forget_ways_to_traps(steps) if forgets else steps

    found: list[tuple[Tensor, Tensor]] = []
    with _one_thread_each() as pool:
        for scene in pool.map(imagine, recordings):
            found.append(scene)
            on_done(len(found))
    fewest = min(len(states) for states, _ in found)
    return ImaginedScenes(
        states=torch.stack([states[:fewest] for states, _ in found]),
        steps=torch.stack([steps[:fewest, :fewest] for _, steps in found]),
    )


@contextmanager
def _one_thread_each() -> Generator[ThreadPoolExecutor, None, None]:
    """A pool with a worker per thread, each operation on one: those of a scene are too small to share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # The number of threads belongs to the thread that sets it: without the initializer each worker would
        # share its operations after all, and sums would depend on how busy the machine is.
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)
