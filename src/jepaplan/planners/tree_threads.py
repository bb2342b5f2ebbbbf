"""Trees of different problems know nothing of each other, so threads share them out.

The compiled loops let go of the interpreter's lock. As many threads as torch uses (`torch.set_num_threads`),
each with a run of neighbouring trees: what is found does not depend on their number.
"""

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import torch

_PATHS = 512  # half a millisecond or so; to wake a thread takes a twentieth


def share_trees(work: Callable[[int, int], None], trees: int, paths: int) -> None:
    """`work(first, end)` for runs of trees that are all of them together, with so many `paths` in all."""
    threads = max(1, min(torch.get_num_threads(), trees, paths // _PATHS))
    ends = [trees * (number + 1) // threads for number in range(threads)]
    if threads == 1:
        work(0, trees)
        return
    others = [_pool(os.getpid()).submit(work, *part) for part in itertools.pairwise(ends)]
    try:
        work(0, ends[0])
    finally:
        wait(others)  # whatever happens, nobody writes into a tree any more
    for other in others:
        other.result()


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    # threads do not follow a process into a fork
    return ThreadPoolExecutor(thread_name_prefix=f"trees-{process}")
