"""The training loop: draw a batch, take a step, and be ready to be killed.

Kingma and Ba, "Adam: A Method for Stochastic Optimization", arXiv 1412.6980; Loshchilov and Hutter,
"Decoupled Weight Decay Regularization", arXiv 1711.05101, for `optimiser="adamw"`.

    paper     here
    alpha     learning_rate, shaped by one of `schedules`
    t         update           counts updates done, from 1; the batch of an update is named by t - 1

An update's batch is drawn as one, each process takes its share, and `accumulate` cuts the share into equal
parts that go through the objective one after the other; their losses are averaged. So neither the number of
processes nor that of parts changes what is trained, as long as the loss is a mean over items. A loss that
looks at all items together (it calls `distributed.gather`) is not, and is refused in parts.

The batch of an update depends on the seed, the stage's name and the number of the update only. So a
checkpoint holds parameters, buffers, the optimiser's moments and one counter, no generator, and training from
it repeats the same numbers: to the bit on a CPU with the same number of threads.
"""

import math
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jepaplan.training import distributed
from jepaplan.training.health import Health
from jepaplan.training.runs import RunDirectory, to_json
from jepaplan.training.signals import requests_to_stop
from jepaplan.training.stage import Diverged, FitConfig, FitResult, Interrupted, Progress, Stage
from jepaplan.training.state import Counters, TrainingState
from jepaplan.types import InputError, SeedTree

_AGREE_EVERY = (
    10  # updates between asking all processes whether one must stop or save; asking costs a round trip
)


def fit(
    stage: Stage,
    run: RunDirectory,
    config: FitConfig,
    on_progress: Callable[[Progress], None] | None = None,
) -> FitResult:
    """Train `stage` until `config.updates`, from the run's newest checkpoint if it has one.

    A stage that is already finished is not trained again: its objective receives the final tensors. Ctrl-C
    and SIGTERM end in a checkpoint and `Interrupted`; a second Ctrl-C does not wait. Every process of
    several calls `fit`; the first reports progress.
    """
    run.require_open()
    trainer = _Trainer(stage, run, config, on_progress)
    trainer.restore()
    if trainer.counters.finished:
        trainer.note_in_card()
        return trainer.result()
    devices = [trainer.device] if trainer.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), requests_to_stop() as asked:
        while trainer.counters.update < config.updates:
            trainer.advance()
            if trainer.must_stop(bool(asked)):
                trainer.save()
                raise Interrupted(
                    f"stopped at update {trainer.counters.update} of {config.updates} of stage "
                    f"{stage.name!r}; all of it is "
                    f"saved in {run.path}. Run the same command again to continue from there."
                )
    trainer.finish()
    return trainer.result()


@contextmanager
def _examining(objective: nn.Module) -> Generator[None, None, None]:
    """Evaluation mode without gradients, alone; afterwards every module is in the mode it was in."""
    modes = {module: module.training for module in objective.modules()}
    objective.eval()
    try:
        with torch.no_grad(), distributed.alone():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


class _Trainer:
    """One stage on its way: the moving parts of `fit`."""

    def __init__(
        self,
        stage: Stage,
        run: RunDirectory,
        config: FitConfig,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.stage, self.run, self.config, self.on_progress = stage, run, config, on_progress
        self.objective = torch.compile(stage.objective) if config.compiled else stage.objective
        self.processes = distributed.processes()
        self.seeds = SeedTree(config.seed)
        self.state = TrainingState(stage, config, run.state(stage.name))
        self.device = self.state.parameters[0].device
        self.counters = Counters()
        self.finite = torch.ones((), dtype=torch.bool, device=self.device)
        self.resumed_from = 0
        self.started = self.saved_at = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time spent on the stage, earlier sessions included."""
        return self.counters.seconds + time.monotonic() - self.started

    def restore(self) -> None:
        """Continue from the newest checkpoint, if there is one; otherwise make all processes equal."""
        restored = self.state.restore()
        distributed.barrier()
        if restored is not None:
            self.counters, refused = restored
            for message in refused:
                warnings.warn(f"continuing from an older checkpoint. {message}", stacklevel=3)
        self.state.layout.start_equal(self.stage.objective)
        self.resumed_from = self.counters.update
        if not self.counters.finished:
            self.run.rewind(self.stage.name, self.counters.update)
        distributed.barrier()
        self.started = self.saved_at = time.monotonic()

    def parts(self) -> Iterator[Any]:
        """This process's share of the batch of the coming update, part by part."""
        config, update = self.config, self.counters.update
        if self.stage.before_update is not None:
            self.stage.before_update(update)
        sampled = self.stage.sample(self.seeds.torch(self.stage.name, "batch", update), config.batch)
        own = distributed.shard(sampled, config.batch, self.processes)
        for part in distributed.cut(own, config.batch // self.processes.world, config.accumulate):
            loaded = part if self.stage.load is None else self.stage.load(part)
            yield distributed.map_tensors(lambda tensor: tensor.to(self.device, non_blocking=True), loaded)

    def learn(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The gradients of one update, and the loss and metrics of this process's share."""
        self.state.optimiser.zero_grad(set_to_none=True)
        count, seen = self.config.accumulate, list[dict[str, Tensor]]()
        for batch in self.parts():
            with self.autocast(self.config.precision == "bf16"), distributed.in_parts(count):
                loss, metrics = self.objective(batch)
            (loss / count).backward()
            seen.append({name: value.detach() for name, value in {"loss": loss, **metrics}.items()})
        self.state.layout.average_gradients(self.state.parameters)
        metrics = seen[0]
        if count > 1:
            metrics = {name: torch.stack([part[name].float() for part in seen]).mean(0) for name in metrics}
        return metrics.pop("loss"), metrics

    def autocast(self, enabled: bool) -> torch.autocast:
        """Inside, each operation takes bf16 where that is good enough for it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def advance(self) -> None:
        """One update, and all that is due after it."""
        update = self.counters.update
        # An objective should not draw from torch's global generator; one that does is resumable all the same.
        # Not `torch.manual_seed`: it also queues a call, traceback and all, for every accelerator not in use.
        seed = self.seeds[self.stage.name, "global", update, self.processes.rank]
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        loss, metrics = self.learn()
        learning_rate = self.config.learning_rate_at(update)
        norm = self.state.step(learning_rate)
        if self.stage.after_update is not None:
            self.stage.after_update(update + 1)
        self.counters = replace(self.counters, update=update + 1)
        self.finite &= torch.isfinite(loss) & torch.isfinite(norm)
        self.after(loss, metrics, {"learning_rate": learning_rate, "gradient_norm": norm})

    def after(self, loss: Tensor, metrics: Mapping[str, Tensor], facts: Mapping[str, float | Tensor]) -> None:
        """Log, evaluate, examine and save, each in its time; `finish` saves after the last update."""
        config, update = self.config, self.counters.update
        last = update == config.updates
        evaluates = self.stage.evaluate is not None and (last or update % config.evaluate_every == 0)
        examines = self.stage.health is not None and (last or update % config.health_every == 0)
        if update == 1 or last or evaluates or examines or update % config.log_every == 0:
            averaged = distributed.average_metrics({"loss": loss, **metrics})
            row = {name: float(value) for name, value in {**averaged, **facts}.items()}
            self.check_finite(row)
            better = False
            # Sharded parameters are gathered in bf16, so whoever calls them needs autocast, here as well.
            half = config.precision == "bf16" and config.parallel == "sharded"
            with _examining(self.stage.objective), self.autocast(half):
                if examines and self.stage.health is not None:
                    row |= self.examine(self.stage.health())
                if evaluates and self.stage.evaluate is not None:
                    held_out = dict(self.stage.evaluate())
                    row |= held_out
                    better = self.note_best(held_out)
            self.log(row)
            if evaluates and distributed.any_process(better, self.device):
                self.save_product(self.run.best)
                if not last:
                    self.save()
        if not last and self.save_is_due():
            self.check_finite({"loss": float(loss)})
            self.save()

    def examine(self, health: Health) -> dict[str, float]:
        """Keep what the health check says."""
        self.counters = replace(self.counters, warnings=tuple(health.warnings))
        return health.metrics()

    def check_finite(self, row: Mapping[str, float]) -> None:
        """Stop before a checkpoint could be overwritten by something that is not a number."""
        if not self.finite.item():
            raise Diverged(
                f"stage {self.stage.name!r} diverged by update {self.counters.update}: the loss "
                f"({row['loss']:.4g}) or its "
                f"gradient is not finite. Try a learning_rate below {self.config.learning_rate:g} or "
                "gradient_clip=1.0; "
                "the last checkpoint is from before."
            )

    def note_best(self, held_out: Mapping[str, float]) -> bool:
        """Whether this evaluation is the best so far; remembers it."""
        name, best = self.config.best_metric, self.counters.best
        if name is None:
            return False
        if name not in held_out:
            raise InputError(
                f"best_metric is {name!r}, but evaluate() of stage {self.stage.name!r} returned "
                f"{sorted(held_out)}"
            )
        sign = 1 if self.config.best_mode == "min" else -1
        if not math.isfinite(held_out[name]) or (best is not None and sign * held_out[name] >= sign * best):
            return False
        self.counters = replace(self.counters, best=held_out[name], best_update=self.counters.update)
        return True

    def log(self, row: dict[str, float]) -> None:
        """A line of the learning curves, and word to whoever watches."""
        update = self.counters.update
        self.counters = replace(self.counters, metrics=row)
        frames = update * self.config.batch * self.stage.frames_per_item
        self.run.log(
            {
                "stage": self.stage.name,
                "update": update,
                **row,
                "frames": frames,
                "seconds": round(self.seconds, 3),
            }
        )
        if self.on_progress is not None and self.processes.writes:
            spent = time.monotonic() - self.started
            pace = spent / max(update - self.resumed_from, 1)
            self.on_progress(
                Progress(
                    stage=self.stage.name,
                    update=update,
                    updates=self.config.updates,
                    loss=row["loss"],
                    seconds=self.seconds,
                    remaining_seconds=pace * (self.config.updates - update),
                    warnings=self.counters.warnings,
                )
            )

    def save_is_due(self) -> bool:
        """By count or by clock, whichever comes first."""
        limit = self.config.save_seconds
        late = limit is not None and time.monotonic() - self.saved_at > limit
        return self.agreed(late) or self.counters.update % self.config.save_every == 0

    def must_stop(self, asked: bool) -> bool:
        """Whether to stop now."""
        return self.counters.update < self.config.updates and self.agreed(asked)

    def agreed(self, wish: bool) -> bool:
        """Whether a process has a wish that all must follow together, or the rest would wait for ever."""
        if self.processes.world == 1:
            return wish
        return self.counters.update % _AGREE_EVERY == 0 and distributed.any_process(wish, self.device)

    def save_product(self, path: Path) -> None:
        """The product as it is now."""
        facts = {"stage": self.stage.name, "update": self.counters.update, "metrics": self.counters.metrics}
        self.run.save_product(path, self.state.layout.whole(self.stage.exported), **facts)

    def save(self) -> None:
        """A checkpoint: curves first, then the product, then the state that promises both."""
        self.run.flush()
        self.save_product(self.run.weights)
        self.state.save(replace(self.counters, seconds=self.seconds))
        self.saved_at = time.monotonic()

    def finish(self) -> None:
        """The last checkpoint, and the card."""
        self.check_finite(self.counters.metrics)
        if self.config.keep_best and self.counters.best is not None:
            distributed.barrier()  # the first process may still be writing the file
            self.state.layout.fill(self.stage.exported, self.run.best)
        self.counters = replace(self.counters, seconds=self.seconds, finished=True)
        self.started = time.monotonic()
        self.save()
        distributed.barrier()
        self.note_in_card()

    def note_in_card(self) -> None:
        """Tell the card what came of the stage, once; a kill may have come just before this."""
        if self.processes.writes and self.stage.name not in self.run.read_card()["stages"]:
            facts = to_json(self.result())
            self.run.update_card(self.stage.name, {name: facts[name] for name in facts if name != "weights"})

    def result(self) -> FitResult:
        """What the stage has come to."""
        return FitResult(
            stage=self.stage.name,
            updates=self.counters.update,
            resumed_from=self.resumed_from,
            seconds=self.counters.seconds,
            weights=self.run.weights,
            metrics=self.counters.metrics,
            best=self.counters.best,
            best_update=self.counters.best_update,
            warnings=self.counters.warnings,
        )
