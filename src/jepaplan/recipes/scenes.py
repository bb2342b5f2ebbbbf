"""Imagine the scenes of many recordings, several at a time."""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from jepaplan.interfaces import WorldModel
from jepaplan.objectives.imagined_graph import (
    ImaginedScenes,
    forget_ways_to_traps,
    shortest_paths,
    step_costs,
)
from jepaplan.objectives.imagined_states import ImaginationConfig, InverseModel, imagine_states


def imagine_scenes(
    models: tuple[WorldModel, InverseModel],
    recordings: Sequence[tuple[Float[Tensor, "frames D"], torch.Generator]],
    config: ImaginationConfig,
    on_done: Callable[[int], None],
) -> ImaginedScenes:
    """States and steps to go in the scene of each recording; every scene has its own generator.

    All scenes keep as many states as the smallest has, so that they make one tensor.
    """

    def imagine(recording: tuple[Tensor, torch.Generator]) -> tuple[Tensor, Tensor]:
        latents, generator = recording
        states = imagine_states(*models, latents, config, generator)
        steps = shortest_paths(step_costs(*models, states, config, generator))
        return states, steps if config.reversible else forget_ways_to_traps(steps)

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
