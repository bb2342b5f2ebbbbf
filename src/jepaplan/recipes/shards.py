"""Evaluate in batches of a few instances, by one process or several: outcomes do not depend on how many.

Instances are dealt out into batches of `BATCH` however many processes there are, and each process computes
with one thread: the same sums in the same order. Every batch knows all instances and draws all random
numbers, so each problem meets those that it would meet in one large batch (`EpisodeOptions.share`). Matrix
products of another batch size may round differently, and an episode can amplify that: one large batch may end
otherwise in a few instances.
"""

import math
import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch

from jepaplan.control.devices import home_of
from jepaplan.envs.worlds import find_world
from jepaplan.evaluation.episodes import Outcomes, Progress, merged
from jepaplan.recipes.experiment import Experiment
from jepaplan.recipes.methods import EvaluationPlan, evaluate_method, methods_of
from jepaplan.recipes.run import LoadedRun, load_run
from jepaplan.types import InputError

BATCH = 10  # instances


@dataclass(frozen=True, kw_only=True)
class Share:
    """One batch of one method: all that a process needs to know, small enough to send."""

    run: Path
    experiment: Experiment  # the run's own, or with another planner or cost
    plan: EvaluationPlan
    references: bool
    method: int  # which of `methods_of`
    share: tuple[int, int]
    device: str  # where the run's models compute


def evaluate_in_batches(
    run: LoadedRun,
    plan: EvaluationPlan,
    processes: int,
    references: bool,
    on_progress: Callable[[str, Progress], None] | None = None,
) -> dict[str, Outcomes]:
    """Outcomes by method; with one process in this one, else in `processes` others."""
    world = find_world(plan.instances.world)
    names = [method.name for method in methods_of(run, world, references, plan.milliseconds)]
    # a deadline is for one search: nobody shares it
    batches = math.ceil(len(plan.instances) / (BATCH if plan.milliseconds is None else 1))
    shares = [
        Share(
            run=run.path.absolute(),
            experiment=run.experiment,
            plan=plan,
            references=references,
            method=method,
            share=(number, batches),
            device=str(home_of(run.system)),
        )
        for method in range(len(names))
        for number in range(batches)
    ]
    found: dict[str, dict[int, Outcomes]] = {name: {} for name in names}
    done = _here(run, shares) if processes == 1 else _elsewhere(shares, min(processes, len(shares)))
    for share, outcomes in done:
        name = names[share.method]
        found[name][share.share[0]] = outcomes
        if on_progress is not None:
            on_progress(name, _progress(found[name], batches, world.episode_steps))
    return {name: merged([found[name][number] for number in range(batches)]) for name in names}


def _here(run: LoadedRun, shares: Sequence[Share]) -> Iterator[tuple[Share, Outcomes]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for share in shares:
            yield share, _evaluate(run, share)
    finally:
        torch.set_num_threads(threads)


def _elsewhere(shares: Sequence[Share], processes: int) -> Iterator[tuple[Share, Outcomes]]:
    # Spawned, not forked: a forked process can hang in libraries that have started threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_one_thread) as pool:
        tasks = {pool.submit(_load_and_evaluate, share): share for share in shares}
        try:
            for task in as_completed(tasks):
                # Made by our own process a moment ago: this is no file from elsewhere.
                yield tasks[task], pickle.loads(task.result())
        except BrokenProcessPool as reason:
            raise InputError(
                f"a process ended before its batch was done, perhaps for want of memory; write fewer than "
                f"--processes {processes}, or a smaller search"
            ) from reason
        finally:
            pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def _load_and_evaluate(share: Share) -> bytes:
    """In another process; plain bytes go back, as shared memory may be scarce."""
    run = load_run(share.run)
    run.system.to(share.device)
    return pickle.dumps(_evaluate(run, share))


def _evaluate(loaded: LoadedRun, share: Share) -> Outcomes:
    run = LoadedRun(path=loaded.path, experiment=share.experiment, system=loaded.system, card=loaded.card)
    world = find_world(share.plan.instances.world)
    method = methods_of(run, world, share.references, share.plan.milliseconds)[share.method]
    return evaluate_method(world, method, share.plan, share.share)


def _progress(done: Mapping[int, Outcomes], batches: int, steps: int) -> Progress:
    """How far a method is; the bar moves by whole batches."""
    return Progress(
        step=steps * len(done) // batches,
        steps=steps,
        solved=sum(int(outcome.success[number::batches].sum()) for number, outcome in done.items()),
        running=batches - len(done),
        seconds=sum(outcome.planning_seconds for outcome in done.values()),
    )
